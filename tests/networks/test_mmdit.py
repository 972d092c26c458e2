"""The joint block: masks, tangents, positions. Its formulas: tests/exchange."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scm_jax import networks
from scm_jax.networks import attention
from scm_jax.networks.mmdit import Form, JointBlock, MMDiT
from scm_jax.types import TextInfo
from tests.networks.reference import draw, normal, quick_jit, rms

TEXT = TextInfo(5, width=6, pooled=4)
MASK = np.array([[True] * 5, [True, True, False, False, False], [False] * 5])


def joint_block(attention):
    return JointBlock(
        Form(16, 2, 2, 0.0, "double_norm", "rms", "silu", attention, "float32")
    )


def block_inputs():
    image, context, emb = (
        jnp.asarray(normal(shape, i), jnp.float32)
        for i, shape in enumerate([(3, 9, 16), (3, 5, 16), (3, 16)])
    )
    mask = jnp.concatenate([jnp.asarray(MASK), jnp.ones((3, 9), bool)], axis=1)
    return (image, context), emb, mask


def test_value_tangent_and_gradient_of_chunks_are_the_einsum_s(monkeypatch):
    """In both streams, with masks; one mask hides the whole context."""
    monkeypatch.setattr(attention, "QUERY_CHUNK", 6)
    monkeypatch.setattr(attention, "KEY_CHUNK", 4)
    carry, emb, mask = block_inputs()
    init, key = joint_block("einsum").init, jax.random.key(0)
    shapes = jax.eval_shape(lambda: init(key, carry, emb, mask, True)["params"])
    block_params = jax.tree.map(lambda a: jnp.asarray(a / 4), draw(shapes))
    moved = jax.tree.map(lambda a: jnp.cos(3 * a), (carry, emb))

    def step(block):
        def loss(params):
            def F(carry, emb):
                return block.apply({"params": params}, carry, emb, mask, True)[0]

            value, tangent = jax.jvp(F, (carry, emb), moved)
            target = jax.lax.stop_gradient(tangent)
            total = sum(
                jnp.sum(jnp.cos(v) * (1 + t))
                for v, t in zip(value, target, strict=True)
            )
            return total, (value, tangent)

        return quick_jit(jax.grad(loss, has_aux=True))(block_params)

    exact, found = (step(joint_block(name)) for name in ("einsum", "chunked"))
    leaves = zip(jax.tree.leaves(exact), jax.tree.leaves(found), strict=True)
    for a, b in leaves:
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * max(rms(a), 1e-3))
        assert np.all(np.isfinite(a))


class Positions(MMDiT):
    @nn.compact
    def __call__(self, x, cond, *, train=False):
        return self._position(2, 3)


def test_positions_are_the_middle_of_a_table_that_is_not_trained():
    """x first, then y, sine before cosine; 64 units across the table."""
    module = Positions((4, 6, 4), width=16, positions="table", position_grid=7)
    params = module.init(jax.random.key(0), None, None)["params"]
    i, w = np.arange(7) * 64 / 7, 1e4 ** -(np.arange(4) / 4)
    angles = i[:, None] * w
    axis = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    table = [[np.concatenate([axis[x], axis[y]]) for x in range(7)] for y in range(7)]
    table = np.array(table)
    np.testing.assert_allclose(params["position"], table.reshape(49, 16), atol=1e-5)

    def total(params):
        found = module.apply({"params": params}, None, None)
        return jnp.sum(found), found

    gradient, found = jax.grad(total, has_aux=True)(params)
    np.testing.assert_allclose(found, table[2:4, 2:5].reshape(6, 16), atol=1e-5)
    assert not gradient["position"].any()
    learned = Positions((4, 6, 4), width=16)
    params = learned.init(jax.random.key(0), None, None)["params"]
    assert params["position"].shape == (6, 16)


@pytest.mark.parametrize("dual", [0, 2])
def test_equal_blocks_are_stacked_and_the_last_context_has_no_output(dual):
    settings = {"width": 16, "num_heads": 2, "depth": 4, "dual_attention_blocks": dual}
    net = networks.build("mmdit", (4, 4, 2), 0, TEXT, **settings)
    params = jax.eval_shape(net.init, jax.random.key(0))
    qkv = {
        name: params[name]["image"]["attention"]["qkv"]["kernel"].shape
        for name in net.module.stacks
    }
    kernel = (16, 3, 16)
    dual_blocks = {"dual_blocks": (2, *kernel)} if dual else {}
    assert qkv == {**dual_blocks, "blocks": (3 - dual, *kernel), "last": kernel}
    assert params["last"]["context"].keys() == {"affine", "attention"}
    assert "attention_out" not in params["last"]["context"]["attention"]
    assert "text" not in params
