"""How much of the package a small task imports; each has a process of its own."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

_IMPORTED = """
import sys
for name, module in sorted(sys.modules.items()):
    if name.partition(".")[0] == "scm_jax" and module.__file__:
        print(name, len(open(module.__file__).readlines()))
"""


def imported(code):
    """Module of the package -> its lines, after ``code`` has run."""
    command = [sys.executable, "-c", code + _IMPORTED]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
    assert not done.returncode, done.stderr
    pairs = (line.split() for line in done.stdout.splitlines())
    return {name: int(lines) for name, lines in pairs}


def of_evaluation(modules):
    return [name for name in modules if name.startswith("scm_jax.evaluation")]


def test_a_sweep_is_resolved_with_55_modules(tmp_path):
    sweep = tmp_path / "seeds.py"
    sweep.write_text(
        "BASE = 'experiments/digits.py:scd,quick'\n"
        "def sweep(arg):\n"
        "    yield {'base': ':teacher,quick', 'label': 'teacher'}\n"
    )
    modules = imported(
        "from scm_jax.sweeps.plan import resolve, sweep_file\n"
        f"file = sweep_file.load_sweep({str(sweep)!r})\n"
        f"assert len(resolve.resolve(file, {str(tmp_path)!r})) == 1\n"
    )
    assert "scm_jax.sweeps.plan.resolve" in modules
    assert len(modules) <= 55, sorted(modules)
    # Backbones and datasets that no config names stay on disk.
    assert not {"scm_jax.networks.unet", "scm_jax.datasets.images"} & modules.keys()
    assert not of_evaluation(modules)


def test_describe_imports_no_evaluation():
    modules = imported(
        "from scm_jax.runs.estimate import describe\n"
        "from experiments import digits\n"
        "config = digits.get_config('sct,quick')\n"
        "config.eval.evaluators = ('digits',)\n"
        "assert describe.describe(config)\n"
    )
    assert "scm_jax.runs.estimate.describe" in modules
    assert not of_evaluation(modules)


def test_the_training_step_is_read_in_2000_lines():
    modules = imported("import scm_jax.training.step\n")
    assert "scm_jax.objectives.base" in modules
    assert sum(modules.values()) < 2000, modules
