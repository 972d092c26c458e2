"""SD3's transformer over image and caption together (arXiv 2403.03206), for sCM.

Each token of the image and of the caption passes through weights of its own stream; one
softmax runs over both. The context moves with ``t``, so that under a JVP it costs what
the image costs. Equal blocks are stacked and scanned, as in ``dit.py``: ``dual_blocks``
(with a second attention of the image alone), then ``blocks``, then ``last``.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from scm_jax.networks import embeddings, layers
from scm_jax.networks.attention import IMPLEMENTATIONS, attention
from scm_jax.networks.text import text_encoders
from scm_jax.types import Cond, Placement, TextInfo

QK_NORM_EPS = 1e-6
QK_NORMS = ("none", "rms")
POSITIONS = ("learned", "table")
ACTIVATIONS = {"gelu": nn.gelu, "silu": nn.silu}  # nn.gelu is the tanh form


def _size(depth: int, **settings: Any) -> dict[str, Any]:
    """The paper's rule: as many heads of 64 channels as blocks."""
    return {"width": 64 * depth, "depth": depth, "num_heads": depth, **settings}


# What the published networks are; sizes without it have the changes of sCM.
_SD3 = {"modulation": "adaptive", "activation": "gelu", "positions": "table"}
PRESETS = {
    "d15": _size(15),
    "d18": _size(18),
    "d24": _size(24),
    "d30": _size(30),
    "d38": _size(38),
    "sd3_medium": _size(24, **_SD3, qk_norm="none"),
    "sd35_medium": _size(24, **_SD3, dual_attention_blocks=13, position_grid=384),
    "sd35_large": _size(38, **_SD3),
}


@dataclasses.dataclass(frozen=True)
class Form:
    """What all blocks share; the fields are those of ``MMDiT``."""

    width: int
    num_heads: int
    mlp_ratio: int
    dropout: float
    modulation: str
    qk_norm: str
    activation: str
    attention: str
    dtype: str


