"""Weights are normalized and rounded once, before all passes that multiply by them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks import shapes
from scm_jax import networks, objectives
from scm_jax.cost import counts
from scm_jax.networks import magnitude, unet
from scm_jax.training import state as state_lib
from scm_jax.training.step import Weights, make_train_step
from scm_jax.types import Batch
from tests.networks.reference import quick_jit

U_NET = {
    "width": 16,
    "channel_mult": (1,),
    "num_blocks": 2,
    "attention_resolutions": (),
    "head_channels": 8,
}


def build(name="unet", **changes):
    settings = U_NET if name == "unet" else shapes.TINY[name].settings
    return networks.build(name, (8, 8, 2), 3, **{**settings, **changes})


def draw(net):
    """Random parameters, gains among them: ``(params, x, cond)``."""
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda a: jnp.asarray(0.7 + rng.normal(size=a.shape), jnp.float32),
        jax.eval_shape(net.init, jax.random.key(0)),
    )
    return params, *net.example(2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_folded_weights_are_not_folded_again(dtype):
    """The same numbers as of parameters, which a pass folds for itself."""
    net = build(dtype=dtype)
    params, x, cond = draw(net)
    apply = quick_jit(net.apply)
    expected = apply(params, x, cond)
    got = apply(quick_jit(net.fold)(params), x, cond)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
    assert np.abs(expected).max() > 0.1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["ddpmpp", "dit", "unet"])
def test_kernels_of_blocks_alone_are_rounded(name, dtype):
    """A bias is added, not multiplied by, and what lies outside computes in float32."""
    net = build(name, dtype=dtype)
    params = jax.eval_shape(net.init, jax.random.key(0))
    folded = jax.eval_shape(net.fold, params).weights
    kinds = set()
    for path, w in jax.tree_util.tree_leaves_with_path(folded):
        kind = path[0].key in net.module.stacks, path[-1].key == "kernel"
        assert w.dtype == jnp.dtype(dtype if all(kind) else "float32"), path
        kinds.add(kind)
    assert {(True, True), (False, True)} <= kinds


@pytest.mark.parametrize("shape", [(6, 4), (3, 3, 6, 4), (2, 3, 3, 6, 4)])
def test_derivative_of_folding_is_the_central_difference(shape, float64_islands):
    """By weights and gain: normalization is a part of what is trained."""
    rng = np.random.default_rng(1)
    gain = shape[:1] if len(shape) == 5 else ()
    w, dw, a, da = (jnp.asarray(rng.normal(size=s)) for s in (shape, shape, gain, gain))
    _, tangent = jax.jvp(magnitude.fold_kernel, (w, a), (dw, da))
    h = 1e-5
    ahead, behind = (magnitude.fold_kernel(w + s * dw, a + s * da) for s in (h, -h))
    np.testing.assert_allclose(
        tangent, (ahead - behind) / (2 * h), rtol=1e-6, atol=1e-8
    )
    assert tangent.dtype == jnp.float64


def training_step(objective, parts):
    """A step on a U-Net, and shapes of its arguments."""
    net = build()
    optimizer = optax.sgd(1.0)
    settings = {"dx_dt": "data"} if objective == "consistency" else {}
    objective = objectives.build(objective, sigma_data=0.5, **settings)
    step = make_train_step(
        objective,
        net.apply,
        optimizer,
        {},
        weights=Weights(net.fold),
        num_microbatches=parts,
    )

    def init():
        key = jax.random.key(0)
        params = {"net": net.init(key), "objective": objective.init(key)}
        return state_lib.init_state(params, optimizer, (), key)

    x = jax.ShapeDtypeStruct((2 * parts, 8, 8, 2), jnp.float32)
    label = jax.ShapeDtypeStruct((2 * parts,), jnp.int32)
    return step, jax.eval_shape(init), Batch(x=x, label=label)


@pytest.mark.parametrize(
    ("objective", "parts"), [("consistency", 1), ("consistency", 4), ("diffusion", 4)]
)
def test_a_step_normalizes_every_kernel_once(objective, parts, monkeypatch):
    """Whatever its passes and microbatches: roots of mean squares over the inputs of a
    kernel are counted, as often as their loops run."""
    step, state, batch = training_step(objective, parts)
    leaves = jax.tree_util.tree_leaves_with_path(state.params["net"])
    kernels = [w for path, w in leaves if path[-1].key == "kernel"]

    def norm_of_weights(eqn):
        # In a batch there is one for each example and position.
        *lead, last = eqn.outvars[0].aval.shape or (0,)
        return int(len(lead) > 0 and last > 1 and set(lead[1:]) <= {1} and lead[0] < 4)

    counted = {"scan": counts.MAC_FORMULAS["scan"], "sqrt": norm_of_weights}
    monkeypatch.setattr(counts, "MAC_FORMULAS", counted)
    assert counts.count_macs(step, state, batch) == len(kernels)


def test_every_gain_is_folded_into_its_kernel():
    params, *_ = draw(build(modulation="gain", use_guidance=True))
    folded = unet.fold_weights(params)
    for name, gain in [("out", "out_gain"), ("emb_guidance", "emb_guidance_gain")]:
        expected = magnitude.fold_kernel(params[name]["kernel"], params[gain])
        np.testing.assert_array_equal(folded[name]["kernel"], expected)
    block = params["dec_8x8_block0"]
    assert block["affine"]["kernel"].ndim == 3 and block["affine_gain"].ndim == 1
    for i, gain in enumerate(block["affine_gain"]):
        expected = magnitude.fold_kernel(block["affine"]["kernel"][i], gain)
        got = folded["dec_8x8_block0"]["affine"]["kernel"][i]
        np.testing.assert_allclose(got, expected, rtol=1e-6)
