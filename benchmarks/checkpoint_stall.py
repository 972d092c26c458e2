"""How long a save holds up the training, against copying the state to the host.

    python -m benchmarks.checkpoint_stall [--quick]

A state of some hundred MB in 60 and in 200 arrays: parameters, two moments, two
averages. ``blocked`` is the time that ``Checkpointer.save`` takes to return while no
other save is under way; ``copy`` the time to copy every array into a fresh buffer, in
turns in the same run. ``background`` is how long the save goes on in its threads.
"""

from __future__ import annotations

import argparse
import pathlib
import statistics
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import common
from scm_jax.training.checkpoint import Checkpointer
from scm_jax.training.state import TrainState

LIMIT = 1.5
TREES = 5  # parameters, two moments, two averages


def make_state(num_arrays: int, megabytes: int) -> TrainState:
    """A state of ``num_arrays`` arrays, half of them square, half of them vectors."""
    layers = num_arrays // TREES // 2
    width = int((megabytes * 2**20 / 4 / TREES / layers) ** 0.5)

    def tree() -> dict[str, Any]:
        return {
            f"layer_{i}": {"kernel": jnp.ones((width, width)), "bias": jnp.ones(width)}
            for i in range(layers)
        }

    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params={"net": tree()},
        opt_state={"mu": tree(), "nu": tree()},
        ema={"0.05": tree(), "0.10": tree()},
        key=jax.random.key(0),
    )
    return jax.block_until_ready(state)


def copy_seconds(state: TrainState) -> float:
    """Time to copy the arrays of ``state`` into host memory of their own."""
    # Fresh arrays: JAX keeps a copy on the host that it has made once.
    arrays = [jnp.copy(x) for x in jax.tree.leaves(state.replace(key=()))]
    jax.block_until_ready(arrays)
    began = time.perf_counter()
    if jax.default_backend() == "cpu":  # where device_get gives views, not copies
        copies = [np.array(x) for x in arrays]
    else:
        copies = jax.device_get(arrays)
    seconds = time.perf_counter() - began
    del copies
    return seconds


def measure(num_arrays: int, megabytes: int, repeats: int) -> dict[str, Any]:
    """Saves and copies in turns; medians and the median of the ratios."""
    state = make_state(num_arrays, megabytes)
    rows = []
    with (
        tempfile.TemporaryDirectory() as folder,
        Checkpointer(pathlib.Path(folder) / "checkpoints", max_to_keep=2) as saver,
    ):
        for step in range(repeats + 1):  # the first pays for what Orbax sets up
            before = copy_seconds(state)
            began = time.perf_counter()
            saver.save(step, state, data={"next_index": step}, metadata={"step": step})
            blocked = time.perf_counter() - began
            saver.wait()
            background = time.perf_counter() - began - blocked
            copy = (before + copy_seconds(state)) / 2
            rows.append((blocked, copy, background, blocked / copy))
    names = ("blocked_seconds", "copy_seconds", "background_seconds", "ratio")
    columns = zip(*rows[1:], strict=True)
    medians = map(statistics.median, columns)
    return dict(zip(names, medians, strict=True)) | {"ratios": [r[3] for r in rows]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="5 saves of each, not 15")
    parser.add_argument("--megabytes", type=int, default=300)
    args = parser.parse_args()
    ratios = {}
    for num_arrays in (60, 200):
        found = measure(num_arrays, args.megabytes, 5 if args.quick else 15)
        ratios[num_arrays] = found["ratio"]
        common.emit(
            benchmark="checkpoint_stall",
            arrays=num_arrays,
            megabytes=args.megabytes,
            **found,
        )
    common.ratio(
        "blocked / copy of the state to the host",
        max(ratios.values()),
        limit=LIMIT,
        by_arrays=ratios,
    )


if __name__ == "__main__":
    main()
