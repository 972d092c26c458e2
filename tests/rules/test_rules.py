"""What holds for the whole tree: what an import costs, and that the faults apply."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
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


def test_files_have_at_most_400_lines_and_functions_80():
    rooms = ("scm_jax", "tests", "benchmarks", "experiments")
    files = [p for room in rooms for p in (ROOT / room).rglob("*.py")]
    long, functions = [], 0
    for path in files:
        if path.parent.name == "golden":  # makers of stored outputs
            continue
        text = path.read_text(encoding="utf-8")
        if text.count("\n") > 400:
            long.append(str(path))
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                functions += 1
                if node.end_lineno - node.lineno >= 80:
                    long.append(f"{path}:{node.lineno} {node.name}")
    assert not long
    assert len(files) > 300 and functions > 3000  # something was looked at
