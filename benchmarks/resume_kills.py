"""Kills a training at random moments with SIGKILL; the end must be bitwise the same.

    python benchmarks/resume_kills.py --kills=20

One run goes through undisturbed. The other is killed and started again, ``--kills``
times, in new processes; then parameters, moments, averages, key and data position of
both last checkpoints are compared bit by bit. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import random
import subprocess
import sys
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent


def command(workdir: pathlib.Path, steps: int) -> list[str]:
    """A training of digits that saves often, as a user would type it."""
    batch = 32
    return [
        sys.executable,
        "-m",
        "scm_jax",
        "train",
        "--config=experiments/digits.py:teacher,quick",
        f"--config.train.duration_images={steps * batch}",
        f"--config.checkpoint.every_images={5 * batch}",
        f"--config.log.every_images={5 * batch}",
        f"--workdir={workdir}",
    ]


def last_checkpoint(workdir: pathlib.Path) -> tuple[int, dict[str, np.ndarray]]:
    """Every array of the newest checkpoint by path, and the data position."""
    import jax
    import orbax.checkpoint as ocp

    from scm_jax.training import seal

    folder = workdir / "checkpoints"
    step, _ = seal.newest_whole(folder)
    arrays = {}
    for item in ("state", "ema"):
        tree = ocp.PyTreeCheckpointer().restore(folder / str(step) / item)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                leaf = jax.random.key_data(leaf)
            arrays[item + jax.tree_util.keystr(path)] = np.asarray(leaf)
    position = ocp.JsonCheckpointHandler().restore(folder / str(step) / "data")
    arrays["data"] = np.asarray(position["next_index"])
    return step, arrays


def run_with_kills(workdir: pathlib.Path, steps: int, kills: int, seed: int) -> list:
    """Starts the command until it ends by itself; returns the seconds of each kill."""
    rng, moments = random.Random(seed), []
    while True:
        process = subprocess.Popen(
            command(workdir, steps), cwd=ROOT, stderr=subprocess.DEVNULL
        )
        if len(moments) == kills:
            if process.wait():
                raise SystemExit(f"the last start failed: {process.returncode}")
            return moments
        wait_for_training(workdir, process)
        # From right after the first new row to well into the following saves.
        delay = rng.uniform(0.0, 1.5)
        time.sleep(delay)
        if process.poll() is not None:
            return moments  # it ended before the kill
        process.kill()
        process.wait()
        moments.append(round(delay, 3))


def wait_for_training(workdir: pathlib.Path, process: subprocess.Popen) -> None:
    """Until this start has written to its metrics."""
    metrics = workdir / "metrics.jsonl"
    before = metrics.stat().st_size if metrics.exists() else 0
    while process.poll() is None:
        if metrics.exists() and metrics.stat().st_size > before:
            return
        time.sleep(0.02)


def main() -> int:
    """Exit code 0 when both ends are equal."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = pathlib.Path(folder) / "whole", pathlib.Path(folder) / "killed"
        subprocess.run(
            command(whole, args.steps), cwd=ROOT, check=True, stderr=subprocess.DEVNULL
        )
        moments = run_with_kills(killed, args.steps, args.kills, args.seed)
        (step_a, a), (step_b, b) = last_checkpoint(whole), last_checkpoint(killed)
    different = [
        name for name in a if a[name].tobytes() != b.get(name, np.array([])).tobytes()
    ]
    equal = step_a == step_b and a.keys() == b.keys() and not different
    print(
        json.dumps(
            {
                "kills": len(moments),
                "steps": step_b,
                "arrays": len(a),
                "bitwise_equal": equal,
                "different": different[:5],
                "delays": moments,
            }
        )
    )
    return 0 if equal and moments else 1


if __name__ == "__main__":
    sys.exit(main())
