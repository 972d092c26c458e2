"""The transformer over latents (n, c) of sound: sizes, lengths, the exact tangent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scm_jax import networks
from scm_jax.cost import counts
from scm_jax.types import TextInfo
from tests.networks.reference import quick_jit, rms

TEXT = TextInfo(3, width=6, pooled=4)
SMALL = {"width": 16, "depth": 5, "num_heads": 2, "mlp_ratio": 1, "text": TEXT}
SMALL |= {"patch_sides": (1,), "positions": "rotary"}


def some_params(net):
    rng = np.random.default_rng(0)

    def draw(a):
        fan_in = a.shape[-2] if a.ndim > 1 else 16
        return jnp.asarray(rng.normal(size=a.shape) / np.sqrt(fan_in), jnp.float32)

    return jax.tree.map(draw, jax.eval_shape(net.init, jax.random.key(0)))


def drawn(shape, seed):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("size, millions", [("audio_120m", 120), ("audio_480m", 480)])
def test_sizes_are_near_those_of_meanaudio(size, millions):
    """With layers from and to 64 channels, states of 1024 and a vector of 512."""
    preset, text = networks.PRESETS["dit"][size], TextInfo(77, width=1024, pooled=512)
    net = networks.build("dit", (216, 64), 0, text, **preset)
    w = preset["width"]
    dense = lambda n, m: n * m + m  # noqa: E731
    block = dense(w, 4 * w) + dense(w, 2 * w)  # modulation, gates
    block += dense(w, 3 * w) + dense(w, w) + dense(w, 4 * w) + dense(4 * w, w)
    block += 2 * dense(w, w) + 1024 * 2 * w  # cross-attention
    ends = dense(64, w) + dense(w, 64) + 2 * dense(w, w) + dense(512, w)
    expected = preset["depth"] * block + ends + dense(w, 2 * w)
    count = counts.parameter_count(jax.eval_shape(net.init, jax.random.key(0)))
    assert count == expected == pytest.approx(millions * 1e6, rel=0.025)


def test_sound_may_be_longer_and_its_latents_are_told_apart():
    short, long = (
        networks.build("dit", (n, 3), 0, **{**SMALL, "depth": 1}) for n in (4, 10)
    )
    params, (_, cond) = some_params(short), short.example(1)
    x, apply = drawn((1, 10, 3), 1), quick_jit(long.apply)
    F = apply(params, x, cond)
    swapped = apply(params, jnp.concatenate([x[:, 5:], x[:, :5]], axis=1), cond)
    swapped = jnp.concatenate([swapped[:, 5:], swapped[:, :5]], axis=1)
    assert rms(F - swapped) > 1e-3 * rms(F)
    assert rms(apply(params, x, cond.replace(context=2 + cond.context)) - F) > 1e-3


def test_value_and_tangent():
    """In a loop with recomputation; the tangent against a central difference."""
    net = networks.build("dit", (6, 3), 0, **SMALL, remat="blocks")
    params, (x, cond) = some_params(net), net.example(2)
    x, dx, t = drawn(x.shape, 1), drawn(x.shape, 2), jnp.asarray([0.6, 1.2])
    cond = cond.replace(context=drawn(cond.context.shape, 3))

    def fn(x, t):
        return net.apply(params, x, cond.replace(t=t))

    both = quick_jit(lambda x, t: jax.jvp(fn, (x, t), (dx, jnp.ones_like(t))))
    h = 4e-3
    F, dF = both(x, t)
    difference = (both(x + h * dx, t + h)[0] - both(x - h * dx, t - h)[0]) / (2 * h)
    assert rms(dF - difference) < 1e-2 * rms(dF)
    assert rms(dF) > 1e-2 * rms(F)
