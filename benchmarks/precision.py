"""Error of 16-bit networks and of their tangents, by time; writes a table.

    python benchmarks/precision.py --out=docs/precision.md

For every backbone at quick size: ``F`` and the rearranged tangent ``cos t sin t dF/dt``
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

from scm_jax import networks
from scm_jax.types import Cond

SHAPE, CLASSES, PER_BIN = (16, 16, 4), 10, 32
EDGES = (0.004, 0.1, 0.5, 1.1, 1.4, 1.5645)
BACKBONES = {
    "dit": {"width": 64, "depth": 4, "num_heads": 4},
    "unet": {
        "width": 32,
        "channel_mult": (1, 2),
        "num_blocks": 2,
        "attention_resolutions": (8,),
        "head_channels": 32,
    },
    "ddpmpp": {
        "width": 32,
        "channel_mult": (1, 2),
        "num_blocks": 2,
        "attention_resolutions": (8,),
    },
}


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
    network = networks.build(name, SHAPE, CLASSES, **BACKBONES[name])
    params = trained_like(jax.jit(network.init)(jax.random.key(0)))
    rng = np.random.default_rng(1)
    count = PER_BIN * (len(EDGES) - 1)
    t = np.concatenate(
        [rng.uniform(a, b, PER_BIN) for a, b in itertools.pairwise(EDGES)]
    )
    x, dx = rng.standard_normal((2, count, *SHAPE)).astype(np.float32)
    cond = Cond(
        t=jnp.asarray(t, jnp.float32),
        label=jnp.asarray(rng.integers(0, CLASSES, count), jnp.int32),
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, default="docs/precision.md")
    out = parser.parse_args().out
    lines = [
        "# 16-bit networks and their tangents",
        "",
        "Written by `python benchmarks/precision.py --out=docs/precision.md` "
        f"(jax {jax.__version__}, {jax.devices()[0].device_kind}).",
        "Relative root mean square errors against float32 of `F` and of the rearranged",
        "tangent `cos t sin t dF/dt`, 32 random inputs per bin, random weights, quick",
        f"sizes, samples of shape {SHAPE}. What can be done about the tangent's:",
        "`objective.tangent_dtype = 'float32'` with `objective.tangent_pass =",
        "'separate'` computes the tangent, and nothing else, in float32, for one more",
        "forward pass.",
        "",
        "| network | t | F, bfloat16 | tangent | F, float16 | tangent |",
        "|---|---|---|---|---|---|",
    ]
    for name in BACKBONES:
        bins = itertools.pairwise(EDGES)
        for (low, high), row in zip(bins, errors(name), strict=True):
            cells = " | ".join(f"{100 * value:.2f} %" for value in row)
            lines.append(f"| {name} | {low} to {high} | {cells} |")
            print(lines[-1], flush=True)
    out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
