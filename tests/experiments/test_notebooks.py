"""Every notebook runs: on stored tables here, on runs of their own in ``make nightly``.

Stored are the tables of the isoFLOP study in docs/, and those that ``sweep collect``
made of ``ablate_stabilizers.py:sct,quick``, 11 runs. Samples need a network, so the
notebook of sampling gets a tiny run. Getting started trains, so it runs nightly.
"""

import importlib.util
import json
import os
from pathlib import Path

import pytest

from scm_jax import config as config_lib
from scm_jax.runs import train
from scm_jax.sweeps.plan.planned import write_run
from scm_jax.sweeps.plan.resolve import resolve
from scm_jax.sweeps.plan.sweep_file import load_sweep

jupytext = pytest.importorskip("jupytext")
nbformat = pytest.importorskip("nbformat")

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
PUBLISHED = EXPERIMENTS.parent / "docs" / "notebooks"
STORED = Path(__file__).parents[1] / "golden" / "ablate_stabilizers"
NIGHTLY = "SCM_JAX_NIGHTLY" in os.environ
TINY = "a run of sampling_times.py, cut down"
# Notebook -> the tables, or the sweep, whose runs it reads.
SOURCES = {
    "ablation": STORED,
    "methods": EXPERIMENTS.parent / "docs" / "methods_digits",
    "sampling": TINY,
    "scaling": EXPERIMENTS.parent / "docs" / "isoflop_digits",
    "tangents": STORED,
}
SWEEPS = {
    "ablation": "ablate_stabilizers.py:sct,quick",
    "methods": "methods.py:both,quick",
    "sampling": "sampling_times.py:both,quick",
    "scaling": "isoflop_digits.py:both,quick",
    "tangents": "ablate_stabilizers.py:sct,quick",
}
# What a notebook's outputs say of these runs.
READ = {
    "ablation": "tangent_normalization = none",
    "methods": "lmd - emd",
    "sampling": "sct",
    "scaling": "N_opt ~ C^p, p",
    "tangents": "spikes",
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The directory of one student of ``sampling_times.py``, cut down to compile."""
    root = tmp_path_factory.mktemp("tiny")
    sweep = load_sweep(str(EXPERIMENTS / "sweeps" / "sampling_times.py:sct,quick"))
    config = config_lib.from_dict(dict(resolve(sweep, root)[-1].config))
    with config.unlocked():
        config.init.run = ""
        config.network.width, config.network.depth = 8, 1
        config.train.duration_images = 2 * 128
        config.eval.times = ((0.2,), (1.0,))
    assert train.train_and_evaluate(config, root / "run") == "done"
    return root


def test_a_run_of_sampling_times_measures_all_of_them(tiny):
    lines = (tiny / "run/results.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    measured = [(row["steps"], row["times"]) for row in rows]
    assert measured == [(1, None), (2, None), (2, [0.2]), (2, [1.0])]
    assert len({row["frechet_distance"] for row in rows[1:]}) == 3


@pytest.fixture(scope="module")
def make_runs(tiny, tmp_path_factory):
    """``make_runs(sweep)``: the directory of its finished runs."""
    made = {}

    def make(text):
        if isinstance(text, Path):
            return text
        if text == TINY:
            return tiny
        if text not in made:
            root = tmp_path_factory.mktemp("runs") / text.partition(".")[0]
            for run in resolve(load_sweep(str(EXPERIMENTS / "sweeps" / text)), root):
                directory = write_run(root, run)
                config = config_lib.from_dict(dict(run.config))
                assert train.train_and_evaluate(config, directory) == "done"
            made[text] = root
        return made[text]

    return make


@pytest.fixture(scope="module")
def notebooks():
    path = EXPERIMENTS / "notebooks/execute.py"
    spec = importlib.util.spec_from_file_location("execute_notebooks", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def code(notebook):
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def pictures(notebook):
    return [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if "image/png" in output.get("data", ())
    ]


def text(notebook):
    """What the cells have printed and shown."""
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", ())]
    shown = (o.get("data", {}).get("text/html", "") for o in outputs)
    return "\n".join([*(o.get("text", "") for o in outputs), *shown])


@pytest.mark.parametrize("name", sorted({"getting_started", *SWEEPS}))
def test_the_published_notebook_is_of_this_source(name):
    published = nbformat.read(PUBLISHED / f"{name}.ipynb", as_version=4)
    source = jupytext.read(EXPERIMENTS / "notebooks" / f"{name}.py")
    assert code(published) == code(source)
    counts = [c.execution_count for c in published.cells if c.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert len(pictures(published)) >= 2


def test_every_notebook_is_run():
    names = {path.stem for path in (EXPERIMENTS / "notebooks").glob("*.py")}
    assert names - {"execute", "getting_started"} == SWEEPS.keys() == SOURCES.keys()


@pytest.mark.parametrize("name", sorted(SWEEPS))
def test_a_notebook_runs(name, make_runs, notebooks, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    root = make_runs((SWEEPS if NIGHTLY else SOURCES)[name])
    executed = notebooks.execute(name, root)
    assert len(pictures(executed)) >= 2
    assert READ[name] in text(executed)


@pytest.mark.skipif(not NIGHTLY, reason="trains for five minutes: in make nightly")
def test_getting_started(notebooks, tmp_path, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    executed = notebooks.execute("getting_started", tmp_path)
    assert len(pictures(executed)) == 4
    assert "tangent_normalization = clip" in text(executed)
