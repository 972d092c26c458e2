"""Every notebook runs: on stored tables here, on runs of their own in ``make nightly``.

Stored are the tables of the isoFLOP study in docs/, and those that ``sweep collect``
made of ``ablate_stabilizers.py:sct,quick``, 11 runs. Samples need a network, so the
notebook of sampling gets two tiny runs.
"""

import importlib.util
import os
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from scm_jax import config as config_lib
from scm_jax.runs import train
from scm_jax.sweeps.plan.planned import write_run
from scm_jax.sweeps.plan.resolve import resolve
from scm_jax.sweeps.plan.sweep_file import load_sweep

pytest.importorskip("jupytext")

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
STORED = Path(__file__).parents[1] / "golden" / "ablate_stabilizers"
NIGHTLY = "SCM_JAX_NIGHTLY" in os.environ
# Notebook -> the tables, or the sweep, whose runs it reads.
SOURCES = {
    "ablation": STORED,
    "sampling": "sampling_times.py:sct,quick",
    "scaling": EXPERIMENTS.parent / "docs" / "isoflop_digits",
    "tangents": STORED,
}
SWEEPS = {
    "ablation": "ablate_stabilizers.py:sct,quick",
    "sampling": "sampling_times.py:both,quick",
    "scaling": "isoflop_digits.py:both,quick",
    "tangents": "ablate_stabilizers.py:sct,quick",
}


@pytest.fixture(scope="module")
def compiled_once(tmp_path_factory):
    """Runs that differ in budget or seed are one program: compile it once."""
    settings = {
        "jax_enable_compilation_cache": True,
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.1,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def make_runs(compiled_once, tmp_path_factory):
    """``make_runs(sweep)``: the directory of its finished runs."""
    made = {}

    def make(text):
        if isinstance(text, Path):
            return text
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
def execute():
    path = EXPERIMENTS / "notebooks/execute.py"
    spec = importlib.util.spec_from_file_location("execute_notebooks", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_notebook_is_run():
    names = {path.stem for path in (EXPERIMENTS / "notebooks").glob("*.py")}
    assert names - {"execute"} == SWEEPS.keys() == SOURCES.keys()


@pytest.mark.parametrize("name", sorted(SWEEPS))
def test_a_notebook_runs(name, make_runs, execute, tmp_path, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    notebook = execute.execute(name, make_runs((SWEEPS if NIGHTLY else SOURCES)[name]))
    execute.write_page(notebook, tmp_path / f"{name}.md")
    text = (tmp_path / f"{name}.md").read_text()
    pictures = list((tmp_path / name).glob("*.png"))
    assert len(pictures) >= 2
    assert all(f"({name}/{picture.name})" in text for picture in pictures)
    # What was read from the runs stands in the page.
    assert {"scaling": "N_opt ~ C^p, p", "ablation": "paper"}.get(name, "run") in text
