"""Pixels as numbers and back: the rules that published metrics are measured with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from scm_jax.types import lookup

Array = jax.typing.ArrayLike


def pm1_from_uint8(image: Array) -> jax.Array:
    """0..255 to float32 in [-1, 1]: ``image / 127.5 - 1``."""
    return jnp.asarray(image).astype(jnp.float32) / 127.5 - 1


def pm1_to_uint8(x: Array) -> jax.Array:
    """[-1, 1] to 0..255: ``127.5 x + 128``, clipped, truncated (EDM2, for RGB models).

    Inverts ``pm1_from_uint8`` exactly.

    Example:
      >>> pm1_to_uint8(jnp.array([-1.5, -1.0, 0.0, 0.999, 1.0])).tolist()
      [0, 0, 128, 255, 255]
    """
    return jnp.clip(jnp.asarray(x) * 127.5 + 128, 0, 255).astype(jnp.uint8)


def unit_from_uint8(image: Array) -> jax.Array:
    """0..255 to float32 in [0, 1]: ``image / 255``."""
    return jnp.asarray(image).astype(jnp.float32) / 255


def unit_to_uint8(x: Array) -> jax.Array:
    """[0, 1] to 0..255: clipped, times 255, truncated (EDM2, for decoded latents).

    Truncation darkens by half a level on average, as it does in the published numbers.

    Example:
      >>> unit_to_uint8(jnp.array([-0.5, 0.5, 0.999, 1.0])).tolist()
      [0, 127, 254, 255]
    """
    return (jnp.clip(jnp.asarray(x), 0, 1) * 255).astype(jnp.uint8)


@dataclasses.dataclass(frozen=True)
class PixelRange:
    """One convention of pixels as numbers."""

    interval: str  # its name in a manifest
    rule: str  # what to_uint8 does, in words for a number's protocol
    from_uint8: Callable[[Array], jax.Array]
    to_uint8: Callable[[Array], jax.Array]


# An autoencoder is trained in one range; latents can be made in another, as EDM2's are.
PIXEL_RANGES = {
    "pm1": PixelRange("[-1,1]", "127.5x+128, truncated", pm1_from_uint8, pm1_to_uint8),
    "unit": PixelRange("[0,1]", "255x, truncated", unit_from_uint8, unit_to_uint8),
}


def by_interval(interval: str) -> PixelRange:
    """The convention whose ``interval`` this is, such as ``[-1,1]``."""
    known = {pixels.interval: pixels for pixels in PIXEL_RANGES.values()}
    return lookup(known, interval, "pixel_range")
