"""The commands as a user types them: an installed wheel, signals, and mistakes."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import sysconfig
import venv

import numpy as np
import PIL.Image
import pytest

import scm_jax
from scm_jax.analysis.plots import quality
from scm_jax.commands import demo as demo_command
from scm_jax.runs import evaluate
from scm_jax.runs.directory import layout
from scm_jax.runs.setup import parts
from tests.commands.in_process import scm
from tests.multidevice.processes import ROOT, Processes

pytestmark = pytest.mark.filterwarnings("ignore:the load_module.*:DeprecationWarning")


@pytest.fixture(scope="module")
def programs():
    """Environment of processes that do not find the package of the checkout."""
    return {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}


@pytest.fixture(scope="module")
def installed(programs, tmp_path_factory):
    """``installed(*args)`` runs a command of a wheel in an environment of its own."""
    root = tmp_path_factory.mktemp("installed")
    source, here = root / "source", root / "here"
    here.mkdir()
    for name in ("scm_jax", "experiments", "data"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    for name in ("setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    wheel = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(root)]
    subprocess.run([*wheel, str(source)], check=True, env=programs)
    venv.create(root / "env", symlinks=True)
    python = root / "env/bin/python"
    (wheel_file,) = root.glob("*.whl")
    where = sysconfig.get_path("purelib", vars={"base": str(root / "env")})
    install = [*pip, "--python", str(python), "install", "--no-deps", "--no-compile"]
    subprocess.run([*install, str(wheel_file)], check=True, env=programs)
    # What it depends on is that of this environment; an editable install is not seen.
    (pathlib.Path(where) / "dependencies.pth").write_text(sysconfig.get_path("purelib"))

    def run(*command):
        command = [root / "env/bin" / command[0], *command[1:]]
        done = subprocess.run(
            command, cwd=here, env=programs, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    return run


@pytest.fixture(scope="module")
def demo(installed, tmp_path_factory):
    """A finished quick demo, run from the wheel."""
    workdir = tmp_path_factory.mktemp("demo")
    done = installed("scm", "demo", "--quick", f"--workdir={workdir}")
    return workdir, done


def test_a_wheel_needs_no_checkout(installed, demo):
    config = "--config=experiments/mixture.py:scd"
    found = json.loads(installed("scm", "describe", config).stdout)
    assert found["objective"] == "consistency" and found["parameters"] > 0
    sweep = "--sweep=experiments/sweeps/isoflop_digits.py:sct,quick"
    plan = json.loads(installed("scm", "sweep", "plan", sweep, "--json").stdout)
    assert len(plan) > 3 and all(row["train_flops"] > 0 for row in plan)
    code = "import scm_jax; print(scm_jax.__file__, len(scm_jax.load_runs({!r})))"
    said = installed("python", "-c", code.format(str(demo[0]))).stdout
    assert "/env/lib/" in said and said.endswith(" 3\n")


def test_demo_leaves_results_and_report(demo):
    workdir, done = demo
    rows = json.loads((workdir / "results.json").read_text())
    assert [(r["method"], r["steps"], r["nfe"]) for r in rows] == [
        ("teacher", 18, 35),
        *[("scd", n, n) for n in (1, 2, 4)],
        *[("sct", n, n) for n in (1, 2, 4)],
    ]
    keys = {"frechet_distance", "frechet_floor", "precision", "recall"}
    keys |= {"class_accuracy", "seconds_per_image", "method", "steps", "nfe"}
    assert all(set(row) == keys for row in rows)
    assert all(
        np.isfinite(v) for row in rows for v in row.values() if v != row["method"]
    )
    assert "<html" in (workdir / "report.html").read_text()
    assert "times faster" in done.stdout and "class_accuracy" in done.stdout
    assert "images" in done.stderr  # progress


def test_demo_again_only_measures(demo, monkeypatch):
    workdir, _ = demo
    metrics = [workdir / variant / "metrics.jsonl" for variant in demo_command.VARIANTS]
    before = [path.read_text().count('"loss"') for path in metrics]
    rows = json.loads((workdir / "results.json").read_text())
    monkeypatch.setattr(demo_command, "collect", lambda *args: rows)
    monkeypatch.setattr(demo_command, "write_report", lambda *args: None)
    scm("demo", "--quick", f"--workdir={workdir}")
    assert [path.read_text().count('"loss"') for path in metrics] == before


def test_sample_command_and_load_run_agree(demo, tmp_path):
    directory, out = demo[0] / "scd", tmp_path / "samples.npy"
    options = ("--num=5", "--steps=2", "--class=3", f"--out={out}")
    scm("sample", f"--run={directory}", *options)
    run = scm_jax.load_run(directory)
    x = run.sample(num=5, steps=2, seed=0, label=3).x
    np.testing.assert_array_equal(np.load(out), x)
    assert {"loss", "tangent_norm", "grad_norm"} <= set(run.metrics.columns)
    assert run.config.objective.dx_dt == "teacher"
    assert "<" in run._repr_html_()


def test_samples_do_not_depend_on_the_batch(demo):
    run = scm_jax.load_run(demo[0] / "sct")
    many, few = run.sample(7, seed=4, label=1).x, run.sample(3, seed=4, label=1).x
    np.testing.assert_allclose(many[:3], few, rtol=0, atol=1e-5)


def test_evaluate_appends_rows(demo):
    run = scm_jax.load_run(demo[0] / "sct")
    before = len(run.results)
    done = scm("evaluate", f"--run={run.path}", "--steps=1,2", "--metrics=digits")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["steps"] for row in rows] == [1, 2]
    assert len(run.results) == before + 2


def test_evaluate_sweeps_combinations_and_goes_on(demo, tmp_path):
    workdir, _ = demo
    run_dir = layout.RunDir(workdir / "sct")
    before = run_dir.results_path.read_text().splitlines()

    def sweep(**changed):
        asked = {
            "averages": ("0.05", "0.1"),
            "steps": (1, 2),
            "times": [(1.3,), (0.7,)],
            "evaluators": ("validation", "teacher_trajectory"),
            **{"num_points": 32, "num_times": 4, "batch_size": 32},
            **{"teacher_steps": 8, "num_paths": 32},
        }
        return list(evaluate.evaluate_run(workdir / "sct", **{**asked, **changed}))

    rows = sweep()
    assert [(r["ema"], r["steps"], r["times"]) for r in rows] == [
        (ema, steps, times)
        for ema in ("0.05", "0.1")
        for steps, times in ((1, None), (2, [1.3]), (2, [0.7]))
    ]
    assert len({row["key"] for row in rows}) == 6
    assert rows[0]["validation_error"] != rows[3]["validation_error"]
    assert rows[1]["sampling_compute"] == 2 * rows[0]["sampling_compute"]
    lines = run_dir.results_path.read_text().splitlines()
    assert len(lines) == len(before) + 6
    # A row that was lost, as after a kill, is measured again, and no other.
    run_dir.results_path.write_text("\n".join(lines[:-1]) + "\n")
    assert sweep() == rows
    assert run_dir.results_path.read_text().splitlines() == lines
    quality.plot_runs([workdir / "sct"], tmp_path / "quality.png")
    with PIL.Image.open(tmp_path / "quality.png") as picture:
        assert picture.width > 600
    # Held-out data may change in a run's config, and with it the answer.
    config = run_dir.read_config()
    held_out = {**config, "eval": {**config["eval"], "split": "train[:50%]"}}
    run_dir.write_config(held_out)
    one = {"averages": ("0.05",), "steps": (1,), "times": []}
    (half,) = sweep(**one)
    assert half["validation_error"] != rows[0]["validation_error"]
    run_dir.write_config(config)
    assert sweep(**one) == rows[:1]
    with pytest.raises(ValueError, match=r"times 1.3/0.7 go with 3 steps"):
        sweep(times=[(1.3, 0.7)])
    with pytest.raises(ValueError, match=r"must decrease within \(0, 1.56"):
        sweep(times=[(0.7, 1.3)], steps=(3,), evaluators=("digits",))
    with pytest.raises(ValueError, match=r"cannot be reconstructed from 2 stored"):
        sweep(averages=("0.07",))
    with pytest.raises(ValueError, match=r"'half' is neither kept in .*0.05.*0.1"):
        sweep(averages=("half",))


def test_widths_are_read_as_numbers():
    assert parts.average_name("0.10") == "0.1"
    assert parts.average_name("half_life_5e+05") == "half_life_5e+05"
    assert parts.average_name("") == ""


def test_report_of_runs(demo, tmp_path):
    workdir, _ = demo
    page = tmp_path / "page.html"
    scm("report", f"--runs={workdir / 'scd'},{workdir / 'sct'}", f"--out={page}")
    assert "sct" in page.read_text()


@pytest.mark.parametrize(
    "variant, limit", [("teacher", 1.0), ("sct", 1.38), ("scd", 1.72)]
)
def test_describe_counts_the_step(variant, limit):
    done = scm("describe", f"--config=experiments/digits.py:{variant}")
    accounts = json.loads(done.stdout)
    assert 1.0 <= accounts["train_macs_ratio_to_diffusion"] <= limit
    keys = {"parameters", "forward_macs_per_image", "train_macs_per_image"}
    assert keys | {"effective_sampling_compute", "state_bytes"} <= set(accounts)


# --- What users get wrong ----------------------------------------------------------

DIGITS = "--config=experiments/digits.py"
TO_X = (f"{DIGITS}:scd", "--workdir=x")


@pytest.mark.parametrize(
    "args, code, message",
    [
        (["trian"], 1, "did you mean 'train'"),
        (["train"], 2, "missing --config"),
        (["train", DIGITS, "--config.train.batchsize=3"], 2, "'train.batch_size'"),
        (["train", f"{DIGITS}:sdc"], 2, "'scd'"),
        (["train", *TO_X, "--config.network.name=dti"], 1, "did you mean 'dit'"),
        (["train", *TO_X, "--config.teacher.run=nowhere"], 1, "nowhere"),
        (["sample", "--run=nowhere"], 1, "nowhere"),
        (["describe", DIGITS, "--mesh=fdsp=4"], 1, "did you mean 'fsdp'"),
        (["describe", DIGITS, "--efficiency=0.5"], 2, "need --mesh or --hardware"),
    ],
)
def test_a_mistake_gets_a_message_without_a_traceback(args, code, message, tmp_path):
    args = [arg.replace("=x", f"={tmp_path / 'x'}") for arg in args]
    said = scm(*args, check=code).stderr
    assert message in said and "Traceback" not in said


def test_a_directory_of_another_config_is_refused(demo):
    directory = f"--workdir={demo[0] / 'teacher'}"
    changed = "--config.optimizer.learning_rate=0.5"
    said = scm("train", f"{DIGITS}:teacher,quick", changed, directory, check=1).stderr
    assert "optimizer.learning_rate" in said and "0.5" in said


def test_sigterm_saves_and_exits_75_and_the_same_command_resumes(programs, tmp_path):
    command = ("scm_jax", "train", "--config=experiments/mixture.py:sct,quick")
    command += ("--config.train.duration_images=20_000_000", f"--workdir={tmp_path}")
    metrics = tmp_path / "metrics.jsonl"
    metrics.touch()
    for resumed in (False, True):
        lines = metrics.read_text().count('"loss"')
        with Processes([command], **programs) as processes:
            processes.wait_for(lambda n=lines: metrics.read_text().count('"loss"') > n)
            processes.running[0].send_signal(signal.SIGTERM)
            (said,) = processes.finish(75)
        assert "run the same command to resume" in said
        assert ("resumes at step" in said) == resumed
