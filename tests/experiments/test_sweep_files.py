"""Every shipped sweep file resolves; a run of sampling times measures all of them."""

from pathlib import Path

import pytest

from scm_jax.sweeps.plan.resolve import resolve
from scm_jax.sweeps.plan.sweep_file import load_sweep

FOLDER = Path(__file__).parents[2] / "experiments/sweeps"
# Argument that keeps the test short, number of runs with it, entries of the whole.
SWEEPS = {
    "ablate_stabilizers": ("sct,quick", 2 + 3 * 3, 4 + 2 * 10 * 3),
    "isoflop_digits": ("scd,quick", 3 + 3 * 2, 5 + 2 * 5 * 4 * 2),
    "isoflop_shapes": ("sct,quick", 2 * 2 * 2, 5 + 2 * 5 * 4 * 2),
    "law_moving_digits": ("scd,quick", 2 * 2, 7 + 21 * 2 * 3),
    "methods": ("scratch,quick", 1 + 8, 1 + 3 * 2 * (8 + 8)),
    "proposal_grid": ("scd,quick", 1 + 2 * 2, 1 + 2 * 5 * 5),
    "sampling_times": ("sct,quick", 1 + 1, 1 + 3 * 3),
    "scale_dit": ("8", 6 * 3, 6 * 3),
    "scale_imagenet512": ("s", 3, 5 * 3),
    "transfer": ("with,quick", 3 * 2 * 2, 3 * 5 * 6 + 5),
}


def test_every_sweep_file_is_tested():
    assert SWEEPS.keys() == {path.stem for path in FOLDER.glob("*.py")}


@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_file_resolves(name, tmp_path):
    arg, number, _ = SWEEPS[name]
    found = resolve(load_sweep(f"{FOLDER / name}.py:{arg}"), tmp_path)
    known = {run.id for run in found}
    assert len(found) == len(known) == number
    assert all(run.train_flops > 0 and run.parameters > 0 for run in found)
    assert all(set(run.depends_on) <= known for run in found)


@pytest.mark.parametrize("name", SWEEPS)
def test_the_whole_sweep_has_all_its_entries_and_no_other(name):
    file = load_sweep(f"{FOLDER / name}.py")
    assert len(file.entries) == SWEEPS[name][2] and file.metrics
    with pytest.raises(ValueError, match="nonsense"):
        resolve(load_sweep(f"{FOLDER / name}.py:nonsense"), "runs/none")


def test_budgets_of_an_isoflop_study_are_kept(tmp_path):
    file = load_sweep(f"{FOLDER / 'isoflop_digits'}.py:sct,quick")
    for run in resolve(file, tmp_path):
        assert min(abs(run.train_flops / c - 1) for c in (4e9, 8e9)) < 0.02
        assert run.config["init"]["run"] == ""
