"""The bias of finite steps: discrete and continuous training on Gaussian data.

    python -m benchmarks.finite_steps

Consistency training from pairs with finite steps has an exactly known end on Gaussian
data: the standard deviation is multiplied by the product of ``cos(phi_t - phi_r)`` over
the ladder of times down to 0, ``tan phi = sigma_data tan(t) / std``. Continuous
training has no such factor. Each method trains a linear model, ``F = a(t) x`` with a
polynomial ``a``, and prints the factor that it ends at, its Monte-Carlo error over
seeds, and the prediction.
"""

from __future__ import annotations

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

from scm_jax import objectives, trigflow
from scm_jax.types import Batch

STEPS = flags.DEFINE_integer("steps", 10_000, "Optimizer steps of a method.")
SEEDS = flags.DEFINE_integer("seeds", 3, "Seeds of a method.")
STD = flags.DEFINE_float("std", 0.5, "Standard deviation of the data.")

SD, BATCH = 0.5, 1024
DEGREE = 11  # of ``a``

# Name -> objective, its settings, and the noise levels of its ladder from 80 to 0.
CASES = {
    "ct, 18 levels": ("discrete", {"intervals": (18, 18)}),
    "ct, 40 levels": ("discrete", {"intervals": (40, 40)}),
    "ct, 160 levels": ("discrete", {"intervals": (160, 160)}),
    "ect, a = 3": ("discrete", {"grid": "ratio", "stages": 4}),
    "sct": ("consistency", {"tangent_warmup_steps": 0}),
    # The model has no second time: all maps go to 0.
    "meanflow": (
        "mean_flow",
        {"adaptive_power": 0.0, "pairs": "zero", "diagonal_share": 0.0},
    ),
}
PLAIN = {"learned_weighting": False, "P_mean": -1.0, "P_std": 2.0}


def build(name):
    """The objective of a case, with squared distances and no weights."""
    kind, settings = CASES[name]
    plain = {"discrete": {"huber": 0.0, "gap_weighting": False}, "mean_flow": {}}
    stable = {"tangent_normalization": "none"}
    chosen = plain.get(kind, stable) | PLAIN | settings
    return objectives.build(kind, sigma_data=SD, **chosen)


def slope(coefficients, t):
    """``a(t)``, a sum of Chebyshev polynomials over ``[0, pi / 2]``."""
    # A table over noise levels has no derivative at its knots: tangents fail there.
    angle = jnp.arccos(jnp.clip(4 / math.pi * t - 1, -1 + 1e-6, 1 - 1e-6))
    return jnp.cos(angle[..., None] * jnp.arange(DEGREE + 1)) @ coefficients


def net_fn(params, x, cond, *, train=False, key=None):
    """``F`` of the linear model."""
    return slope(params["coefficients"], cond.t)[:, None] * x


def ladder(objective):
    """Noise levels from 80 down to 0, along which the bias multiplies; none for 1."""
    if not hasattr(objective, "grid"):
        return None
    if objective.grid == "karras":
        n = objective.intervals[1]
        levels = objective._levels(jnp.arange(1, n + 1), jnp.float32(n))
        return np.append(np.asarray(levels, np.float64)[::-1], 0.0)
    sigma, found = 80.0, [80.0]
    while sigma > 1e-6:  # the same rule, in float64; some ladders never reach 0
        k = 1 + 8 / (1 + math.exp(sigma * 0.5 / SD))
        sigma = max(0.0, sigma * (1 - k * objective.ratio**-objective.stages))
        found.append(sigma)
    return np.append(found, 0.0)


def predicted(objective, std):
    """The factor of the standard deviation at the end of training."""
    if (levels := ladder(objective)) is None:
        return 1.0
    phi = np.arctan(levels / std)
    return float(np.prod(np.cos(np.diff(phi))))


def train(objective, std, steps, seed):
    """The factor that a model ends at: std of ``f(x_t, t_max)`` over the data's."""
    schedule = optax.cosine_decay_schedule(5e-2, steps)
    optimizer = optax.adam(schedule, b2=0.99)
    params = {"coefficients": jnp.zeros(DEGREE + 1, jnp.float32)}

    def loss(params, batch, key, step):
        both = {"net": params, "objective": {}}
        return objective(net_fn, both, batch, key=key, step=step).loss

    def body(carry, step):
        params, state, shadow = carry
        key_x, key = jax.random.split(jax.random.fold_in(jax.random.key(seed), step))
        batch = Batch(x=std * jax.random.normal(key_x, (BATCH, 1)))
        grads = jax.grad(loss)(params, batch, key, step)
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        shadow = jax.tree.map(lambda e, p: e + 0.002 * (p - e), shadow, params)
        return (params, state, shadow), None

    start = params, optimizer.init(params), params
    run = jax.jit(lambda carry: jax.lax.scan(body, carry, jnp.arange(steps))[0])
    coefficients = run(start)[2]["coefficients"]
    t = trigflow.t_max(SD)
    c = math.cos(t) - math.sin(t) * float(slope(coefficients, jnp.float32(t)))
    return abs(c) * math.hypot(std * math.cos(t), SD * math.sin(t)) / std


def main(_):
    for name in CASES:
        objective = build(name)
        seeds = range(SEEDS.value)
        found = [train(objective, STD.value, STEPS.value, seed) for seed in seeds]
        row = {
            "case": name,
            "std_factor": float(np.mean(found)),
            "standard_error": float(np.std(found, ddof=1) / np.sqrt(len(found))),
            "predicted": predicted(objective, STD.value),
        }
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    app.run(main)
