"""The plan of a U-Net, and how its blocks are stacked, scanned and rematerialized."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.interpreters import partial_eval

from scm_jax import networks
from scm_jax.networks import unet_layout
from scm_jax.networks.ddpmpp import DDPMpp
from scm_jax.networks.unet import UNet
from scm_jax.networks.unet_layout import BlockSpec
from tests.networks.reference import equations, quick_jit
from tests.training.toy import assert_close

# The layouts as published, with channels in multiples of the width.
EDM2 = UNet((64, 64, 4), width=1).layout()
DDPMPP = DDPMpp((32, 32, 3), width=1).layout()
TINY = UNet(
    (4, 4, 1), width=1, channel_mult=(1, 1), num_blocks=2, attention_resolutions=(2,)
).layout()
LAYOUTS = {"edm2": EDM2, "ddpmpp": DDPMPP, "tiny": TINY}


def blocks(layout):
    return [(name, group.spec) for group in layout for name in group.names]


# --- The plan -------------------------------------------------------------------------


def attending(layout):
    return {name for name, spec in blocks(layout) if spec.attention}


def test_blocks_of_edm2_attend_at_16_and_8_and_at_the_bottom():
    assert len(blocks(EDM2)) == 36
    assert attending(EDM2) == {
        *(f"enc_{n}x{n}_block{i}" for n in (16, 8) for i in range(3)),
        *(f"dec_{n}x{n}_block{i}" for n in (16, 8) for i in range(4)),
        "dec_8x8_in0",
    }


def test_only_the_last_block_of_a_decoder_level_of_ddpmpp_attends():
    assert len(blocks(DDPMPP)) == 33
    assert attending(DDPMPP) == {
        *(f"enc_16x16_block{i}" for i in range(4)),
        "dec_8x8_in0",
        "dec_16x16_block4",
    }


@pytest.mark.parametrize("name", LAYOUTS)
def test_groups_are_the_longest_runs_of_one_shape(name):
    layout = LAYOUTS[name]
    assert all(a.spec != b.spec for a, b in itertools.pairwise(layout))
    names = [n for n, _ in blocks(layout)]
    assert len(set(names)) == len(names)
    assert max(len(g.names) for g in layout) > 1


@pytest.mark.parametrize(("limit", "sides"), [(0, {8, 4}), (4, {4})])
@pytest.mark.parametrize("name", ["unet", "ddpmpp"])
def test_networks_drop_up_to_a_resolution(name, limit, sides):
    settings = {"width": 64, "channel_mult": (1, 1), "num_blocks": 2, "dropout": 0.2}
    net = networks.build(
        name, (8, 8, 2), 0, **settings, dropout_max_resolution=limit, unroll=1
    )
    params = jax.eval_shape(net.init, jax.random.key(0))

    def train(params, x, cond):
        return net.apply(params, x, cond, train=True, key=jax.random.key(1))

    inputs = jax.eval_shape(lambda: net.example(1))
    program = jax.make_jaxpr(train)(params, *inputs).jaxpr
    live, _ = partial_eval.dce_jaxpr(program, [True])
    masks = (e for e in equations(live) if e.primitive.name == "random_bits")
    assert {mask.outvars[0].aval.shape[-3] for mask in masks} == sides


# --- Running it -----------------------------------------------------------------------


class Probe(nn.Module):
    """Depends on all its inputs, on its own weights and on their order."""

    spec: BlockSpec
    dropout: float

    @nn.compact
    def __call__(self, h, skip, emb, deterministic):
        w = self.param("w", nn.initializers.normal(0.7), (4, 4))
        h = jnp.sin(jnp.dot(h, w) + emb)
        if skip is not None:
            h = h + 0.5 * jnp.cos(3.0 * skip)
        h = nn.Dropout(self.dropout)(h, deterministic=deterministic)
        return h, None if self.spec.decoder else h


class Masks(nn.Module):
    """Doubles ``h`` and adds its dropout mask: the masks are the bits of the output."""

    spec: BlockSpec
    dropout: float

    @nn.compact
    def __call__(self, h, skip, emb, deterministic):
        kept = nn.Dropout(0.5)(jnp.ones_like(h), deterministic=deterministic)
        h = 2.0 * h + (kept > 0)
        return h, None if self.spec.decoder else h


class Net(nn.Module):
    """All blocks of ``TINY``."""

    block: type
    remat: str = "none"
    unroll: int = 0
    placement: None = None
    dropout: float = 0.2
    dropout_max_resolution: int = 0

    def layout(self):
        return TINY

    @nn.compact
    def __call__(self, h, emb, deterministic=True):
        return unet_layout.apply_groups(self, self.block, (), h, emb, deterministic)


VARIANTS = [("none", 0), ("none", 1), ("blocks", 2), ("dots", 1)]


@functools.cache
def probe():
    """Weights and inputs of the probe network."""
    rng = np.random.default_rng(0)
    h, dh, emb = jnp.asarray(rng.normal(size=(3, 2, 4)), jnp.float32)
    shapes = jax.eval_shape(Net(Probe).init, jax.random.key(0), h, emb)["params"]
    draw = lambda a: jnp.asarray(rng.normal(size=a.shape), jnp.float32)  # noqa: E731
    return jax.tree.map(draw, shapes), h, dh, emb


def test_blocks_run_in_order_with_their_own_weights_and_skips():
    params, h, _, emb = probe()
    assert {name: p["w"].shape[:-2] for name, p in params.items()} == {
        g.name: (len(g.names),) if len(g.names) > 1 else () for g in TINY
    }
    y, skips = np.asarray(h, np.float64), [np.asarray(h, np.float64)]
    for group in TINY:
        w = np.asarray(params[group.name]["w"], np.float64).reshape(-1, 4, 4)
        for i in range(len(group.names)):
            y = np.sin(y @ w[i] + np.asarray(emb))
            if group.spec.skip_channels:
                y = y + 0.5 * np.cos(3.0 * skips.pop())
            if not group.spec.decoder:
                skips.append(y)
    for unroll in (0, 1):
        got = quick_jit(Net(Probe, "none", unroll).apply)({"params": params}, h, emb)
        np.testing.assert_allclose(got, y, rtol=0, atol=2e-5)


def consistency_gradient(net):
    """Gradient, value and tangent as in a consistency step, with dropout."""
    key = jax.random.key(3, impl="unsafe_rbg")

    def run(params, h, dh, emb):
        def loss(params):
            def F(h):
                rngs = {"dropout": key}
                return net.apply({"params": params}, h, emb, False, rngs=rngs)

            value, tangent = jax.jvp(F, (h,), (dh,))
            target = jax.lax.stop_gradient(value - tangent)
            return jnp.sum((value - target) ** 2), (value, tangent)

        return jax.grad(loss, has_aux=True)(params)

    return run


def test_loops_and_rematerialization_change_no_result():
    """Values, tangents, gradients and dropout masks; nor the parameters' names."""
    results = []
    for remat, unroll in VARIANTS:
        net = Net(Probe, remat, unroll)
        results.append(quick_jit(consistency_gradient(net))(*probe()))
        params, h, _, emb = probe()
        shapes = jax.eval_shape(net.init, jax.random.key(0), h, emb)["params"]
        assert jax.tree.structure(shapes) == jax.tree.structure(params)
    for other in results[1:]:
        assert_close(results[0], other, rtol=1e-4, atol=1e-5)
    assert all(np.abs(g).max() > 1e-3 for g in jax.tree.leaves(results[0][0]))


def test_every_block_has_a_dropout_mask_of_its_own():
    h, emb = jnp.zeros((1, 400)), jnp.zeros((1, 400))
    outputs = []
    for remat, unroll in [("none", 0), ("blocks", 1)]:

        @quick_jit
        def run(key, net=Net(Masks, remat, unroll)):
            return net.apply({}, h, emb, False, rngs={"dropout": key})

        keys = [jax.random.key(seed, impl="unsafe_rbg") for seed in (0, 0, 1)]
        one, same, other = (np.asarray(run(key)) for key in keys)
        np.testing.assert_array_equal(one, same)
        assert np.any(one != other)
        outputs.append(one)
    np.testing.assert_array_equal(*outputs)
    n = len(blocks(TINY))
    masks = (outputs[0].astype(int) >> np.arange(n)[:, None]) & 1
    # Half of the bits of independent masks agree, give or take 2.5 %.
    agreement = np.mean(masks[:, None] == masks[None], axis=-1)
    assert np.all(np.abs(agreement[~np.eye(n, dtype=bool)] - 0.5) < 0.15)
