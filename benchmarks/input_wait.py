"""How long a training waits for its data: uint8 images 32x32x3 read from disk.

    python -m benchmarks.input_wait [--quick]

Two steps stand in for a network that trains on 3,000 images per second in batches of
128, so in 42.7 ms per step. One only lets that time pass, as an accelerator does for
the processors of its host; one multiplies matrices on all processors. The training's
own loop runs, and the time is measured that it spends in ``Ahead.take`` and
``Ahead.fetch``: reading, transfer and dispatch of the decoding. ``fetch`` overlaps with
the step, so this is more than what the devices can ever wait.

The lines ``reading`` say what the reading takes by itself, in one to four threads.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
import logging
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import common, input_pipeline
from scm_jax.training import ahead, loop, sharding
from scm_jax.training.state import TrainState

IMAGES_PER_SECOND = 3000
BATCH_SIZE = 128
STEP_SECONDS = BATCH_SIZE / IMAGES_PER_SECOND
LIMIT = 0.02

Compute = Callable[[jax.Array], jax.Array]


class Timed(ahead.Ahead):
    """Counts the seconds that the loop spends in here, step by step."""

    def __init__(self, seconds: list[float], *args: Any):
        self._seconds = seconds
        super().__init__(*args)

    def take(self) -> Any:
        began = time.perf_counter()
        taken = super().take()
        self._seconds.append(time.perf_counter() - began)
        return taken

    def fetch(self) -> None:
        began = time.perf_counter()
        super().fetch()
        if self._seconds:  # the first batch of all is no part of a step
            self._seconds[-1] += time.perf_counter() - began


def passing() -> Compute:
    """Time passes and the processors are free."""

    def wait(number: np.ndarray) -> np.ndarray:
        time.sleep(STEP_SECONDS)
        return number

    def compute(number: jax.Array) -> jax.Array:
        return jax.pure_callback(wait, jax.ShapeDtypeStruct((), jnp.float32), number)

    return compute


def multiplying() -> Compute:
    """Products of matrices for about as long, on all processors."""

    def compute_times(count: int) -> Compute:
        def compute(number: jax.Array) -> jax.Array:
            start = jnp.full((512, 512), 1e-3) * number
            return jax.lax.fori_loop(0, count, lambda _, a: a @ a, start)[0, 0] * 0

        return compute

    count = 64
    probe = jax.jit(compute_times(count))
    probe(jnp.float32(1)).block_until_ready()
    found = []
    for _ in range(5):
        began = time.perf_counter()
        probe(jnp.float32(1)).block_until_ready()
        found.append(time.perf_counter() - began)
    return compute_times(max(1, round(count * STEP_SECONDS / min(found))))


def measure(dataset: Any, compute: Compute, steps: int) -> dict[str, float]:
    """Seconds per step in the loop, and of these the ones spent on input."""
    mesh = sharding.make_mesh(sharding.MeshSpec(data=1))
    iterator = dataset.iterator(BATCH_SIZE, 0)
    place = ahead.make_place(dataset.to_batch, mesh)
    marks: list[float] = []

    def train_step(state: Any, batch: Any) -> Any:
        loss = compute(jnp.mean(batch.x))
        metrics = {"loss": loss, "finite": jnp.isfinite(loss)}
        return state.replace(step=state.step + 1), metrics

    def run(num: int) -> list[float]:
        seconds: list[float] = []
        loop.Ahead = functools.partial(Timed, seconds)
        settings = loop.LoopSettings(
            duration_images=num * BATCH_SIZE,
            batch_size=BATCH_SIZE,
            log_every_images=num * BATCH_SIZE,
            checkpoint_every_images=0,
            directory="",
        )
        state = TrainState(
            jnp.int32(0), {"net": {"w": jnp.zeros(8)}}, {}, {}, jax.random.key(0)
        )
        with jax.set_mesh(mesh):
            loop.train(
                settings,
                state=state,
                train_step=train_step,
                data=iterator,
                place_batch=place,
                checkpointer=input_pipeline.NoCheckpoints(),
                writer=input_pipeline.NoMetrics(),
                hooks=[
                    loop.Hook(0, "end", lambda *_: marks.append(time.perf_counter()))
                ],
                progress=loop.NoProgress(),
            )
        return seconds

    run(20)  # compiles, and fills what is read ahead
    began = time.perf_counter()
    waits = run(steps)
    step = (marks[-1] - began) / steps
    return {
        "step_seconds": step,
        "input_seconds": statistics.mean(waits),
        "input_seconds_longest": max(waits),
        "share": statistics.mean(waits) / step,
    }


def reading(dataset: Any, batches: int) -> dict[str, Any]:
    """Images per second of reading alone, by number of threads; CPU time per batch."""
    rng = np.random.default_rng(0)
    indices = [rng.integers(0, len(dataset.source), BATCH_SIZE) for _ in range(batches)]
    dataset.gather(indices[0])
    found = {}
    for threads in (1, 2, 3, 4):
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            wall, cpu = time.perf_counter(), time.process_time()
            list(pool.map(dataset.gather, indices))
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        found[f"{threads}_threads"] = {
            "images_per_second": batches * BATCH_SIZE / wall,
            "cpu_seconds_per_batch": cpu / batches,
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer steps")
    quick = parser.parse_args().quick
    logging.disable(logging.WARNING)  # subsets of data sets are meant here
    shares = {}
    with tempfile.TemporaryDirectory() as folder:
        dataset = input_pipeline.records("cifar10", pathlib.Path(folder), 4096)
        common.emit(benchmark="reading", **reading(dataset, 20 if quick else 100))
        for name, compute in (
            ("time passes", passing()),
            ("processors multiply", multiplying()),
        ):
            found = measure(dataset, compute, 100 if quick else 400)
            shares[name] = found["share"]
            common.emit(benchmark="wait", step=name, **found)
    common.ratio(
        "time spent on input / time of a step at 3,000 images per second",
        max(shares.values()),
        limit=LIMIT,
        by_step=shares,
    )


if __name__ == "__main__":
    main()
