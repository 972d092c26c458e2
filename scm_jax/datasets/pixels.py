"""Pixels as numbers and numbers as pixels: the conventions, by name.

Metrics on images depend on how numbers become uint8: the published ones are measured
with these rules. All functions take and return numpy or JAX arrays and can be traced.
"""

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

    Truncation darkens by half a level on average. It is part of the published numbers.

    Example:
      >>> unit_to_uint8(jnp.array([-0.5, 0.5, 0.999, 1.0])).tolist()
      [0, 127, 254, 255]
    """
    return (jnp.clip(jnp.asarray(x), 0, 1) * 255).astype(jnp.uint8)


@dataclasses.dataclass(frozen=True)
class PixelRange:
    """One convention of pixels as numbers.

    Attributes:
      interval: what it is called in a manifest.
      rule: what ``to_uint8`` does, as it stands in a number's protocol.
      from_uint8: 0..255 to float32.
      to_uint8: back, clipped.
    """

    interval: str
    rule: str
    from_uint8: Callable[[Array], jax.Array]
    to_uint8: Callable[[Array], jax.Array]


# An autoencoder is trained in one range; latents can be made in another, as EDM2's are.
PIXEL_RANGES = {
    "pm1": PixelRange("[-1,1]", "127.5x+128, truncated", pm1_from_uint8, pm1_to_uint8),
    "unit": PixelRange("[0,1]", "255x, truncated", unit_from_uint8, unit_to_uint8),
}


def by_interval(interval: str) -> PixelRange:
    """The convention whose ``interval`` this is, such as ``[-1,1]``.

    Raises:
      ValueError: there is none.
    """
    known = {pixels.interval: pixels for pixels in PIXEL_RANGES.values()}
    return lookup(known, interval, "pixel_range")
