"""The transformer over clips (t, h, w) and over latents (n, c) of sound."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scm_jax import networks
from scm_jax.cost import counts
from scm_jax.networks import embeddings, layers
from scm_jax.networks.dit import Block
from scm_jax.types import TextInfo, known_frames
from tests.networks.reference import fresh_size, quick_jit, rms

SMALL = {
    "width": 24,
    "depth": 2,
    "num_heads": 2,
    "mlp_ratio": 1,
    "patch_sides": (2, 1, 4),
}
CLIP = (4, 2, 8, 3)
TEXT = TextInfo(3, width=6, pooled=4)
SOUND = {"width": 16, "depth": 5, "num_heads": 2, "mlp_ratio": 1}
SOUND |= {"patch_sides": (1,), "positions": "rotary"}


def test_a_patch_has_a_side_for_each_axis():
    x = np.random.default_rng(0).normal(size=(2, *CLIP)).astype(np.float32)
    tokens = layers.patchify(jnp.asarray(x), SMALL["patch_sides"])
    assert layers.token_grid(SMALL["patch_sides"], CLIP) == (2, 2, 2)
    assert tokens.shape == (2, 8, 2 * 1 * 4 * 3)
    np.testing.assert_array_equal(tokens[:, 5], x[:, 2:4, :1, 4:].reshape(2, -1))
    back = layers.unpatchify(tokens, SMALL["patch_sides"], CLIP)
    np.testing.assert_array_equal(back, x)


# --- Positions ------------------------------------------------------------------------


def test_channels_and_frequencies_are_those_of_wan():
    assert embeddings.split_channels(128, 3) == (44, 42, 42)
    table = embeddings.position_angles((3, 4, 5), 128)
    where = dict(zip(np.ndindex(3, 4, 5), table, strict=True))[2, 3, 4]
    expected = [2 * 1e4 ** (-2 * i / 44) for i in range(22)]
    for place in (3, 4):
        expected += [place * 1e4 ** (-2 * i / 42) for i in range(21)]
    np.testing.assert_allclose(where, expected, rtol=1e-6)
    both = embeddings.position_sincos((3, 4, 5), 128)
    np.testing.assert_allclose(both, np.hstack([np.sin(table), np.cos(table)]), 1e-6)


def test_turned_queries_and_keys_see_the_distance_alone():
    """And turning is a rotation of each pair, by the complex product."""
    q, k = np.random.default_rng(0).normal(size=(2, 1, 1, 1, 12)).astype(np.float32)
    axes, grid = (6, 5, 4), list(np.ndindex(6, 5, 4))
    turns = jnp.asarray(embeddings.position_angles(axes, 12))

    def everywhere(a):
        return np.asarray(embeddings.rotate(jnp.tile(a, (1, len(grid), 1, 1)), turns))

    queries, keys = everywhere(q)[0, :, 0], everywhere(k)[0, :, 0]
    at = {place: i for i, place in enumerate(grid)}
    product = queries @ keys.T
    for a, b, shift in [((0, 0, 0), (2, 1, 1), (3, 2, 1)), ((4, 0, 2), (0, 3, 0), 1)]:
        moved = at[tuple(np.add(a, shift))], at[tuple(np.add(b, shift))]
        assert product[at[a], at[b]] == pytest.approx(product[moved], rel=1e-4)
    assert product.std() > 0.1
    pairs = q[0, 0, 0, ::2] + 1j * q[0, 0, 0, 1::2]
    expected = pairs * np.exp(1j * np.asarray(turns, np.float64))
    found = queries[:, ::2] + 1j * queries[:, 1::2]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


LONGER = {
    "sincos": (CLIP, SMALL | {"positions": "sincos"}, None),
    "rotary": (CLIP, SMALL | {"positions": "rotary"}, None),
    "sound": ((4, 3), SOUND, TEXT),
}


@pytest.mark.parametrize("kind", LONGER)
def test_a_longer_sample_needs_no_other_parameters(kind):
    shape, settings, text = LONGER[kind]
    settings = {**settings, "depth": 2}
    short, long = (
        networks.build("dit", (n, *shape[1:]), 0, text, **settings) for n in (4, 12)
    )
    params = fresh_size(short)
    assert "position" not in params
    shapes = jax.eval_shape(long.init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)
    x, cond = long.example(1)
    x = jnp.asarray(np.random.default_rng(1).normal(size=x.shape), jnp.float32)
    apply = quick_jit(long.apply)
    # Frames in another order give other frames: positions are told apart.
    F, other = apply(params, x, cond), apply(params, jnp.roll(x, -4, axis=1), cond)
    assert rms(F - jnp.roll(other, 4, axis=1)) > 1e-3 * rms(F)
    if text is not None:
        said = cond.replace(context=2 + cond.context)
        assert rms(apply(params, x, said) - F) > 1e-3


# --- First frames ---------------------------------------------------------------------


def test_known_frames_are_read_by_weights_that_start_at_zero():
    told = networks.build("dit", CLIP, 0, **SMALL, use_frames=True)
    plain = networks.build("dit", CLIP, 0, **SMALL)
    assert told.consumes == {"t", "frames"}
    params = fresh_size(plain)
    kernel = quick_jit(told.init)(jax.random.key(0))["frames_in"]["kernel"]
    assert kernel.shape == (2 * 1 * 4 * (3 + 1), 24) and not kernel.any()
    x, cond = plain.example(2)
    frames = known_frames(2 * x, jnp.asarray([0, 2]))
    both = {**params, "frames_in": {"kernel": kernel}}
    apply = quick_jit(told.apply)
    F = quick_jit(plain.apply)(params, x, cond)
    np.testing.assert_allclose(
        apply(both, x, cond.replace(frames=frames)), F, rtol=1e-5
    )
    drawn = np.random.default_rng(1).normal(size=kernel.shape)
    both["frames_in"]["kernel"] = jnp.asarray(0.1 * drawn, jnp.float32)
    read = apply(both, x, cond.replace(frames=frames))
    unread = apply(both, x, cond)
    # The first clip was told nothing.
    np.testing.assert_allclose(read[0], F[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(unread, F, rtol=1e-4, atol=1e-5)
    assert rms(read[1] - F[1]) > 1e-2 * rms(F[1])
    with pytest.raises(ValueError, match=r"use_frames = True needs clips"):
        networks.build("dit", (8, 8, 1), 0, use_frames=True)


# --- Factorized attention -------------------------------------------------------------


@pytest.mark.parametrize("over", ["space", "time"])
def test_a_factorized_block_is_a_block_on_each_frame_or_place(over):
    frames, places, width = 3, 4, 8
    make = functools.partial(
        Block,
        num_heads=2,
        mlp_ratio=1,
        dropout=0.0,
        modulation="double_norm",
        qk_norm="pixel",
        activation="silu",
        attention="einsum",
        dtype=jnp.dtype("float32"),
    )
    rng = np.random.default_rng(0)
    h = jnp.asarray(rng.normal(size=(2, frames * places, width)), jnp.float32)
    emb = jnp.asarray(rng.normal(size=(2, width)), jnp.float32)
    turns = jnp.asarray(rng.normal(size=(frames * places, 2)), jnp.float32)
    block = make(over=over, frames=frames)
    given = (None, None, turns, True)
    shapes = jax.eval_shape(block.init, jax.random.key(0), h, emb, *given)
    params = jax.tree.map(
        lambda a: jnp.asarray(rng.normal(size=a.shape), jnp.float32), shapes
    )
    out = quick_jit(lambda h: block.apply(params, h, emb, *given)[0])(h)
    grid = np.arange(frames * places).reshape(frames, places)
    alone = quick_jit(
        lambda h, turns: make().apply(params, h, emb, None, None, turns, True)[0]
    )
    for rows in grid if over == "space" else grid.T:
        expected = alone(h[:, rows], turns[rows])
        np.testing.assert_allclose(out[:, rows], expected, rtol=2e-4, atol=2e-5)


FACTORIZED = {"depth": 6, "positions": "rotary", "factorized": True}
LOOPS = {
    "factorized": (CLIP, SMALL | FACTORIZED, None, 3),
    "sound": ((6, 3), SOUND, TEXT, 5),
}


@pytest.mark.parametrize("kind", LOOPS)
def test_value_and_tangent(kind):
    """In a loop with recomputation; the tangent against a central difference."""
    shape, settings, text, length = LOOPS[kind]
    net = networks.build("dit", shape, 0, text, **settings, remat="blocks")
    params, (x, cond) = fresh_size(net), net.example(2)
    assert {a.shape[0] for a in jax.tree.leaves(params["blocks"])} == {length}
    rng = np.random.default_rng(1)
    x, dx = (jnp.asarray(rng.normal(size=x.shape), jnp.float32) for _ in range(2))
    t = jnp.asarray([0.6, 1.2])
    if text is not None:
        said = rng.normal(size=cond.context.shape)
        cond = cond.replace(context=jnp.asarray(said, jnp.float32))

    def fn(x, t):
        return net.apply(params, x, cond.replace(t=t))

    both = quick_jit(lambda x, t: jax.jvp(fn, (x, t), (dx, jnp.ones_like(t))))
    h = 4e-3
    F, dF = both(x, t)
    difference = (both(x + h * dx, t + h)[0] - both(x - h * dx, t - h)[0]) / (2 * h)
    assert rms(dF - difference) < 1e-2 * rms(dF)
    assert rms(dF) > 1e-2 * rms(F)


def test_parameters_of_latte():
    """arXiv 2401.03048: 674M, with four channels more for the variance."""
    preset = networks.PRESETS["dit"]["latte_xl"]
    net = networks.build("dit", (16, 32, 32, 4), 0, **preset)
    params = jax.eval_shape(net.init, jax.random.key(0))
    variance = 2 * 2 * 4 * (1152 + 1)
    assert counts.parameter_count(params) + variance == 673_681_568


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


@pytest.mark.parametrize(
    ("shape", "settings", "message"),
    [
        (CLIP, {"patch_sides": (2, 1)}, r"patch = \(2, 1\) does not divide every axis"),
        (CLIP, {"patch_sides": (3, 1, 1)}, r"patch = \(3, 1, 1\) does not divide"),
        (CLIP, {"factorized": True, "depth": 3}, "an even depth, not 3"),
        ((8, 3), {"factorized": True, "patch_sides": ()}, "two axes or more"),
        (CLIP, {"positions": "rotary", "num_heads": 6}, "no pair for each of 3 axes"),
    ],
)
def test_settings_that_do_not_fit_a_clip_are_errors(shape, settings, message):
    with pytest.raises(ValueError, match=message):
        networks.build("dit", shape, 0, **{**SMALL, **settings})
