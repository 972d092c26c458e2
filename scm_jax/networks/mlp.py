"""A residual network for vectors: the backbone of experiments on toy distributions."""

from __future__ import annotations

import flax.linen as nn
import jax

from scm_jax.networks import embeddings, layers
from scm_jax.types import Cond


class MLP(nn.Module):
    """``F(x_t / sigma_data, cond)`` for samples ``(b, ..., c)``, read as flat vectors.

    Residual blocks ``h <- h + W2 silu(modulate(layer_norm(W1 h)))`` with the same
    conditioning as the image backbones.
    """

    sample_shape: tuple[int, ...]
    num_classes: int = 0  # 0 for an unconditional network
    width: int = 64  # features of the hidden layers
    depth: int = 3  # residual blocks
    dropout: float = 0.0  # inside the blocks, in training only
    use_guidance: bool = False  # takes the guidance scale as an input
    use_dt: bool = False  # takes a second time as an input

    def check(self) -> None:
        """Raises ``ValueError`` for settings that contradict each other."""
        layers.check_settings(self)

    @nn.compact
    def __call__(self, x: jax.Array, cond: Cond, *, train: bool = False) -> jax.Array:
        """``x`` is ``(b, *sample_shape)``; returns ``F`` of that shape, float32."""
        layers.check_input(x, self.sample_shape)
        embed = embeddings.ConditionEmbedding(
            self.width, self.num_classes, self.use_guidance, self.use_dt, name="cond"
        )
        emb = nn.silu(embed(cond))
        flat = x.reshape(x.shape[0], -1)
        h = nn.Dense(self.width, name="in")(flat)
        for i in range(self.depth):
            affine = nn.Dense(2 * self.width, name=f"affine_{i}")(emb)
            y = nn.Dense(self.width, name=f"block_{i}_in")(h)
            y = layers.modulate(layers.layer_norm(y), affine, "double_norm")
            y = nn.silu(y)
            y = nn.Dropout(self.dropout)(y, deterministic=not train)
            h = h + nn.Dense(self.width, name=f"block_{i}_out")(y)
        out = nn.Dense(flat.shape[-1], kernel_init=layers.SMALL, name="out")
        return out(h).reshape(x.shape)
