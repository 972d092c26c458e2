"""How long XLA compiles: training steps, initialization; and what a call costs.

    python -m benchmarks.compile_time [--quick]

Ahead of time, from shapes alone: the training step of ``imagenet512.py:sct`` at sizes S
and XXL, and their initialization. Times are CPU seconds of all threads, which other
work on the machine disturbs least; wall seconds stand beside them. ``--quick`` takes
XS and S. The last line holds the larger against the smaller.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

# Two steps of XXL at batch 1 in bfloat16 take at least this long (spec of the devices).
XXL_FLOOR_SECONDS = {"a100": 8.2e-3, "h200": 3.4e-3}


def timed(fn: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """Result, and CPU and wall seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = fn()
    return result, {
        "cpu_seconds": time.process_time() - cpu,
        "wall_seconds": time.perf_counter() - wall,
    }


def compile_step(size: str) -> dict[str, Any]:
    """The sct step of one size."""
    import jax

    from benchmarks import common
    from benchmarks.full_size import experiment_config
    from scm_jax.runs.setup import experiment as experiment_lib

    experiment = experiment_lib.build_abstract(
        experiment_config("sct", size, 1, "float32")
    )
    state = jax.eval_shape(experiment.init_state)
    step = jax.jit(experiment.train_step(), donate_argnums=0)
    batch = experiment.example_batch(1)
    lowered, lower = timed(lambda: step.lower(state, batch, None))
    _, compiled = timed(lowered.compile)
    _, init = timed(lambda: jax.jit(experiment.init_state).lower().compile())
    weights = jax.eval_shape(experiment.network.fold, state.params["net"])
    return common.emit(
        size=size,
        trace_and_lower=lower,
        compile=compiled,
        compile_initialization=init,
        state_leaves=len(jax.tree.leaves(state)),
        weight_leaves=len(jax.tree.leaves(weights)),
    )


def dispatch_seconds(leaves: int) -> float:
    """Host time of one call of a compiled function of as many small arrays."""
    import jax
    import jax.numpy as jnp

    from benchmarks import common

    arrays = [jnp.zeros(8) for _ in range(leaves)]
    fn = jax.jit(lambda arrays: arrays[0] + 1.0)
    return common.seconds(lambda: [fn(arrays) for _ in range(100)], 20) / 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    import jax

    from benchmarks import common

    jax.config.update("jax_enable_compilation_cache", False)
    sizes = ("xs", "s") if args.quick else ("s", "xxl")
    found = [compile_step(size) for size in sizes]
    seconds = dispatch_seconds(found[-1]["weight_leaves"])
    common.emit(
        dispatch_seconds=seconds,
        weight_leaves=found[-1]["weight_leaves"],
        share_of_xxl_floor={k: seconds / v for k, v in XXL_FLOOR_SECONDS.items()},
        limit=0.05,
    )
    first, last = (row["compile"]["cpu_seconds"] for row in (found[0], found[-1]))
    common.ratio(
        f"compile time of {sizes[-1]}/{sizes[0]}",
        last / first,
        limit=1.3,
        seconds=first,
    )


if __name__ == "__main__":
    main()
