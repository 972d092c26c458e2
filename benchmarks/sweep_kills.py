"""Kills workers of a sweep at random with SIGKILL; the end must be bitwise the same.

    python benchmarks/sweep_kills.py --kills=20

A few tiny runs are trained twice: once undisturbed, once by the local launcher while
workers that train are killed. At the end all runs must be done, and parameters,
moments, averages, key and data position of their last checkpoints are compared bit by
bit. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT)]

from benchmarks.resume_kills import last_checkpoint  # noqa: E402
from scm_jax import config as config_lib  # noqa: E402
from scm_jax.runs.directory import run_configs  # noqa: E402
from scm_jax.sweeps.plan import planned  # noqa: E402
from scm_jax.sweeps.state import states  # noqa: E402

BATCH = 32


def tiny_config(seed: int, steps: int) -> dict:
    """A teacher of a few thousand parameters that saves often."""
    c = config_lib.base_config("mlp", "diffusion", "mixture")
    c.name, c.seed = "tiny", seed
    c.network.width, c.network.depth = 16, 2
    c.train.batch_size = BATCH
    c.train.duration_images = steps * BATCH
    c.log.every_images = c.checkpoint.every_images = steps // 10 * BATCH
    c.log.writers = ("jsonl",)
    c.eval.steps = ()
    return config_lib.to_dict(c)


def write_runs(root: pathlib.Path, number: int, steps: int, kills: int) -> list[str]:
    """The directories of the runs; each may vanish as often as there are kills."""
    ids = []
    for seed in range(number):
        config = tiny_config(seed, steps)
        run_id = f"tiny-{run_configs.config_hash(config)}"
        run = planned.PlannedRun(
            id=run_id,
            sweep="kills",
            file="benchmarks/sweep_kills.py",
            base="",
            label=f"seed{seed}",
            config=config,
            overrides={"seed": seed},
            max_attempts=kills + 3,
        )
        planned.write_run(root, run)
        ids.append(run_id)
    return ids


def train(root: pathlib.Path, ids: list[str]) -> None:
    """Trains runs undisturbed, in one process of their own."""
    code = "import sys; from scm_jax.sweeps.worker import work\n"
    code += "sys.exit(sum(work(run) for run in sys.argv[1:]))"
    folders = [str(root / run_id) for run_id in ids]
    subprocess.run([sys.executable, "-c", code, *folders], check=True, cwd=ROOT)


def launch(root: pathlib.Path, parallel: int) -> subprocess.Popen:
    """The command that a user would type to go on with a sweep."""
    command = [sys.executable, "-m", "scm_jax", "sweep", "resubmit", f"--root={root}"]
    command += ["--launcher=local", f"--max_parallel={parallel}"]
    return subprocess.Popen(command, cwd=ROOT, stdout=sys.stderr)


def kill_workers(
    root: pathlib.Path,
    ids: list[str],
    launcher: subprocess.Popen,
    kills: int,
    seed: int,
) -> list[str]:
    """Kills running workers until so many are dead; what each of them had reached.

    Three of four are killed after their first new checkpoint, while they train or save;
    the others at any moment from their first sign of life on.
    """
    rng, killed = random.Random(seed), []
    moments: dict[int, float | None] = {}  # process -> unix seconds, once known
    dead: set[int] = set()
    while len(killed) < kills and launcher.poll() is None:
        time.sleep(0.02)
        for state in [states.read_state(root / run_id) for run_id in ids]:
            if state.state != states.RUNNING or state.pid in dead:
                continue
            if state.pid not in moments:
                early = rng.random() < 0.25
                moments[state.pid] = time.time() + rng.uniform(0, 5) if early else None
            if moments[state.pid] is None and saved_since(root / state.id, state):
                moments[state.pid] = time.time() + rng.uniform(0, 1.5)
            moment = moments[state.pid]
            if moment is None or time.time() < moment or len(killed) == kills:
                continue
            os.kill(state.pid, signal.SIGKILL)
            dead.add(state.pid)
            killed.append(f"{state.id} attempt {state.attempt}: {reached(root, state)}")
    return killed


def checkpoints(run_dir: pathlib.Path) -> list[pathlib.Path]:
    """The whole checkpoints of a run, oldest first."""
    found = [p for p in (run_dir / "checkpoints").glob("*") if p.name.isdigit()]
    return sorted(found, key=lambda path: int(path.name))


def saved_since(run_dir: pathlib.Path, state: states.RunState) -> bool:
    """Whether this attempt has written a checkpoint."""
    found = checkpoints(run_dir)
    return bool(found) and found[-1].stat().st_mtime > state.started


def reached(root: pathlib.Path, state: states.RunState) -> str:
    """The newest checkpoint at the moment of the kill."""
    found = checkpoints(root / state.id)
    return f"checkpoint {found[-1].name}" if found else "no checkpoint"


def differences(one: pathlib.Path, other: pathlib.Path, ids: list[str]) -> list[str]:
    """Arrays of last checkpoints that are not the same bits, by run."""
    different = []
    for run_id in ids:
        (step_a, a), (step_b, b) = (last_checkpoint(r / run_id) for r in (one, other))
        if step_a != step_b or a.keys() != b.keys():
            different.append(f"{run_id}: step {step_a} and {step_b}")
        different += [
            f"{run_id}: {name}"
            for name in a
            if a[name].tobytes() != b.get(name, np.array([])).tobytes()
        ]
    return different


def study(
    folder: pathlib.Path, number: int, kills: int, steps: int, parallel: int, seed: int
) -> dict:
    """Both sweeps and their comparison."""
    whole, disturbed = folder / "whole", folder / "disturbed"
    ids = write_runs(whole, number, steps, 0)
    write_runs(disturbed, number, steps, kills)
    train(whole, ids)
    launcher = launch(disturbed, parallel)
    killed = kill_workers(disturbed, ids, launcher, kills, seed)
    code = launcher.wait()
    found = [states.read_state(disturbed / run_id) for run_id in ids]
    return {
        "runs": number,
        "kills": len(killed),
        "exit_code": code,
        "states": [state.state for state in found],
        "attempts": [state.attempt for state in found],
        "different": differences(whole, disturbed, ids) if code == 0 else None,
        "killed": killed,
    }


def main() -> int:
    """Exit code 0 when all runs are done and equal."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=6)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--max_parallel", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = study(
            pathlib.Path(folder),
            args.runs,
            args.kills,
            args.steps,
            args.max_parallel,
            args.seed,
        )
    print(json.dumps(found))
    complete = found["kills"] == args.kills and found["exit_code"] == 0
    return 0 if complete and found["different"] == [] else 1


if __name__ == "__main__":
    sys.exit(main())
