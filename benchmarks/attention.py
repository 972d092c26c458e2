"""Time, memory and multiply-adds of the implementations behind the attention door.

    python -m benchmarks.attention [--quick]

One line per number of tokens, implementation and mode: ``value`` (sampling),
``jvp`` (value and tangent), ``grad`` (diffusion) and ``shared_grad`` (consistency: the
gradient of the value with the tangent in the target). Then the error in bfloat16 of
value and tangent over the einsum's, for keys that share an offset. The last line holds
the largest of these against its limit; it also has chunked / einsum in time and memory
at the most tokens.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import common
from scm_jax.cost import counts
from scm_jax.networks.attention import IMPLEMENTATIONS, attention

HEAD_SIZE = 64
OFFSETS = (0, 3, 10)  # in standard deviations of the keys
ERROR_LIMIT = 1.3

Arrays = list[jax.Array]


def value(f: Callable, arrays: Arrays) -> Any:
    return f(*arrays[:3])


def jvp(f: Callable, arrays: Arrays) -> Any:
    return jax.jvp(f, tuple(arrays[:3]), tuple(arrays[3:]))


def grad(f: Callable, arrays: Arrays) -> Any:
    def loss(qkv):
        return jnp.sum(f(*qkv).astype(jnp.float32) ** 2)

    return jax.grad(loss)(arrays[:3])


def shared_grad(f: Callable, arrays: Arrays) -> Any:
    def loss(qkv):
        F, dF = jax.jvp(f, tuple(qkv), tuple(arrays[3:]))
        F, dF = F.astype(jnp.float32), dF.astype(jnp.float32)
        return jnp.sum((F - jax.lax.stop_gradient(F + dF)) ** 2)

    return jax.grad(loss)(arrays[:3])


MODES = {f.__name__: f for f in (value, jvp, grad, shared_grad)}


def random_arrays(shape: tuple[int, ...], dtype: Any, offset: float = 0) -> Arrays:
    """Queries, keys, values and tangents; keys and theirs share an offset."""
    rng = np.random.default_rng(0)
    arrays = rng.standard_normal((6, *shape)).astype(np.float32)
    for i in (1, 4):
        arrays[i] += offset * rng.choice([-1, 1], shape[2:]).astype(np.float32)
    return [jnp.asarray(a, dtype) for a in arrays]


def measure(shape: tuple[int, ...], dtype: str, mode: str, repeats: int) -> dict:
    """One row per implementation, timed in turns with the einsum."""
    arrays = random_arrays(shape, dtype)
    compiled, rows = {}, {}
    for name in IMPLEMENTATIONS:
        f = functools.partial(attention, implementation=name)
        program = functools.partial(MODES[mode], f)
        compiled[name] = jax.jit(program).lower(arrays).compile()
        rows[name] = {
            "shape": shape,
            "dtype": dtype,
            "implementation": name,
            "mode": mode,
            "temporary_bytes": compiled[name].memory_analysis().temp_size_in_bytes,
            "multiply_adds": counts.count_macs(program, arrays),
        }
    for name in set(IMPLEMENTATIONS) - {"einsum"}:
        times = common.paired(
            lambda name=name: compiled[name](arrays),
            lambda: compiled["einsum"](arrays),
            repeats,
        )
        rows[name].update(seconds=times.a, time_over_einsum=times.ratio)
        rows["einsum"]["seconds"] = times.b
    for row in rows.values():
        common.emit(**row)
    return rows


def bfloat16_errors(tokens: int, offset: float) -> dict[str, list[float]]:
    """Relative errors of value and tangent against the einsum in float32."""
    arrays = random_arrays((1, tokens, 2, HEAD_SIZE), jnp.bfloat16, offset)

    def outputs(name, arrays):
        f = functools.partial(attention, implementation=name)
        found = jax.jit(functools.partial(jvp, f))(arrays)
        return [np.asarray(a, np.float64) for a in found]

    exact = outputs("einsum", [a.astype(jnp.float32) for a in arrays])
    return {
        name: [
            float(np.linalg.norm(got - true) / np.linalg.norm(true))
            for got, true in zip(outputs(name, arrays), exact, strict=True)
        ]
        for name in IMPLEMENTATIONS
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small, for a CPU")
    parser.add_argument("--dtype", default="float32", help="of time and memory")
    args = parser.parse_args()
    tokens = (256, 1024) if args.quick else (256, 1024, 4096)
    batch, heads, repeats = (1, 2, 5) if args.quick else (1, 16, 10)
    for n in tokens:
        shape = (batch, n, heads, HEAD_SIZE)
        rows = {m: measure(shape, args.dtype, m, repeats) for m in MODES}
    worst = 0.0
    for offset in OFFSETS:
        errors = bfloat16_errors(1024, offset)
        ratios = np.divide(errors["chunked"], errors["einsum"])
        worst = max(worst, *ratios)
        common.emit(offset=offset, errors=errors, error_ratios=ratios.tolist())
    common.ratio(
        "chunked/einsum, error in bfloat16",
        float(worst),
        limit=ERROR_LIMIT,
        tokens=tokens[-1],
        time={m: r["chunked"]["time_over_einsum"] for m, r in rows.items()},
        memory={
            m: r["chunked"]["temporary_bytes"] / r["einsum"]["temporary_bytes"]
            for m, r in rows.items()
        },
    )


if __name__ == "__main__":
    main()
