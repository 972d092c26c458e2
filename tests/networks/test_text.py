"""Captions inside networks: read once, masked, null by one rule, without a tangent."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scm_jax import networks, sampling, trigflow
from scm_jax.cost import counts
from scm_jax.networks import layers
from scm_jax.types import Cond, TextInfo, without_condition
from tests.contracts.network_cases import cotangent, make_step, noise, trained
from tests.networks.reference import KEY, quick_jit

WORDS = TextInfo(5, ("a", "red", "star"))
NULL = (np.full((2, 6), 0.5, np.float32), np.full((4,), -1.0, np.float32))
STATES = TextInfo(5, width=6, pooled=4, encoder="tiny", null=NULL)
SETTINGS = {
    "dit": {"width": 16, "depth": 2, "num_heads": 2, "patch": 4},
    "unet": {
        **{"width": 16, "channel_mult": (1,), "num_blocks": 1},
        **{"attention_resolutions": (4,), "head_channels": 8, "space_to_depth": 4},
    },
}
TOKENS = np.array([[258, 260, 0, 0, 0], [258, 259, 260, 0, 0], [0] * 5], np.int32)
T = jnp.asarray([0.3, 0.9, 1.4])
X = jnp.asarray(noise((3, 16, 16, 2), 0))


def build(name, text=WORDS, **changes):
    settings = {"tower_width": 8, "tower_depth": 1, **SETTINGS[name], **changes}
    return networks.build(name, (16, 16, 2), 0, text, **settings)


@dataclasses.dataclass
class Case:
    net: networks.Network
    params: dict
    cond: Cond
    apply: object


@pytest.fixture(scope="module", params=["dit words", "dit states", "unet words"])
def case(request):
    name, kind = request.param.split()
    words = kind == "words"
    net = build(name, WORDS if words else STATES)
    params = trained(quick_jit(net.init)(KEY))
    if words:
        cond = Cond(t=T, tokens=jnp.asarray(TOKENS))
    else:
        states, pooled = noise((3, 5, 6), 1), noise((3, 4), 2)
        mask = jnp.asarray(TOKENS > 0)
        cond = Cond(t=T, context=states, context_mask=mask, pooled=pooled)
    return Case(net, params, cond, quick_jit(net.apply))


def differs(a, b, row):
    return float(jnp.abs(a[row] - b[row]).max())


def test_a_network_reads_its_caption_and_nothing_of_the_padding(case):
    F = case.apply(case.params, X, case.cond)
    null = case.apply(case.params, X, without_condition(case.cond))
    assert differs(F, null, 0) > 1e-3 and differs(F, null, 1) > 1e-3
    # The last caption is empty: the null caption.
    assert differs(F, null, 2) == 0
    encoded = quick_jit(case.net.encode)(case.params, case.cond)
    mask = encoded.context_mask
    if encoded.context is not None:
        padded = jnp.where(mask[..., None], encoded.context, 7.0)
        same = dataclasses.replace(encoded, context=padded)
    else:  # keys and values of all blocks
        padded = jnp.where(mask[:, None, :, None, None, None], encoded.memory, 7.0)
        same = dataclasses.replace(encoded, memory=padded)
    np.testing.assert_allclose(case.apply(case.params, X, same), F, atol=1e-5)
    if case.cond.tokens is not None:
        short = dataclasses.replace(case.cond, tokens=case.cond.tokens[:, :3])
        short = case.net.encode(case.params, short)
        np.testing.assert_allclose(encoded.pooled, short.pooled, atol=1e-6)


@pytest.mark.parametrize("text", [WORDS, STATES], ids=["words", "states"])
def test_a_missing_caption_is_the_null_caption(text):
    net = build("dit", text)
    params = trained(quick_jit(net.init)(KEY))
    given = without_condition(net.example(3)[1])
    one, other = net.encode(params, given), net.encode(params, Cond(t=T))
    for field in ("memory", "pooled", "context_mask"):
        a, b = getattr(one, field), getattr(other, field)
        np.testing.assert_array_equal(a, b)


def test_the_stored_null_caption_is_what_an_empty_one_means(case):
    if case.cond.tokens is not None:
        pytest.skip("a tower has a learned row")
    states, pooled = NULL
    context = jnp.zeros((3, 5, 6)).at[:, :2].set(states[None])
    mask = jnp.broadcast_to(jnp.arange(5) < 2, (3, 5))
    given = Cond(
        t=T, context=context, context_mask=mask, pooled=jnp.tile(pooled, (3, 1))
    )
    null = case.apply(case.params, X, without_condition(case.cond))
    np.testing.assert_allclose(case.apply(case.params, X, given), null, atol=1e-6)


def test_encoded_once_a_caption_gives_the_same(case):
    encoded = quick_jit(case.net.encode)(case.params, case.cond)
    assert encoded.memory is not None and encoded.tokens is None
    F = case.apply(case.params, X, case.cond)
    np.testing.assert_allclose(case.apply(case.params, X, encoded), F, atol=1e-6)
    if case.cond.tokens is None or "memory" not in case.params:
        return  # one case is enough for the rest, which compiles for long
    # Guidance with both conditions encoded before the loop of a sampler.
    null = case.net.encode(case.params, without_condition(case.cond))
    fn = sampling.with_guidance(lambda x, cond: case.apply(case.params, x, cond), 3.0)
    expected = fn(X, case.cond)
    both = dataclasses.replace(encoded, null=null)
    np.testing.assert_allclose(fn(X, both), expected, atol=2e-5)


def test_the_gradient_reaches_all_that_reads_captions(case):
    dx = noise(X.shape, 3)
    gradient, (F, dF_dt) = make_step(case.net)(case.params, X, dx, case.cond, KEY)
    assert jnp.abs(dF_dt).max() > 0 and cotangent(dF_dt).shape == F.shape
    untouched = [
        jax.tree_util.keystr(path)
        for path, g in jax.tree_util.tree_leaves_with_path(gradient)
        if not np.any(g)
    ]
    # Keys are compared: a bias of all of them would change no softmax.
    assert untouched == []


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_reading_captions_has_no_tangent(name):
    """Value and tangent of a caption cost what its value costs."""
    net = build(name, depth=3) if name == "dit" else build(name)
    params = jax.eval_shape(net.init, KEY)
    x, cond = net.example(1)

    def macs(fn, *args):
        return counts.count_macs(fn, *args)

    def both(params, x, cond):
        def at(x, t):
            return net.apply(params, x, dataclasses.replace(cond, t=t))

        return jax.jvp(at, (x, cond.t), (x, cond.t))

    encode = macs(net.encode, params, cond)
    encoded = jax.eval_shape(net.encode, params, cond)
    assert macs(net.apply, params, x, cond) == encode + macs(
        net.apply, params, x, encoded
    )
    assert macs(both, params, x, cond) == encode + macs(both, params, x, encoded)
    if name == "dit":  # the tower, and keys and values of all blocks
        states = macs(build(name, depth=3, cross_attention=False).encode, params, cond)
        assert encode - states == 3 * 5 * 8 * 2 * 16


def test_a_sampler_reads_captions_once():
    net = build("dit")
    params = quick_jit(net.init)(KEY)
    calls = []

    def encode(params, cond):
        calls.append("encoded")
        return net.encode(params, cond)

    def make_fn(params):
        def fn(x, cond):
            assert cond.tokens is None and cond.memory is not None
            return net.apply(params, x, cond)

        return fn

    grid = trigflow.consistency_grid(3, 0.5)
    arguments = make_fn, "consistency", grid, (16, 16, 2), 0.5, None, encode
    keys = sampling.sample_keys(0, np.arange(3))
    cond = Cond(t=T, tokens=jnp.asarray(TOKENS))
    found = sampling.make_sampler(*arguments)(params, keys, cond)
    assert calls == ["encoded"] and found.shape == X.shape


def test_what_does_not_fit_is_an_error():
    net = build("dit")
    params = jax.eval_shape(net.init, KEY)
    long = Cond(t=T, tokens=jnp.ones((3, 6), jnp.int32))
    with pytest.raises(ValueError, match="6 tokens: this network takes 5"):
        jax.eval_shape(net.apply, params, X, long)
    net = build("dit", STATES)
    params = jax.eval_shape(net.init, KEY)
    wide = Cond(t=T, context=jnp.ones((3, 5, 7)))
    with pytest.raises(ValueError, match="7 channels; .* on those of tiny: 6"):
        jax.eval_shape(net.apply, params, X, wide)
    assert build("unet").consumes == {"t", "tokens"}
    assert net.consumes == {"t", "context", "context_mask", "pooled"}
    assert networks.build("mlp", (2,), 0, WORDS).consumes == {"t"}


def test_squares_become_channels_and_back():
    x = jnp.asarray(noise((2, 4, 6, 3), 0))
    tokens = layers.patchify(x, 2)
    assert tokens.shape == (2, 6, 12)
    np.testing.assert_array_equal(tokens[0, 5], x[0, 2:4, 4:6].reshape(-1))
    np.testing.assert_array_equal(layers.unpatchify(tokens, 2, (4, 6, 3)), x)
