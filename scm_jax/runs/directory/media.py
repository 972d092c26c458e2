"""Images, clips and sound as grids, files and sources of HTML tags."""

from __future__ import annotations

import base64
import html
import io
import math
import os
import textwrap
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from scm_jax.files.optional import require
from scm_jax.types import lookup

if TYPE_CHECKING:
    import PIL.Image


def captioned_grid(
    pixels: np.ndarray, texts: Sequence[str], columns: int | None = None
) -> PIL.Image.Image:
    """Images side by side, each with its text below.

    Args:
      pixels: ``(n, h, w, c)`` uint8; small images are enlarged by a whole factor to at
        least 128 pixels.
      texts: one for each image; cut after four lines.
      columns: images in a row; by default about as many as rows, at most 8.
    """
    import PIL.Image
    import PIL.ImageDraw

    pixels = check_pixels(pixels)
    scale = max(1, -(-128 // pixels.shape[2]))
    columns = columns or min(8, math.ceil(math.sqrt(len(pixels))))
    tiles = pixels.repeat(scale, axis=1).repeat(scale, axis=2)
    h, w, gap, line = *tiles.shape[1:3], 8, 12
    wrapped = [textwrap.wrap(text, w // 6, max_lines=4) or [""] for text in texts]
    height = h + gap + line * max(map(len, wrapped))
    rows = -(-len(tiles) // columns)
    size = (columns * (w + gap) - gap, rows * height)
    sheet = PIL.Image.new("RGB", size, "white")
    draw = PIL.ImageDraw.Draw(sheet)
    for i, (tile, lines) in enumerate(zip(tiles, wrapped, strict=True)):
        x, y = i % columns * (w + gap), i // columns * height
        sheet.paste(
            PIL.Image.fromarray(tile.squeeze(-1) if len(tile.T) == 1 else tile), (x, y)
        )
        for number, text in enumerate(lines):
            draw.text((x, y + h + line * number), text, fill="black")
    return sheet


def image_grid(
    pixels: np.ndarray, columns: int | None = None, scale: int = 4
) -> PIL.Image.Image:
    """Images side by side, each pixel a square of ``scale``: small digits stay sharp.

    Args:
      pixels: ``(n, h, w, c)`` uint8 with one or three channels, ``n >= 1``; clips
        ``(n, t, h, w, c)`` become a contact sheet, a row for each.
      columns: images in a row; by default about as many as rows.
      scale: side of an enlarged pixel.

    Returns:
      A PIL image, row by row from the upper left, with thin grey lines between.
    """
    import PIL.Image

    columns = columns or (np.shape(pixels)[1] if np.ndim(pixels) == 5 else None)
    pixels = check_pixels(pixels)
    columns = columns or math.ceil(math.sqrt(len(pixels)))
    if columns < 1 or scale < 1:
        raise ValueError(f"{columns=} and {scale=} must be at least 1")
    tiles = pixels.repeat(scale, axis=1).repeat(scale, axis=2)
    n, h, w, c = tiles.shape
    rows, gap = -(-n // columns), 2
    cells = np.full((rows * columns, h + gap, w + gap, c), 112, np.uint8)
    cells[:n, :h, :w] = tiles
    cells = cells.reshape(rows, columns, h + gap, w + gap, c).swapaxes(1, 2)
    sheet = cells.reshape(rows * (h + gap), -1, c)[:-gap, :-gap]
    return PIL.Image.fromarray(sheet[..., 0] if c == 1 else sheet)


# Without loss, of GIF up to 256 colours; MP4 needs the extra ``video``.
ANIMATIONS = {".gif": "GIF", ".webp": "WEBP", ".apng": "PNG", ".mp4": "MP4"}
# H.264 blurs single pixels: noise of 16x16 came back with a mean error of 46 levels of
# 255, and enlarged 8 times with 2.4.
MP4_SCALE = 8


def animation(
    pixels: np.ndarray,
    rate: float,
    suffix: str,
    columns: int | None = None,
    scale: int = 4,
) -> bytes:
    """Clips side by side as one file, shown endlessly: see ``image_grid``.

    The sides of an MP4 are even: where a grid has an odd one, it is repeated once.

    Args:
      pixels: ``(n, t, h, w, c)`` uint8.
      rate: frames per second.
      suffix: a key of ``ANIMATIONS``.
      columns: clips in a row.
      scale: side of an enlarged pixel.
    """
    kind = lookup(ANIMATIONS, suffix, "animation")
    if kind == "MP4":
        scale = max(scale, MP4_SCALE)
    frames = [image_grid(frame, columns, scale) for frame in pixels.swapaxes(0, 1)]
    if kind == "MP4":
        return _mp4([np.array(frame.convert("RGB")) for frame in frames], rate)
    buffer, (first, *rest) = io.BytesIO(), frames
    how = {"save_all": True, "append_images": rest, "duration": round(1000 / rate)}
    first.save(buffer, kind, loop=0, lossless=True, **how)
    return buffer.getvalue()


def _mp4(frames: Sequence[np.ndarray], rate: float) -> bytes:
    """RGB frames of one size as H.264, read back to see that all of them are there."""
    av = require("av", "an MP4", "scm_jax[video]")
    h, w, _ = frames[0].shape
    even = [np.pad(f, ((0, h % 2), (0, w % 2), (0, 0)), "edge") for f in frames]
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as file:
        stream = file.add_stream("libx264", Fraction(rate).limit_denominator(1001))
        stream.height, stream.width = even[0].shape[:2]
        stream.pix_fmt, stream.options = "yuv420p", {"crf": "10"}
        for frame in even:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode())
    with av.open(io.BytesIO(buffer.getvalue())) as file:
        shapes = [
            frame.to_ndarray(format="rgb24").shape for frame in file.decode(video=0)
        ]
    if shapes != [frame.shape for frame in even]:
        raise ValueError(
            f"an MP4 of {len(even)} frames {even[0].shape} came back as {len(shapes)} "
            f"frames {sorted(set(shapes))}: write .webp, or another release of PyAV"
        )
    return buffer.getvalue()


def read_frames(path: str | os.PathLike, channels: int) -> np.ndarray:
    """The frames of an image or clip, uint8 ``(k, h, w, channels)``.

    Args:
      path: what Pillow reads, ``.npy`` of such an array, a video (extra ``video``).
      channels: 1 for grey, 3 for RGB.

    Raises:
      ValueError: no such file can be read.
    """
    mode, suffix = {1: "L", 3: "RGB"}[channels], Path(path).suffix.lower()
    if suffix == ".npy":
        return np.load(path)
    if suffix in (".mp4", ".webm", ".mkv", ".mov"):
        av = require("av", "reading a video", "scm_jax[video]")
        with av.open(path) as file:
            shown = [frame.to_image().convert(mode) for frame in file.decode(video=0)]
    else:
        import PIL.Image
        import PIL.ImageSequence

        try:
            with PIL.Image.open(path) as image:
                frames = PIL.ImageSequence.Iterator(image)
                shown = [frame.convert(mode) for frame in frames]
        except PIL.UnidentifiedImageError as error:
            raise ValueError(f"{path} is no image or clip: {error}") from error
    return np.stack([np.asarray(frame) for frame in shown]).reshape(
        len(shown), *np.shape(shown[0])[:2], channels
    )


GAP = 0.25  # seconds of silence between clips in one file


def wav_bytes(sounds: np.ndarray, rate: int) -> bytes:
    """One WAV file of 16 bits: clips one after the other, with gaps between.

    Args:
      sounds: ``(n, samples)`` or ``(n, samples, channels)`` in [-1, 1]; what is beyond
        is clipped.
      rate: samples per second.
    """
    import scipy.io.wavfile

    levels = np.round(np.clip(sounds, -1, 1) * 32767).astype(np.int16)
    gap = np.zeros_like(levels[0], shape=(round(GAP * rate), *levels.shape[2:]))
    pieces = [piece for clip in levels for piece in (gap, clip)][1:]
    buffer = io.BytesIO()
    scipy.io.wavfile.write(buffer, rate, np.concatenate(pieces))
    return buffer.getvalue()


def players(
    pixels: np.ndarray, sounds: np.ndarray, rate: int, texts: Sequence[str] = ()
) -> str:
    """HTML with a spectrogram and an audio player for each clip, and its text.

    Args:
      pixels: ``(n, h, w, 1)`` uint8.
      sounds: ``(n, samples)``.
      rate: samples per second.
      texts: one for each clip, or none.
    """
    shown = []
    for i, sound in enumerate(sounds):
        picture = png_uri(
            image_grid(pixels[i : i + 1], scale=max(1, 128 // pixels.shape[1]))
        )
        source = data_uri(wav_bytes(sound[None], rate), "audio/wav")
        text = html.escape(texts[i]) if texts else f"clip {i}"
        shown.append(
            "<figure style='display: inline-block; margin: 0.3rem'>"
            f"<img alt='{text}' src='{picture}'><br>"
            f"<audio controls style='width: 8rem' src='{source}'></audio>"
            f"<figcaption>{text}</figcaption></figure>"
        )
    return "".join(shown)


def data_uri(data: bytes, kind: str) -> str:
    """A file as the source of an HTML tag; ``kind`` as in ``image/png``."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def png_bytes(image: PIL.Image.Image) -> bytes:
    """The bytes of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def png_uri(image: PIL.Image.Image) -> str:
    """An image as the source of an HTML tag."""
    return data_uri(png_bytes(image), "image/png")


def check_pixels(pixels: np.ndarray) -> np.ndarray:
    """Images ``(n, h, w, c)``, or the frames of clips one after the other.

    Raises:
      ValueError: another shape or type.
    """
    pixels = np.asarray(pixels)
    if pixels.ndim == 5:
        pixels = pixels.reshape(-1, *pixels.shape[2:])
    legal = pixels.ndim == 4 and len(pixels) and pixels.shape[-1] in (1, 3)
    if not legal or pixels.dtype != np.uint8:
        raise ValueError(
            "images must be (n, h, w, c) uint8 with one or three channels, not "
            f"{pixels.shape} {pixels.dtype}"
        )
    return pixels
