"""Rules by which one learning rate serves all widths."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scm_jax import networks
from scm_jax.config import base_config
from scm_jax.runs.setup import experiment
from scm_jax.training.state import OptimizerConfig
from scm_jax.types import Cond
from tests.contracts.network_cases import opened
from tests.networks.reference import quick_jit, rms

BASE, STEPS, BATCH = 32, 4, 8
RATES = {"dit": 1e-2, "unet": 3e-4}
UNET = {"channel_mult": (1,), "num_blocks": 1, "attention_resolutions": ()}
UNET |= {"head_channels": 16}


def moves(name, optimizer, width, base_width):
    """By how much ``F`` moves in a few steps, and by each parameter's update alone."""
    settings = UNET if name == "unet" else {"depth": 2, "num_heads": width // 16}
    net = networks.build(name, (4, 4, 1), 3, width=width, **settings)
    config = OptimizerConfig(optimizer, RATES[name], base_width=base_width)
    optimizer = experiment.build_optimizer(config, BATCH, net)
    rng = np.random.default_rng(0)
    x, z = (jnp.asarray(rng.normal(size=(BATCH, 4, 4, 1)), "float32") for _ in "xz")
    cond = Cond(t=jnp.linspace(0.3, 1.3, BATCH), label=jnp.arange(BATCH) % 3)

    @quick_jit
    def step(params, state):
        def loss(params):
            return jnp.mean(jnp.square(net.apply(params["net"], x, cond) - z))

        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        params = jax.tree.map(jnp.add, params, updates)
        return {"net": net.project(params["net"])}, state

    before = opened(net.init(jax.random.key(0, impl="unsafe_rbg")))
    if base_width:
        rules = experiment.network_rules(net, base_width, config.name)
        before = jax.tree.map(jnp.multiply, before, rules.start)
    params = {"net": before}
    state = optimizer.init(params)
    for _ in range(STEPS):
        params, state = step(params, state)
    apply = quick_jit(lambda weights: net.apply(weights, x, cond))
    F, found = apply(before), {"F": rms(apply(params["net"]) - apply(before))}
    for path, _ in jax.tree_util.tree_leaves_with_path(before):
        one = jax.tree.map_with_path(
            lambda own, a, b, path=path: b if own == path else a, before, params["net"]
        )
        found[jax.tree_util.keystr(path)] = rms(apply(one) - F)
    return found


def growth(name, optimizer, width, base_width):
    narrow = moves(name, optimizer, BASE, 0)
    wide = moves(name, optimizer, width, base_width)
    return {k: wide[k] / narrow[k] for k in narrow}


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_updates_of_a_transformer_keep_their_order_at_16_times_the_width(optimizer):
    found = growth("dit", optimizer, 16 * BASE, BASE)
    assert 0.5 < found.pop("F") < 2
    assert all(0.1 < ratio < 2 for ratio in found.values()), found
    if optimizer == "adam":
        found = growth("dit", optimizer, 16 * BASE, 0)
        assert found["F"] > 2.5 and max(found.values()) > 8


def test_updates_of_a_magnitude_preserving_network_grow_with_the_root_of_the_width():
    kept, grown = (growth("unet", "adam", 8 * BASE, base)["F"] for base in (BASE, 0))
    assert 0.5 < kept < 2.1 and 2 < grown / kept < 3.3


def rates(name, optimizer, width=4 * BASE):
    settings = UNET if name == "unet" else {"num_heads": 8}
    net = networks.build(name, (4, 4, 1), 3, width=width, **settings)
    rules = experiment.network_rules(net, BASE, optimizer)
    return rules.rate, rules.start


def test_each_kind_of_kernel_has_its_factors():
    rate, start = rates("dit", "adam")
    blocks = rate["blocks"]
    assert [rate[k]["kernel"] for k in ("patch_in", "patch_out")] == [1, 0.25]
    assert [start[k]["kernel"] for k in ("patch_in", "patch_out")] == [1, 0.5]
    assert {blocks[k]["kernel"] for k in ("qkv", "mlp_out", "gate")} == {0.25}
    assert start["blocks"]["qkv"]["kernel"] == 1 == rate["position"]
    assert all(layer["bias"] == 1 for layer in blocks.values())
    rate, _ = rates("dit", "muon")
    assert rate["blocks"]["qkv"]["kernel"] == 0.5 and rate["patch_in"]["kernel"] == 1
    assert rate["patch_out"]["kernel"] == 0.25
    rate, start = rates("unet", "adam")
    assert rate["in"]["kernel"] == 1 and rate["out"]["kernel"] == 0.5
    assert rate["out_gain"] == 1 and set(jax.tree.leaves(start)) == {1}


def test_a_run_starts_and_is_updated_by_the_rules():
    """And a run without them, or of the base width, is what it was."""
    found = {}
    for base_width in (0, BASE, 4 * BASE):
        c = base_config("dit", "consistency", "digits")
        c.network.update({"width": 4 * BASE, "num_heads": 8, "patch": 4, "depth": 1})
        c.optimizer.base_width = base_width
        built = experiment.build(c)
        params = jax.tree.map(np.asarray, built.init_params())
        ones = jax.tree.map(np.ones_like, params)
        optimizer = built.optimizer
        updates, _ = optimizer.update(ones, optimizer.init(params), params)
        found[base_width] = params["net"]["patch_out"]["kernel"], updates
    (plain, step), (scaled, moved), (same, equal) = found.values()
    np.testing.assert_allclose(scaled, 0.5 * plain, rtol=1e-6)
    np.testing.assert_array_equal(same, plain)
    for name, share in (("patch_in", 1), ("patch_out", 0.25)):
        one, other = (tree["net"][name]["kernel"] for tree in (step, moved))
        np.testing.assert_allclose(other, share * one, rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, equal, step)
    jax.tree.map(np.testing.assert_array_equal, moved["objective"], step["objective"])
