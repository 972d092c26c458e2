"""What holds for the whole tree: what an import costs, and that the faults apply."""

import subprocess
import sys

import pytest

HEAVY = (
    "tensorflow",
    "torch",
    "tensorflow_datasets",
    "pandas",
    "matplotlib",
    "sklearn",
)


def modules_after(statement: str) -> set[str]:
    """Top-level modules of a fresh process after ``statement``."""
    names = "' '.join(m.split('.')[0] for m in sys.modules)"
    code = f"{statement}; import sys; print({names})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statement", ["import scm_jax", "import scm_jax.runs.train, scm_jax.commands.main"]
)
def test_import_pulls_in_no_heavy_package(statement):
    assert not modules_after(statement) & set(HEAVY)


def test_every_planted_fault_applies():
    done = subprocess.run(
        [sys.executable, "tests/run_mutations.py", "--check"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert int(done.stdout.split()[-4]) >= 25
