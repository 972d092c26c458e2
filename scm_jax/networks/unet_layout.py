"""Which blocks a U-Net of the EDM family has, and which of them are stacked.

DDPM++ (arXiv 2206.00364) and the EDM2 U-Net (arXiv 2312.02696) share one plan: an
encoder whose every output is kept, and a decoder that takes them back in reverse order.
Neighbours of equal shape form a ``Group``: if it has more than one block, its
parameters carry a leading axis and one compiled body is scanned over it.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from scm_jax.networks import layers


@dataclasses.dataclass(frozen=True)
class BlockSpec:
    """The shape of one block."""

    resolution: int  # side of its output
    in_channels: int  # from the block before
    skip_channels: int  # from the encoder; 0 in the encoder
    out_channels: int
    resample: str = "none"  # or down (halves the side first), up (doubles it)
    attention: bool = False  # ends with self-attention
    decoder: bool = False  # belongs to the decoder


@dataclasses.dataclass(frozen=True)
class Group:
    """Neighbouring blocks of one shape."""

    names: tuple[str, ...]  # in order, such as enc_32x32_block1
    spec: BlockSpec

    @property
    def name(self) -> str:
        """Name of the group in the parameter tree."""
        return self.names[0]


def make_layout(
    net: Any, stem: int, *, attend_last_only: bool, resolution: int = 0
) -> tuple[Group, ...]:
    """The blocks of a U-Net in order, without the first and the last convolution.

    ``net`` has ``sample_shape``, ``width``, ``channel_mult``, ``num_blocks`` (the
    decoder has one more per level) and ``attention_resolutions``; ``stem`` are the
    channels of the first convolution's output. The first block of the decoder always
    attends. With ``attend_last_only`` only the last block of a decoder's level that
    attends does (DDPM++), instead of all (EDM2). ``resolution`` is the side of the
    first level, by default that of the samples.

    Raises:
      ValueError: the samples are not square images, or their side cannot be halved
        often enough.
    """
    shape, channels = net.sample_shape, [net.width * m for m in net.channel_mult]
    resolution, levels = resolution or shape[0], len(channels)
    if len(shape) != 3 or shape[0] != shape[1]:
        raise ValueError(
            f"this network takes square images (h, w, c) with h == w, not samples of "
            f"shape {shape}; network.name = 'dit' takes any shape"
        )
    if resolution % 2 ** (levels - 1):
        raise ValueError(
            f"a side of {resolution} cannot be halved {levels - 1} times: "
            f"network.channel_mult has {levels} levels; use a resolution divisible by "
            f"{2 ** (levels - 1)}, or fewer levels"
        )
    blocks: list[tuple[str, BlockSpec]] = []
    skips, width = [stem], stem
    for level, out in enumerate(channels):
        side = resolution >> level
        name = f"enc_{side}x{side}_"
        attends = side in net.attention_resolutions
        if level:
            blocks.append((name + "down", BlockSpec(side, width, 0, width, "down")))
            skips.append(width)
        for i in range(net.num_blocks):
            spec = BlockSpec(side, width, 0, out, attention=attends)
            blocks.append((f"{name}block{i}", spec))
            width = out
            skips.append(width)
    for level, out in reversed(list(enumerate(channels))):
        side = resolution >> level
        name = f"dec_{side}x{side}_"
        attends = side in net.attention_resolutions
        if level == levels - 1:
            for i in range(2):
                spec = BlockSpec(side, width, 0, width, "none", i == 0, True)
                blocks.append((f"{name}in{i}", spec))
        else:
            spec = BlockSpec(side, width, 0, width, "up", False, True)
            blocks.append((name + "up", spec))
        for i in range(net.num_blocks + 1):
            attention = attends and (i == net.num_blocks or not attend_last_only)
            spec = BlockSpec(side, width, skips.pop(), out, "none", attention, True)
            blocks.append((f"{name}block{i}", spec))
            width = out
    assert not skips
    runs = itertools.groupby(blocks, key=lambda block: block[1])
    return tuple(Group(tuple(name for name, _ in run), spec) for spec, run in runs)


def apply_groups(
    net: Any,
    block: type[nn.Module],
    settings: tuple[str, ...],
    h: jax.Array,
    emb: Any,
    deterministic: bool,
) -> jax.Array:
    """Runs all blocks of ``net.layout()``; call it inside a compact ``__call__``.

    Args:
      net: has ``remat``, ``unroll``, ``placement``, ``dropout`` and
        ``dropout_max_resolution``; see ``unet.UNet``.
      block: class of the blocks, with attributes ``spec``, ``dropout`` and
        ``settings``. It is called as ``block(h, skip, emb, deterministic) ->
        (h, kept)``: ``skip`` is None in the encoder, and ``kept`` in the decoder.
      settings: further attributes that all blocks take from ``net``.
      h: output of the first convolution, ``(b, height, width, c)``.
      emb: conditioning of every block, any tree of arrays.
      deterministic: no dropout.
    """
    skips = [h]
    for group in net.layout():
        spec, length = group.spec, len(group.names)
        # XLA's CPU backend runs the gradients of convolutions inside a loop about 20
        # times slower than outside of it (jaxlib 0.10.2).
        whole = length if jax.default_backend() == "cpu" else 1
        steps = min(net.unroll or whole, length)
        drops = spec.resolution <= (net.dropout_max_resolution or spec.resolution)
        attributes = {name: getattr(net, name) for name in settings}
        attributes |= {"spec": spec, "dropout": net.dropout if drops else 0.0}
        h = layers.place_batch(h, net.placement)
        takes_skip = spec.skip_channels > 0
        in_axes = (0 if takes_skip else nn.broadcast, nn.broadcast, nn.broadcast)
        loop = (length, steps) if length > 1 else ()
        module = layers.stacked(block, net, group.name, in_axes, *loop)(
            **attributes, name=group.name
        )
        taken: list[Any] = [skips.pop() for _ in range(length)] if takes_skip else []
        skip = jnp.stack(taken) if loop and taken else (*taken, None)[0]
        h, kept = module(h, skip, emb, deterministic)
        if not spec.decoder:
            skips += [kept[i] for i in range(length)] if loop else [kept]
    return h
