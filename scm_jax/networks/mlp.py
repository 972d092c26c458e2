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

    Attributes:
      sample_shape: shape of one sample.
      num_classes: classes; 0 for an unconditional network.
      width: features of the hidden layers.
      depth: number of residual blocks.
      dropout: rate inside the blocks, in training only.
      use_guidance: takes the guidance scale as an input.
      use_dt: takes a second time as an input.
    """

    sample_shape: tuple[int, ...]
    num_classes: int = 0
    width: int = 64
    depth: int = 3
    dropout: float = 0.0
    use_guidance: bool = False
    use_dt: bool = False

    def check(self) -> None:
        """Raises ``ValueError`` for settings that contradict each other."""
        layers.check_width(self.width)

    @nn.compact
    def __call__(self, x: jax.Array, cond: Cond, *, train: bool = False) -> jax.Array:
        """``x`` is ``(b, *sample_shape)``; returns ``F`` of that shape, float32."""
        layers.check_input(x, self.sample_shape)
        emb = embeddings.ConditionEmbedding(
            self.width, self.num_classes, self.use_guidance, self.use_dt, name="cond"
        )(cond)
        emb = nn.silu(emb)
        flat = x.reshape(x.shape[0], -1)
        h = nn.Dense(self.width, name="in")(flat)
        for i in range(self.depth):
            affine = nn.Dense(2 * self.width, name=f"affine_{i}")(emb)
            y = nn.Dense(self.width, name=f"block_{i}_in")(h)
            y = layers.modulate(layers.layer_norm(y), affine, "double_norm")
            y = nn.silu(y)
            y = nn.Dropout(self.dropout)(y, deterministic=not train)
            h = h + nn.Dense(self.width, name=f"block_{i}_out")(y)
        out = nn.Dense(
            flat.shape[-1],
            kernel_init=nn.initializers.variance_scaling(0.1, "fan_in", "normal"),
            name="out",
        )(h)
        return out.reshape(x.shape)
