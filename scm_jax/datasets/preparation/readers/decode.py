"""From the bytes of an image or of a latent to an array."""

from __future__ import annotations

import io
import zlib
from typing import Any

import numpy as np

from scm_jax.datasets.preparation.readers.items import MAX_PIXELS, ItemError, damaged

SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pnm", ".jfif", ".jpe", ".avif"),
)
VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi")
SOUND_SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3")
# 16 bits a pixel, in either byte order, and what Pillow reads some of them as.
_DEEP_GREY = ("I;16", "I;16L", "I;16B", "I;16N", "I")
# What damaged files make Pillow raise.
_DAMAGE = (
    *(OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError),
    *(OverflowError, zlib.error),
)


def is_image(name: str) -> bool:
    """Whether a file's name is that of an image.

    Example:
      >>> is_image("n01440764/n01440764_10026.JPEG"), is_image("a/README.md")
      (True, False)
    """
    return name.lower().endswith(SUFFIXES)


def decode_image(
    content: bytes, where: str, *, channels: int = 3, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """Decodes an image file to uint8 ``(h, w, channels)``.

    Pillow converts everything to RGB: palettes are looked up, CMYK becomes
    ``255 - min(255, c + k)`` without colour profiles, grey is repeated, and
    transparency is dropped, so that the colour below it counts. Grey of 16 bits is
    divided by 257 and rounded (Pillow would clip it); 16 bits a channel lose their
    lower byte. The first frame counts, and EXIF orientation does not, as in ADM and
    EDM2. Grey (``channels`` 1) is ``0.299 r + 0.587 g + 0.114 b``. ``where`` names file
    and item in messages.

    Raises:
      ItemError: it does not decode, is cut off, has more than ``max_pixels``, or a
        number format without an obvious range.
    """
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None  # in its place the check below, which says the flag
    what = f"{where}: the image does not decode, it is damaged or cut off"
    with damaged(what, _DAMAGE, ItemError), Image.open(io.BytesIO(content)) as image:
        width, height = image.size
        if width * height > max_pixels:
            raise ItemError(
                f"{where}: the image has {width:,} x {height:,} pixels, more than "
                f"--max_pixels={max_pixels}; raise this to read it"
            )
        image.load()
        pixels = _to_rgb(image)
    return to_channels(pixels, channels)


def _to_rgb(image: Any) -> np.ndarray:
    """``(h, w, 3)``, or ``(h, w, 1)`` of images that are grey."""
    if image.mode in _DEEP_GREY:
        levels = np.asarray(image).astype(np.int64)
        if levels.min() < 0 or levels.max() > 65535:
            raise ValueError(
                f"its pixels are in {levels.min()}..{levels.max()}; legal are 0..65535"
            )
        return ((levels + 128) // 257).astype(np.uint8)[..., None]
    if image.mode == "F":
        raise ValueError("its pixels are floats; legal are whole numbers")
    if image.mode == "L":
        return np.array(image)[..., None]
    if "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns where a palette loses it at once
    return np.array(image.convert("RGB"))


def to_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """uint8 ``(h, w, 1 or 3)`` with the wanted number of channels, see above."""
    from PIL import Image

    if pixels.shape[-1] == channels:
        return pixels
    if channels == 3:
        return np.repeat(pixels, 3, axis=-1)
    return np.array(Image.fromarray(pixels).convert("L"))[..., None]


def decode_latent(content: bytes, where: str) -> np.ndarray:
    """A latent of an EDM2 archive as float32 ``(h, w, c)``.

    The file is ``.npy``, float32 ``(c, h, w)``, the means of the posterior before its
    standard deviations.

    Raises:
      ItemError: it is no such array, or a value is not finite.
    """
    with damaged(f"{where}: not a numpy array, or cut off", _DAMAGE, ItemError):
        latent = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    if latent.ndim != 3 or latent.dtype != np.float32:
        raise ItemError(
            f"{where}: the latent is {latent.dtype} {latent.shape}; expected "
            "float32 (channels, height, width)"
        )
    if not np.isfinite(latent).all():
        raise ItemError(f"{where}: the latent has values that are not finite")
    return np.ascontiguousarray(latent.transpose(1, 2, 0))
