"""Latency and throughput of the few-step sampler, with the roofline beside it.

    python -m benchmarks.sampling [--quick] [--size=xxl] [--dtype=bfloat16]

The sampler is one compiled call on weights that are folded once: noise, steps, and
whatever ``make_sampler`` decodes. The roofline comes from this device in this run: the
best matrix product and the best copy that it manages; the floor of a call is the larger
of arithmetic over the one and bytes of weights over the other, for every step.
"""

from __future__ import annotations

import argparse
import functools
from typing import Any

STEPS = 2
SIGMA_DATA = 0.5


def device_peaks(dtype: str, side: int) -> dict[str, float]:
    """Multiply-adds and bytes per second that this device reaches."""
    import jax
    import jax.numpy as jnp

    from benchmarks import common

    a = jnp.ones((side, side), dtype)
    product = jax.jit(lambda a: a @ a)
    copy = jax.jit(lambda a: a + 1)
    big = jnp.ones((side * side * 4,), jnp.float32)
    return {
        "macs_per_second": side**3 / common.seconds(lambda: product(a), 7),
        "bytes_per_second": 2 * big.nbytes / common.seconds(lambda: copy(big), 7),
    }


def measure(case: Any, batch: int, peaks: dict[str, float], repeats: int) -> float:
    """One row; returns the time over the floor."""
    import jax
    import jax.numpy as jnp

    from benchmarks import common
    from scm_jax import networks, sampling
    from scm_jax.cost import counts
    from scm_jax.types import Cond

    net = networks.build(
        case.network, case.sample_shape, case.num_classes, **case.settings
    )
    weights = jax.jit(lambda: net.fold(net.init(jax.random.key(0))))()
    run = sampling.make_sampler(
        lambda w: functools.partial(net.apply, w),
        "consistency",
        sampling.make_grid("consistency", STEPS, SIGMA_DATA),
        case.sample_shape,
        SIGMA_DATA,
    )
    cond = Cond(t=jnp.zeros((batch,)), label=jnp.zeros((batch,), jnp.int32))
    keys = jax.random.split(jax.random.key(1), batch)
    seconds = common.seconds(lambda: run(weights, keys, cond), repeats)
    macs = counts.count_macs(run, weights, keys, cond)
    weight_bytes = STEPS * counts.tree_bytes(weights)
    floor = max(
        macs / peaks["macs_per_second"], weight_bytes / peaks["bytes_per_second"]
    )
    row = common.emit(
        shape=case.sample_shape,
        settings=case.settings,
        batch=batch,
        steps=STEPS,
        parameters=counts.parameter_count(weights),
        seconds=seconds,
        images_per_second=batch / seconds,
        floor_seconds=floor,
        times_floor=seconds / floor,
    )
    return row["times_floor"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--size", default="", help="of the paper's U-Net, at 64x64x4")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batches", default="1,16")
    args = parser.parse_args()
    from benchmarks import common, shapes
    from scm_jax import networks

    case = shapes.EDM2_A
    if args.size:
        preset = networks.PRESETS["unet"][args.size]
        case = shapes.Case("unet", (64, 64, 4), 1000, preset)
    case = case._replace(settings={**case.settings, "dtype": args.dtype})
    accelerator = common.environment()["device"] != "cpu"
    peaks = device_peaks(args.dtype, 8192 if accelerator else 1024)
    common.emit(peaks=peaks, dtype=args.dtype)
    batches = [int(b) for b in args.batches.split(",")]
    times = [measure(case, b, peaks, 3 if args.quick else 9) for b in batches]
    common.ratio(
        f"two-step sampler at batch {batches[0]}, time/floor",
        times[0],
        limit=3.0,
        by_batch=dict(zip(batches, times, strict=True)),
    )


if __name__ == "__main__":
    main()
