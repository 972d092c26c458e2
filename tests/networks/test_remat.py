"""What a backward pass keeps and what it computes again, by every policy."""

import io
import math
import re
from contextlib import redirect_stdout

import jax
import jax.numpy as jnp
import pytest
from jax.ad_checkpoint import print_saved_residuals
from jax.sharding import AbstractMesh, AxisType

from scm_jax import networks
from scm_jax.cost import counts
from scm_jax.networks import dit, layers
from scm_jax.training import sharding

BATCH, SHAPE = 2, (8, 8, 2)
# Tracing is the time that these tests take. Attention in some groups of blocks only.
U_NET = {
    "width": 16,
    "channel_mult": (1, 1),
    "num_blocks": 1,
    "attention_resolutions": (4,),
}
SETTINGS = {
    "ddpmpp": U_NET,
    "dit": {"width": 16, "depth": 2, "num_heads": 2},
    "unet": {**U_NET, "head_channels": 8},
}


def loss_of(net):
    x, cond = net.example(BATCH)

    def loss(params):
        return jnp.sum(net.apply(params, x, cond) ** 2)

    return loss, jax.eval_shape(net.init, jax.random.key(0))


def build(name, **changes):
    return networks.build(name, SHAPE, 3, **SETTINGS[name], **changes)


# --- What is computed again -----------------------------------------------------------


def macs(name, remat):
    """Multiply-adds of the gradient."""
    loss, params = loss_of(build(name, remat=remat))
    return counts.count_macs(jax.grad(loss), params)


def logits_macs(module):
    """Cost of the products of queries and keys: heads x channels are the width."""
    if isinstance(module, dit.DiT):
        tokens = math.prod(n // module.patch for n in module.sample_shape[:-1])
        return BATCH * module.depth * tokens**2 * module.width
    return BATCH * sum(
        len(group.names) * group.spec.resolution**4 * group.spec.out_channels
        for group in module.layout()
        if group.spec.attention
    )


@pytest.mark.parametrize("name", SETTINGS)
def test_policies_compute_again_what_they_do_not_keep(name):
    forward = counts.count_macs(*loss_of(build(name)))
    gradient = macs(name, "none")
    # The first layer's inputs and tables of classes need no gradient.
    assert 2.85 * forward < gradient < 3 * forward
    # All but the layers outside of the blocks. The last products of a block of DDPM++
    # are only added up: no gradient needs their results.
    least = 0.6 if name == "ddpmpp" else 0.85
    assert least * forward < macs(name, "blocks") - gradient < forward
    assert macs(name, "dots") == gradient
    logits = logits_macs(build(name).module)
    assert macs(name, "attention") - gradient == logits > 0


# --- What is kept ---------------------------------------------------------------------


def residuals(net):
    """Elements of every value that the gradient keeps from the forward pass."""
    loss, params = loss_of(net)
    text = io.StringIO()
    with redirect_stdout(text):
        print_saved_residuals(loss, params)
    lines = [line for line in text.getvalue().splitlines() if "argument" not in line]
    dimensions = [re.match(r"\w+\[([\d,]*)\]", line).group(1) for line in lines]
    return [math.prod(int(n) for n in d.split(",") if n) for d in dimensions]


def kept(tokens, placement=None, **settings):
    settings = {"patch": 1, "width": 16, "depth": 1, "num_heads": 2, **settings}
    net = networks.build("dit", (tokens, 2), 3, **settings).place(placement)
    return sum(residuals(net))


def growth(**settings):
    """Growth of what is kept, from 1024 to 2048 tokens: more than one chunk."""
    return kept(2048, **settings) / kept(1024, **settings)


@pytest.mark.parametrize("remat", ["none", "dots"])
def test_weights_of_the_einsum_attention_are_kept(remat):
    assert growth(remat=remat) > 3.5


@pytest.mark.parametrize(
    ("attention", "remat"),
    [
        ("einsum", "attention"),
        ("einsum", "blocks"),
        *(("chunked", remat) for remat in layers.REMAT),
    ],
)
def test_nothing_else_that_is_kept_is_quadratic_in_tokens(attention, remat):
    assert growth(attention=attention, remat=remat) < 2.05


def test_blocks_keep_the_least_and_none_the_most():
    sizes = {remat: kept(64, remat=remat, depth=3) for remat in layers.REMAT}
    assert sizes["blocks"] < sizes["attention"] < sizes["dots"] < sizes["none"]


# --- Weights in pieces ----------------------------------------------------------------

MESH = AbstractMesh((1, 4, 1), sharding.MESH_AXES, axis_types=(AxisType.Auto,) * 3)


def lengths(module):
    """Blocks of every stack."""
    if isinstance(module, dit.DiT):
        return {"blocks": module.depth}
    return {group.name: len(group.names) for group in module.layout()}


@pytest.mark.parametrize(
    ("name", "remat"),
    [("ddpmpp", "none"), ("unet", "none"), *(("dit", remat) for remat in layers.REMAT)],
)
def test_blocks_gather_their_kernels_again_in_the_backward_pass(
    name, remat, monkeypatch
):
    """Once forward, once backward, and the gradient is cut; as often as loops run."""
    net = build(name, remat=remat).place(sharding.Placement(MESH))
    loss, params = loss_of(net)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    kernels = [(path, w) for path, w in leaves if path[-1].key == "kernel"]
    length = lengths(net.module)
    stacked = [(path, w) for path, w in kernels if length.get(path[0].key, 1) > 1]
    in_blocks = sum(length.get(path[0].key, 0) for path, _ in kernels)
    sizes = {w.shape for _, w in kernels} | {w.shape[1:] for _, w in stacked}

    def whole_kernel(eqn):
        shape, spec = eqn.outvars[0].aval.shape, eqn.params["sharding"].spec
        return int(shape in sizes and not any(spec))

    counted = {
        "scan": counts.MAC_FORMULAS["scan"],
        "sharding_constraint": whole_kernel,
    }
    monkeypatch.setattr(counts, "MAC_FORMULAS", counted)
    forward = counts.count_macs(loss, params)
    gradient = counts.count_macs(jax.grad(loss), params)
    assert in_blocks > 0
    # Those outside of the blocks are few, and stay.
    assert gradient == 2 * forward + in_blocks


@pytest.mark.parametrize("remat", ["none", "dots"])
def test_chunks_stay_linear_where_weights_are_gathered(remat):
    placement = sharding.Placement(MESH)
    settings = {"attention": "chunked", "remat": remat, "placement": placement}
    assert growth(**settings) < 2.05
