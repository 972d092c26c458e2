"""What every backbone of the registry refuses, and without which inputs."""

import jax
import numpy as np
import pytest

from scm_jax import networks
from scm_jax.training.state import OptimizerConfig, build_optimizer
from tests.contracts.network_cases import SETTINGS, SHAPE, build, has, inputs
from tests.networks.reference import quick_jit


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_missing_inputs_are_errors(name):
    net = build(name, use_dt=True)
    assert net.consumes == inputs(name) | {"dt"}
    x, cond = net.example(2)
    for field in ("guidance", "dt"):
        with pytest.raises(ValueError, match=rf"network\.use_{field} = True"):
            jax.eval_shape(
                lambda x, c: net.module.init(jax.random.key(0), x, c),
                x,
                cond.replace(**{field: None}),
            )


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_an_optimizer_of_matrices_knows_which_axis_is_the_block(name):
    """The update of a block does not depend on the gradients of the others."""
    net = build(name)
    shapes = jax.eval_shape(net.init, jax.random.key(0))
    optimizer = build_optimizer(OptimizerConfig(name="muon"), 8, net.looped)
    update = lambda g: optimizer.update(g, optimizer.init(g), g)[0]  # noqa: E731
    jax.eval_shape(update, {"net": shapes})

    def draw(a):
        return rng.normal(size=a.shape).astype(np.float32)

    rng = np.random.default_rng(0)
    grads = jax.tree.map(draw, {"net": {k: shapes[k] for k in net.looped}})
    others = jax.tree.map(lambda a: np.concatenate([a[:1], draw(a[1:])]), grads)
    if net.looped:
        first, second = map(quick_jit(update), (grads, others))
        for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
            np.testing.assert_allclose(a[0], b[0], rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_bad_settings_are_errors_when_built(name):
    with pytest.raises(ValueError, match=r"'widht' is not one .* mean 'width'"):
        networks.build(name, SHAPE, 0, widht=8)
    with pytest.raises(ValueError, match=r"network\.width = 15: must be even"):
        networks.build(name, SHAPE, 0, width=15)
    net = build(name)
    x, cond = net.example(2)
    message = r"x has shape \(2, 8, 4, 2\).*samples of shape \(8, 8, 2\)"
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(net.module.init, jax.random.key(0), x[:, :, :4], cond)


CHOICES = ("modulation", "embedding", "null_label", "remat", "qk_norm")
CHOICES += ("activation", "positions")


@pytest.mark.parametrize(
    ("name", "setting"),
    [(n, s) for n in sorted(SETTINGS) for s in CHOICES if has(n, s)],
)
def test_unknown_choices_are_errors_when_built(name, setting):
    with pytest.raises(ValueError, match=rf"network\.{setting} = 'x' is not one of \["):
        build(name, **{setting: "x"})


U_NET = {"width": 16, "channel_mult": (1,), "num_blocks": 1}
SQUARE = "this network takes square images .*'dit' takes any shape"
BAD = [
    ("dit", (8, 8, 1), {"patch": 3}, "patch = 3 does not divide every axis"),
    ("dit", (8, 6, 1), {"patch": 4}, "patch = 4 does not divide every axis"),
    ("dit", (5,), {}, "patch = 2 does not divide every axis"),
    ("dit", SHAPE, {"num_heads": 5}, "num_heads = 5 does not divide network.width"),
    ("mmdit", SHAPE, {}, "joins image and caption, and this dataset has no captions"),
    ("mmdit", SHAPE, {"patch": 3}, "patch = 3 does not divide both sides"),
    ("mmdit", SHAPE, {"dual_attention_blocks": 3}, "= 3 must be below network.depth"),
    (
        "mmdit",
        SHAPE,
        {"positions": "table", "position_grid": 3},
        "position_grid = 3: a table is needed for 4 patches",
    ),
    ("sana", SHAPE, {"patch": 3}, "patch = 3 does not divide both sides of an image"),
    ("sana", SHAPE, {"head_channels": 5}, "head_channels = 5 does not divide width"),
    *(
        (name, shape, {"width": 64, "channel_mult": mult}, message)
        for name in ("unet", "ddpmpp")
        for shape, mult, message in (
            ((8, 12, 3), (1, 1), SQUARE),
            ((12, 3), (1, 1), SQUARE),
            ((2, 8, 8, 3), (1, 1), SQUARE),
            ((10, 10, 3), (1, 1, 1), "side of 10 cannot be halved 2 .*divisible by 4"),
        )
    ),
    *(
        (name, SHAPE, {"dropout": d}, r"dropout = .* is not in \[0")
        for name in SETTINGS
        for d in (-0.1, 1.0)
    ),
    (
        "unet",
        SHAPE,
        {**U_NET, "head_channels": 12},
        "12 does not divide the 16 channels",
    ),
    (
        "ddpmpp",
        SHAPE,
        {**U_NET, "num_heads": 3},
        "heads = 3 .* 16 channels of dec_8x8_in0",
    ),
    # Also those of the decoder, with what comes from the encoder: 200 of 32 groups.
    *(
        (
            "ddpmpp",
            SHAPE,
            {**U_NET, "width": width},
            "channels of .*do not divide into groups",
        )
        for width in (14, 100)
    ),
]


@pytest.mark.parametrize(("name", "shape", "settings", "message"), BAD)
def test_contradicting_settings_are_errors_when_built(name, shape, settings, message):
    with pytest.raises(ValueError, match=message):
        networks.build(name, shape, 0, **settings)


def test_unknown_network_is_an_error():
    message = r"network\.name = 'unett' is not one of .*mean 'unet'"
    with pytest.raises(ValueError, match=message):
        networks.build("unett", SHAPE, 0)


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_unconditional_network_consumes_time_alone(name):
    net = networks.build(name, SHAPE, 0, **SETTINGS[name])
    assert net.consumes == inputs(name) - {"label", "guidance"}
    shapes = jax.eval_shape(net.init, jax.random.key(0))
    for path, _ in jax.tree_util.tree_leaves_with_path(shapes):
        words = {word for key in path for word in key.key.split("_")}
        assert not words & {"label", "guidance", "dt"}