class Projections(nn.Module):
    """Into and out of the heads of an attention, for the tokens of one stream."""

    form: Form
    has_output: bool

    def setup(self) -> None:
        form = self.form
        # Three kernels side by side, so that a split by heads cuts each of them.
        self.qkv = nn.DenseGeneral((3, form.width), dtype=form.dtype)
        if form.qk_norm == "rms":
            ones, shape = nn.initializers.ones, (form.width // form.num_heads,)
            self.q_norm = self.param("q_norm", ones, shape)
            self.k_norm = self.param("k_norm", ones, shape)
        if self.has_output:
            self.attention_out = nn.Dense(form.width, dtype=form.dtype)

    def heads(self, y: jax.Array) -> tuple[jax.Array, ...]:
        """``(b, n, c)`` -> queries, keys and values ``(b, n, heads, d)``."""
        qkv = self.qkv(y).reshape(*y.shape[:2], 3, self.form.num_heads, -1)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        if self.form.qk_norm == "rms":
            q, k = (
                (layers.pixel_norm(a, QK_NORM_EPS) * scale[None, None, None])
                for a, scale in ((q, self.q_norm), (k, self.k_norm))
            )
        return q.astype(v.dtype), k.astype(v.dtype), v

    def out(self, a: jax.Array) -> jax.Array:
        """``(b, n, heads, d)`` -> ``(b, n, c)``."""
        return self.attention_out(a.reshape(*a.shape[:2], self.form.width))


class Stream(nn.Module):
    """The weights that a block has for image or context.

    ``affine`` and ``gate`` hold the vectors of its branches in the order attention,
    two-layer network, second attention. A context that nobody reads after the block
    (``read_on`` false) has only the modulation and projections of its keys and values.
    """

    form: Form
    dual: bool = False
    read_on: bool = True

    def setup(self) -> None:
        form, branches = self.form, 2 + self.dual if self.read_on else 1
        vectors = layers.MODULATIONS[form.modulation]
        self.affine = nn.Dense(branches * vectors * form.width)
        self.attention = Projections(form, self.read_on)
        if self.dual:
            self.attention2 = Projections(form, self.read_on)
        if self.read_on:
            self.gate = nn.Dense(branches * form.width, kernel_init=layers.SMALL)
            self.mlp_in = nn.Dense(form.mlp_ratio * form.width, dtype=form.dtype)
            self.mlp_out = nn.Dense(form.width, dtype=form.dtype)
            self.drop = nn.Dropout(form.dropout)

    def begin(self, h: jax.Array, emb: jax.Array) -> tuple[list[jax.Array], list[Any]]:
        """Vectors of all branches; queries, keys and values of each attention."""
        size = layers.MODULATIONS[self.form.modulation] * self.form.width
        affine = self.affine(emb)
        affine = jnp.split(affine, affine.shape[-1] // size, axis=-1)
        found = [self.attention.heads(self._modulated(h, affine[0]))]
        if self.dual:
            found.append(self.attention2.heads(self._modulated(h, affine[2])))
        return affine, found

    def finish(
        self,
        h: jax.Array,
        emb: jax.Array,
        affine: list[jax.Array],
        attended: list[jax.Array],
        deterministic: bool,
    ) -> jax.Array:
        """``h`` with its branches added: each attention's, then the network's."""
        gates = self.gate(emb).astype(h.dtype)[:, None]
        gate, gate_mlp, *more = jnp.split(gates, 2 + self.dual, axis=-1)
        added = h + gate * self.attention.out(attended[0])
        if self.dual:
            added = added + more[0] * self.attention2.out(attended[1])
        y = self.mlp_in(self._modulated(added, affine[1]))
        y = self.drop(ACTIVATIONS[self.form.activation](y), deterministic=deterministic)
        return added + gate_mlp * self.mlp_out(y)

    def _modulated(self, h: jax.Array, affine: jax.Array) -> jax.Array:
        y = layers.modulate(layers.layer_norm(h), affine, self.form.modulation)
        return y.astype(h.dtype)


class JointBlock(nn.Module):
    """Both streams through one attention, then each through its own network.

    ``h <- h + gate * W attention(modulate(norm(h)))`` and then
    ``h <- h + gate * mlp(modulate(norm(h)))``, the attention over the tokens of both.
    ``dual`` adds an attention of the image alone, with a gate of its own, to the first;
    ``last`` returns the context as it was.
    """

    form: Form
    dual: bool = False
    last: bool = False
    placement: Placement | None = None

    @nn.compact
    def __call__(
        self,
        carry: tuple[jax.Array, jax.Array],
        emb: jax.Array,
        mask: jax.Array | None,
        deterministic: bool,
    ) -> tuple[tuple[jax.Array, jax.Array], None]:
        """One block.

        Args:
          carry: image ``(b, n, c)`` and context ``(b, m, c)``.
          emb: ``(b, c)`` embedding after its silu, float32.
          mask: ``(b, m + n)``, true where attended to, the context first.
          deterministic: no dropout.
        """
        image, context = (layers.place_batch(h, self.placement) for h in carry)
        of_image = Stream(self.form, dual=self.dual, name="image")
        of_context = Stream(self.form, read_on=not self.last, name="context")
        vectors, ((q, *kv), *alone) = of_image.begin(image, emb)
        vectors_context, ((q_context, *kv_context),) = of_context.begin(context, emb)
        pairs = zip(kv_context, kv, strict=True)
        k, v = (jnp.concatenate(pair, axis=1) for pair in pairs)
        start = 0
        if not self.last:  # else its queries would be for nothing
            q, start = jnp.concatenate([q_context, q], axis=1), context.shape[1]
        attend = functools.partial(attention, implementation=self.form.attention)
        out = attend(q, k, v, key_mask=mask)
        attended = [out[:, start:], *(attend(*a) for a in alone)]
        image = of_image.finish(image, emb, vectors, attended, deterministic)
        if not self.last:
            read = [out[:, :start]]
            args = emb, vectors_context, read, deterministic
            context = of_context.finish(context, *args)
        return (image, context), None


class MMDiT(nn.Module):
    """``F(x_t / sigma_data, cond)`` for images ``(b, h, w, c)`` with captions.

    Attributes:
      sample_shape: ``(h, w, c)``.
      patch: side of a patch; must divide both.
      width: channels of a token; 64 per head in the published sizes.
      depth: number of blocks, at least 2.
      num_heads: attention heads; must divide ``width``.
      mlp_ratio: hidden width of a block's networks over ``width``.
      dropout: rate inside the blocks' networks, in training only.
      modulation: a key of ``layers.MODULATIONS``; ``adaptive`` is SD3's.
      qk_norm: ``rms``: queries and keys divided by their RMS, times a learned scale per
        channel of a head (SD3.5); ``none`` (SD3), whose logits grow in training.
      activation: of the blocks' networks: ``gelu`` in its tanh form (SD3) or ``silu``.
      dual_attention_blocks: the first so many blocks have a second attention of the
        image alone (SD3.5-medium has 13).
      positions: ``learned`` for this size; ``table``: the middle of a fixed table of
        ``position_grid^2`` positions, which is saved with the weights, not trained.
      position_grid: side of that table in patches.

    All other attributes are those of ``dit.DiT``.
    """

    sample_shape: tuple[int, ...]
    num_classes: int = 0
    patch: int = 2
    width: int = 64
    depth: int = 3
    num_heads: int = 4
    mlp_ratio: int = 4
    dropout: float = 0.0
    use_guidance: bool = False
    use_dt: bool = False
    modulation: str = "double_norm"
    qk_norm: str = "rms"
    activation: str = "silu"
    dual_attention_blocks: int = 0
    positions: str = "learned"
    position_grid: int = 192
    attention: str = "einsum"
    dtype: str = "float32"
    remat: str = "none"
    tower_width: int = 128
    tower_depth: int = 2
    text: TextInfo | None = None
    placement: Placement | None = None

    @property
    def stacks(self) -> tuple[str, ...]:
        """Groups of parameters that gather their own weights."""
        return *self.loops(), *["position"] * (self.positions == "table")

    def loops(self) -> dict[str, int]:
        """Blocks of each group of parameters, in their order; 0 is one alone."""
        dual = self.dual_attention_blocks
        loops = {"dual_blocks": dual, "blocks": self.depth - 1 - dual}
        return {name: n for name, n in loops.items() if n} | {"last": 0}

    def check(self) -> None:
        """Raises ``ValueError`` for settings that contradict each other."""
        layers.check_settings(
            self,
            modulation=layers.MODULATIONS,
            qk_norm=QK_NORMS,
            activation=ACTIVATIONS,
            positions=POSITIONS,
            attention=IMPLEMENTATIONS,
            remat=layers.REMAT,
        )
        *sides, _ = self.sample_shape
        if len(sides) != 2 or any(n % self.patch for n in sides):
            raise ValueError(
                f"network.patch = {self.patch} does not divide both sides of "
                f"sample_shape {self.sample_shape}, which must be (h, w, c)"
            )
        of = f"network.width = {self.width}"
        layers.check_divides(self, "num_heads", self.width, of)
        if not 0 <= self.dual_attention_blocks < self.depth or self.depth < 2:
            raise ValueError(
                f"network.dual_attention_blocks = {self.dual_attention_blocks} must be "
                f"below network.depth = {self.depth}, which must be at least 2"
            )
        needed = max(sides) // self.patch
        if self.positions == "table" and (
            self.position_grid < needed or self.width % 4
        ):
            raise ValueError(
                f"network.position_grid = {self.position_grid}: a table is needed for "
                f"{needed} patches and a width divisible by 4, not {self.width}"
            )
        if self.text is None:
            raise ValueError(
                "network.name = 'mmdit' joins image and caption, and this dataset has "
                "no captions; 'dit' and 'unet' need none"
            )

    @nn.nowrap
    def encoders(self) -> dict[str, nn.Module]:
        """See ``Network.encoders``."""
        return text_encoders(self)

    @nn.compact
    def __call__(self, x: jax.Array, cond: Cond, *, train: bool = False) -> jax.Array:
        """``x`` is ``(b, *sample_shape)``; returns ``F`` of that shape, float32."""
        self.check()
        layers.check_input(x, self.sample_shape)
        dtype, p = jnp.dtype(self.dtype), self.patch
        (b, *sides, channels), context, mask = x.shape, cond.context, cond.context_mask
        rows, columns = (n // p for n in sides)
        inputs = self.num_classes, self.use_guidance, self.use_dt
        embed = embeddings.PooledEmbedding(self.width, *inputs, name="cond")
        emb = layers.place_batch(nn.silu(embed(cond)), self.placement)

        tokens = x.reshape(b, rows, p, columns, p, channels).swapaxes(2, 3)
        tokens = tokens.reshape(b, rows * columns, p * p * channels).astype(dtype)
        image = nn.Dense(self.width, dtype=dtype, name="patch_in")(tokens)
        image = image + self._position(rows, columns).astype(dtype)[None]
        assert context is not None  # an encoder gave it
        if mask is not None:
            mask = jnp.pad(mask, ((0, 0), (0, rows * columns)), constant_values=True)
        context_in = nn.Dense(self.width, dtype=dtype, name="context_in")
        carry = (image, context_in(context.astype(dtype)))
        for name, length in self.loops().items():
            carry, _ = self._stack(name, length)(carry, emb, mask, not train)

        vectors = layers.MODULATIONS[self.modulation]
        affine = nn.Dense(vectors * self.width, name="affine_out")(emb)
        h = layers.modulate(layers.layer_norm(carry[0]), affine, self.modulation)
        out = nn.Dense(tokens.shape[-1], kernel_init=layers.SMALL, name="patch_out")(h)
        out = out.reshape(b, rows, columns, p, p, channels).swapaxes(2, 3)
        return out.reshape(x.shape)

    def _position(self, rows: int, columns: int) -> jax.Array:
        if self.positions == "learned":
            normal = nn.initializers.normal(0.5)
            return self.param("position", normal, (rows * columns, self.width))
        grid, width = self.position_grid, self.width
        table = self.param("position", lambda _: embeddings.position_table(grid, width))
        table = jax.lax.stop_gradient(table)
        position = embeddings.centre_crop(table, rows, columns)
        if self.placement is None or not self.placement.gathers:
            return position
        # Not before it is cut: the table may have 200 million numbers.
        return self.placement.gather({"position": position})["position"]

    def _stack(self, name: str, length: int) -> Any:
        # Short stacks run faster unrolled, deep ones compile faster scanned.
        unroll = max(length, 1) if length <= 4 else 1
        in_axes = (nn.broadcast,) * 3
        block = layers.stacked(JointBlock, self, name, in_axes, length, unroll)
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(Form)}
        dual, last = name == "dual_blocks", name == "last"
        return block(Form(**fields), dual, last, self.placement, name=name)
