"""Error of 16-bit networks and of their tangents, by time; writes a table.

    python -m benchmarks.precision [--quick] [--out=docs/precision.md]

For every backbone at small size: ``F`` and the rearranged tangent ``cos t sin t dF/dt``
(Sec. 5.1) computed in bfloat16 and float16 against float32, as relative root mean
squares per time bin. Time embedding, norms, softmax and output are float32 in all.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import common, shapes
from scm_jax import networks
from scm_jax.types import Cond

PER_BIN = 32
EDGES = (0.004, 0.1, 0.5, 1.1, 1.4, 1.5645)
COLUMNS = ("F_bfloat16", "tangent_bfloat16", "F_float16", "tangent_float16")


def trained_like(params, seed: int = 0):
    """Fresh parameters moved off their zeros: gains, biases and last layers."""
    rng = np.random.default_rng(seed)

    def move(path, a):
        if path[-1].key in ("freqs", "phases"):
            return a
        scale = max(float(jnp.std(a)), 0.3 if a.ndim < 2 else 0.02)
        return a + scale * rng.standard_normal(a.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(move, params)


def value_and_tangent(network, dtype: str, params, x, dx, cond):
    """``F`` and ``cos t sin t dF/dt`` along ``(dx, 1)``, float32."""
    q = jnp.cos(cond.t) * jnp.sin(cond.t)

    def net(x, t):
        return network.apply(params, x, cond.replace(t=t), dtype=dtype)

    return jax.jvp(net, (x, cond.t), (q[:, None, None, None] * dx, q))


def errors(name: str) -> list[list[float]]:
    """Rows by time bin: errors of F and tangent in bfloat16, then in float16."""
    case = shapes.SMALL[name]
    network = networks.build(name, case.sample_shape, case.num_classes, **case.settings)
    params = trained_like(jax.jit(network.init)(jax.random.key(0)))
    rng = np.random.default_rng(1)
    count = PER_BIN * (len(EDGES) - 1)
    t = np.concatenate(
        [rng.uniform(a, b, PER_BIN) for a, b in itertools.pairwise(EDGES)]
    )
    x, dx = rng.standard_normal((2, count, *case.sample_shape)).astype(np.float32)
    cond = Cond(
        t=jnp.asarray(t, jnp.float32),
        label=jnp.asarray(rng.integers(0, case.num_classes, count), jnp.int32),
    )
    outputs = {}
    for dtype in ("float32", "bfloat16", "float16"):
        run = jax.jit(functools.partial(value_and_tangent, network, dtype))
        F, dF = run(params, x, dx, cond)
        outputs[dtype] = [
            np.asarray(a, np.float64).reshape(len(EDGES) - 1, -1) for a in (F, dF)
        ]
    columns = []
    for dtype in ("bfloat16", "float16"):
        pairs = zip(outputs[dtype], outputs["float32"], strict=True)
        for got, exact in pairs:
            error = np.sqrt(np.mean((got - exact) ** 2, axis=1))
            columns.append(error / np.sqrt(np.mean(exact**2, axis=1)))
    return np.transpose(columns).tolist()


def table(rows: dict[str, list[list[float]]]) -> str:
    """The page ``docs/precision.md``."""
    shape = next(iter(shapes.SMALL.values())).sample_shape
    lines = [
        "# 16-bit networks and their tangents",
        "",
        "Written by `python -m benchmarks.precision --out=docs/precision.md` "
        f"(jax {jax.__version__}, {jax.devices()[0].device_kind}).",
        "Relative root mean square errors against float32 of `F` and of the rearranged",
        "tangent `cos t sin t dF/dt`, 32 random inputs per bin, random weights, quick",
        f"sizes, samples of shape {shape}. What can be done about the tangent's:",
        "`objective.tangent_dtype = 'float32'` with `objective.tangent_pass =",
        "'separate'` computes the tangent, and nothing else, in float32, for one more",
        "forward pass.",
        "",
        "| network | t | F, bfloat16 | tangent | F, float16 | tangent |",
        "|---|---|---|---|---|---|",
    ]
    for name, bins in rows.items():
        for (low, high), row in zip(itertools.pairwise(EDGES), bins, strict=True):
            cells = " | ".join(f"{100 * value:.2f} %" for value in row)
            lines.append(f"| {name} | {low} to {high} | {cells} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, help="also write the table there")
    parser.add_argument("--quick", action="store_true", help="one backbone only")
    args = parser.parse_args()
    rows = {}
    for name in ["dit"] if args.quick else list(shapes.SMALL):
        rows[name] = errors(name)
        for t, row in zip(itertools.pairwise(EDGES), rows[name], strict=True):
            common.emit(
                benchmark="precision",
                network=name,
                t=t,
                relative_errors=dict(zip(COLUMNS, row, strict=True)),
            )
    if args.out:
        args.out.write_text(table(rows))
    every = np.array([row for bins in rows.values() for row in bins])
    common.ratio(
        "error of the bfloat16 tangent / error of the bfloat16 output",
        float(np.median(every[:, 1] / every[:, 0])),
        largest=float(np.max(every[:, 1] / every[:, 0])),
    )


if __name__ == "__main__":
    main()
