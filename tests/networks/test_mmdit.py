"""Positions and stacks of MMDiT; masks and chunks: contracts, formulas: exchange."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scm_jax import networks
from scm_jax.networks.mmdit import MMDiT
from scm_jax.types import TextInfo

TEXT = TextInfo(5, width=6, pooled=4)


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
