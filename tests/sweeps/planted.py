"""Run directories in every state, and processes that hold them."""

import contextlib
import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

from scm_jax import config as config_lib
from scm_jax.files.jsonl import append_row
from scm_jax.runs.directory import locks
from scm_jax.sweeps.plan import planned
from tests.hang import HANG

ROOT = Path(__file__).parents[2]
ELSEWHERE = {"host": "elsewhere", "boot": "another-boot", "pid": 1}


def tiny_config(seed=0, steps=40):
    """A network of a few hundred parameters on closed-form data."""
    c = config_lib.base_config("mlp", "diffusion", "mixture")
    c.name, c.seed = "tiny", seed
    c.network.width, c.network.depth = 8, 1
    c.train.batch_size, c.train.duration_images = 16, steps * 16
    c.log.every_images = c.checkpoint.every_images = steps // 4 * 16
    c.log.writers = ("jsonl",)
    c.eval.steps = ()
    return config_lib.to_dict(c)


def plan_run(name="run", *depends_on, **facts):
    """A planned run; ``name`` stands for SLUG-HASH."""
    common = {"sweep": "s", "file": "s.py", "base": "", "label": "", "overrides": {}}
    common |= {"config": {"seed": 0}, "depends_on": depends_on}
    return planned.PlannedRun(id=name, **{**common, **facts})


def make_run(root, *names, **facts):
    """Plans a run (``plan_run``) and makes its directory."""
    run = plan_run(*names, **facts)
    planned.write_run(root, run)
    return run


def write_status(run_dir, **fields):
    """``status.json`` of a worker of this process, changed by ``fields``."""
    now = time.time()
    status = {"state": "running", "attempt": 1, "retry": True, "error": None}
    status |= {"started": now - 100, "heartbeat": now, "heartbeat_seconds": 10.0}
    status |= {**locks.identity(), **fields}
    # Not with ``write_json``, whose unfinished file is named after the process: here
    # a heartbeat of this one may be writing its own.
    unfinished = Path(run_dir) / ".planted"
    unfinished.write_text(json.dumps(status))
    unfinished.rename(Path(run_dir) / "status.json")


def write_attempts(run_dir, *outcomes):
    """Ended attempts."""
    for number, outcome in enumerate(outcomes, start=1):
        ended = {"event": "ended", "outcome": outcome, "time": time.time()}
        append_row(Path(run_dir) / "attempts.jsonl", {"attempt": number, **ended})


def write_submission(run_dir, event="sent", **fields):
    row = {"time": time.time(), "launcher": "fake", "submission": "1", "job": "7"}
    append_row(Path(run_dir) / "submissions.jsonl", {**row, "event": event, **fields})


def finish(run_dir):
    (Path(run_dir) / "summary.json").write_text("{}")


def one_cache(folder):
    """Variables of small trainings that share what they compile."""
    return {
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_COMPILATION_CACHE_DIR": str(folder),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }


@contextlib.contextmanager
def python(code, *args, **variables):
    """A Python process that runs ``code`` with this checkout; stdout is a pipe."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, args)],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def wait_for(condition, process=None, seconds=HANG):
    """Until ``condition()`` is true; fails when it never is, or the process ends."""
    deadline = time.monotonic() + seconds
    while not condition():
        if process is not None and process.poll() is not None:
            raise AssertionError(f"ended with {process.returncode}: {process.stdout}")
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)


def rows(run_dir, name="attempts.jsonl"):
    text = (Path(run_dir) / name).read_text()
    return [json.loads(line) for line in text.splitlines()]
