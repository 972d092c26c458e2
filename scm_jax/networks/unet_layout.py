"""Which blocks a U-Net of the EDM family has, and which of them are stacked.

DDPM++ (arXiv 2206.00364) and the EDM2 U-Net (arXiv 2312.02696) share one plan: an
encoder whose every output is kept, a decoder that takes them back in reverse order, and
per level a few blocks of equal shape. Neighbours of equal shape form a ``Group``: if it
has more than one block, its parameters carry a leading axis and one compiled body is
scanned over it.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from scm_jax.networks import embeddings, layers
from scm_jax.types import Placement


@dataclasses.dataclass(frozen=True)
class BlockSpec:
    """The shape of one block.

    Attributes:
      resolution: side of its output.
      in_channels: channels that come from the block before.
      skip_channels: channels that come from the encoder; 0 in the encoder.
      out_channels: channels of its output.
      resample: ``none``, ``down`` (halves the side first) or ``up`` (doubles it).
      attention: ends with self-attention.
      decoder: belongs to the decoder.
    """

    resolution: int
    in_channels: int
    skip_channels: int
    out_channels: int
    resample: str = "none"
    attention: bool = False
    decoder: bool = False


@dataclasses.dataclass(frozen=True)
class Group:
    """Neighbouring blocks of one shape.

    Attributes:
      names: of its blocks in order, such as ``enc_32x32_block1``. The first one names
        the group in the parameter tree.
      spec: the shape of each.
    """

    names: tuple[str, ...]
    spec: BlockSpec

    @property
    def name(self) -> str:
        return self.names[0]


@dataclasses.dataclass(frozen=True)
class Layout:
    """A U-Net's blocks.

    Attributes:
      encoder: groups from the input down; the first convolution is not among them.
      decoder: groups from the bottom up.
    """

    encoder: tuple[Group, ...]
    decoder: tuple[Group, ...]

    @property
    def groups(self) -> tuple[Group, ...]:
        return self.encoder + self.decoder

    @property
    def num_blocks(self) -> int:
        return sum(len(group.names) for group in self.groups)


def make_layout(
    resolution: int,
    stem: int,
    channels: tuple[int, ...],
    num_blocks: int,
    attention_resolutions: tuple[int, ...],
    *,
    attend_last_only: bool,
) -> Layout:
    """The blocks of a U-Net.

    Args:
      resolution: side of the input; halved from level to level.
      stem: channels of the first convolution's output.
      channels: of each level, from the input down.
      num_blocks: per level of the encoder; the decoder has one more.
      attention_resolutions: levels, by their side, whose blocks attend. The first block
        of the decoder always attends.
      attend_last_only: in the decoder only the last block of such a level attends
        (DDPM++), instead of all (EDM2).

    Raises:
      ValueError: the resolution cannot be halved often enough.
    """
    levels = len(channels)
    if resolution % 2 ** (levels - 1):
        raise ValueError(
            f"a side of {resolution} cannot be halved {levels - 1} times: "
            f"network.channel_mult has {levels} levels; use a resolution divisible by "
            f"{2 ** (levels - 1)}, or fewer levels"
        )
    encoder: list[tuple[str, BlockSpec]] = []
    skips = [stem]
    width = stem
    for level, out in enumerate(channels):
        side = resolution >> level
        name = f"enc_{side}x{side}_"
        attends = side in attention_resolutions
        if level:
            encoder.append((name + "down", BlockSpec(side, width, 0, width, "down")))
            skips.append(width)
        for i in range(num_blocks):
            spec = BlockSpec(side, width, 0, out, attention=attends)
            encoder.append((f"{name}block{i}", spec))
            width = out
            skips.append(width)
    decoder: list[tuple[str, BlockSpec]] = []
    for level, out in reversed(list(enumerate(channels))):
        side = resolution >> level
        name = f"dec_{side}x{side}_"
        attends = side in attention_resolutions
        if level == levels - 1:
            for i in range(2):
                spec = BlockSpec(side, width, 0, width, "none", i == 0, True)
                decoder.append((f"{name}in{i}", spec))
        else:
            spec = BlockSpec(side, width, 0, width, "up", False, True)
            decoder.append((name + "up", spec))
        for i in range(num_blocks + 1):
            attention = attends and (i == num_blocks or not attend_last_only)
            spec = BlockSpec(side, width, skips.pop(), out, "none", attention, True)
            decoder.append((f"{name}block{i}", spec))
            width = out
    assert not skips
    return Layout(tuple(_group(encoder)), tuple(_group(decoder)))


def _group(blocks: list[tuple[str, BlockSpec]]) -> Iterator[Group]:
    for spec, run in itertools.groupby(blocks, key=lambda block: block[1]):
        yield Group(tuple(name for name, _ in run), spec)


def dropout_rate(spec: BlockSpec, rate: float, max_resolution: int) -> float:
    """Dropout of a block: ``rate``, or 0 where its side is above ``max_resolution``.

    ``max_resolution`` 0 means that there is no limit.
    """
    return rate if not max_resolution or spec.resolution <= max_resolution else 0.0


def check_settings(net: Any, modulations: tuple[str, ...]) -> None:
    """Raises ``ValueError`` for settings that no U-Net of these modulations has."""
    layers.check_width(net.width)
    layers.check_choice(net.modulation, modulations, "network.modulation")
    layers.check_choice(net.embedding, embeddings.EMBEDDINGS, "network.embedding")
    layers.check_choice(net.remat, tuple(layers.REMAT), "network.remat")
    if not 0.0 <= net.dropout < 1.0:
        raise ValueError(f"network.dropout = {net.dropout} is not in [0, 1)")


def apply_groups(
    layout: Layout,
    make_block: Callable[[BlockSpec], tuple[type[nn.Module], dict[str, Any]]],
    h: jax.Array,
    emb: jax.Array,
    deterministic: bool,
    *,
    remat: str,
    unroll: int,
    placement: Placement | None = None,
) -> jax.Array:
    """Runs all blocks; call it inside a compact ``__call__``.

    Args:
      layout: the blocks.
      make_block: spec -> module class and its attributes. A block is called as
        ``block(h, skip, emb, deterministic) -> (h, kept)``: ``skip`` is None in the
        encoder, and ``kept`` is None in the decoder.
      h: output of the first convolution, ``(b, height, width, c)``.
      emb: conditioning of every block, ``(b, e)`` float32.
      deterministic: no dropout.
      remat: what the backward pass recomputes, a key of ``layers.REMAT``.
      unroll: blocks of a group per iteration of its loop; 0 is all of them on a CPU
        and 1 elsewhere. XLA's CPU backend runs the gradients of convolutions that stand
        inside a loop about 20 times slower than outside of it (jaxlib 0.10.2).
      placement: where weights and activations lie on a mesh.

    Returns:
      The last block's output.
    """
    skips = [h]
    for group in layout.groups:
        length = len(group.names)
        block, settings = make_block(group.spec)
        whole = length if jax.default_backend() == "cpu" else 1
        steps = min(unroll or whole, length)
        block = layers.rematerialize(
            block,
            remat,
            placement,
            group.name,
            in_loop=steps < length,
            static_argnums=(4,),
        )
        h = layers.place_batch(h, placement)
        takes_skip = group.spec.skip_channels > 0
        if length == 1:
            skip = skips.pop() if takes_skip else None
            h, kept = block(**settings, name=group.name)(h, skip, emb, deterministic)
            if not group.spec.decoder:
                skips.append(kept)
            continue
        stack = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0 if takes_skip else nn.broadcast, nn.broadcast, nn.broadcast),
            length=length,
            unroll=steps,
        )(**settings, name=group.name)
        taken = None
        if takes_skip:
            taken = jnp.stack([skips.pop() for _ in range(length)])
        h, kept = stack(h, taken, emb, deterministic)
        if not group.spec.decoder:
            skips.extend(kept[i] for i in range(length))
    return h
