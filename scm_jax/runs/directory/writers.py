"""Where metrics go: JSON lines and PNG files always, TensorBoard or clu if asked.

The methods have clu's names; ``clu.metric_writers`` itself imports TensorFlow. Analysis
reads only the JSON lines.
"""

from __future__ import annotations

import base64
import contextlib
import importlib
import io
import json
import math
import os
import textwrap
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scm_jax.files.atomic import replacing
from scm_jax.files.jsonl import encode_row, flatten, mend_tail
from scm_jax.files.optional import require
from scm_jax.types import lookup

if TYPE_CHECKING:
    import PIL.Image

# What a row says about itself; metrics may not use these names.
ROW_KEYS = ("step", "wall_time", "resume_step", "nonfinite")

# A list in a row is for a few bins, not for data; beyond this it is a mistake.
MAX_LIST = 4096


class MetricWriter:
    """clu's ``MetricWriter`` as far as it is used, and ``write_arrays``.

    ``step`` counts optimizer steps. Scalars are Python numbers or arrays of shape
    ``()``, images are ``(n, h, w, c)`` uint8 with one or three channels, or clips with
    their frames in a second axis. The methods here do nothing: a writer records what it
    can and ignores the rest.
    """

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Writes numbers by name."""

    def write_arrays(self, step: int, arrays: Mapping[str, Any]) -> None:
        """Writes short lists by name, such as one value per time bin."""

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Writes batches of images by name."""

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Writes Markdown by name."""

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Writes the config, nested or flat."""

    def flush(self) -> None:
        """Puts everything written so far on disk."""

    def close(self) -> None:
        """Flushes and ends; a second call does nothing."""


def make_writer(
    names: Iterable[str],
    directory: str | os.PathLike,
    *,
    resume_step: int | None = None,
) -> MultiWriter:
    """The writers of a run.

    Args:
      names: keys of ``WRITERS``; ``jsonl`` and ``png`` are always among them.
      directory: the run directory.
      resume_step: the step a checkpoint was restored at, None for a fresh start.

    Raises:
      ValueError: a name is unknown.
      ImportError: a named writer needs a package that is not installed.
    """
    run = Path(directory)
    unique = dict.fromkeys(("jsonl", "png", *names))
    factories = [lookup(WRITERS, name, "log.writers") for name in unique]
    with contextlib.ExitStack() as opened:
        writers = [
            opened.enter_context(contextlib.closing(factory(run, resume_step)))
            for factory in factories
        ]
        opened.pop_all()  # nothing failed, so all stay open
    return MultiWriter(writers)


class JsonlWriter(MetricWriter):
    """One JSON object a line, appended; the file that analysis reads.

    A row has ``step``, ``wall_time`` (seconds since 1970) and its values; NaN becomes
    null (``encode_row``). After a resume a marker row holds the restored step: readers
    drop the rows beyond it that the earlier attempt wrote.
    """

    def __init__(self, path: str | os.PathLike, *, resume_step: int | None = None):
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        mend_tail(path)
        self._file = path.open("a", buffering=1, encoding="utf-8")
        if resume_step is not None:
            marker = {"resume_step": int(resume_step), "wall_time": time.time()}
            self._file.write(json.dumps(marker) + "\n")

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        for name, value in scalars.items():
            if np.ndim(value):
                raise ValueError(
                    f"metric {name!r} has shape {np.shape(value)}: a scalar is needed; "
                    "lists go through write_arrays"
                )
        self._write(step, scalars)

    def write_arrays(self, step: int, arrays: Mapping[str, Any]) -> None:
        for name, value in arrays.items():
            if np.size(value) > MAX_LIST:
                raise ValueError(
                    f"metric {name!r} has {np.size(value)} elements; "
                    f"at most {MAX_LIST} are written as a list"
                )
        self._write(step, {name: np.asarray(value) for name, value in arrays.items()})

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        self._write(step, texts)

    def flush(self) -> None:
        if not self._file.closed:
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self.flush()
        self._file.close()

    def _write(self, step: int, values: Mapping[str, Any]) -> None:
        if taken := sorted(set(ROW_KEYS) & set(values)):
            raise ValueError(f"metrics may not be named {taken}: rows use these names")
        row = {"step": int(step), "wall_time": time.time(), **values}
        self._file.write(json.dumps(encode_row(row), allow_nan=False) + "\n")


class PngWriter(MetricWriter):
    """Images as one PNG grid each, ``NAME_STEP.png``; all else is ignored."""

    def __init__(self, directory: str | os.PathLike):
        self._directory = Path(directory)

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        for name, pixels in images.items():
            stem = f"{name.replace('/', '_')}_{int(step):08d}"
            with replacing(self._directory / f"{stem}.png") as unfinished:
                image_grid(pixels).save(unfinished, format="PNG")


class TensorBoardWriter(MetricWriter):
    """TensorBoard event files through tensorboardX, without TensorFlow.

    A list becomes one scalar per element, ``NAME/00`` and on. After a resume,
    TensorBoard hides what the earlier attempt wrote beyond ``resume_step``.
    """

    def __init__(self, directory: str | os.PathLike, resume_step: int | None = None):
        module = require("tensorboardX", "log.writers = 'tensorboard'", "tensorboardX")
        # TensorBoard purges from this step on, and the restored step itself stays.
        purge_step = None if resume_step is None else int(resume_step) + 1
        self._writer = module.SummaryWriter(str(directory), purge_step=purge_step)
        for name in ("flush", "close"):
            vars(self)[name] = getattr(self._writer, name)

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, float(np.asarray(value)), int(step))

    def write_arrays(self, step: int, arrays: Mapping[str, Any]) -> None:
        self.write_scalars(step, _spread(arrays))

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        for name, pixels in images.items():
            pixels = _check_pixels(pixels)
            self._writer.add_images(name, pixels, int(step), dataformats="NHWC")

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        for name, text in texts.items():
            self._writer.add_text(name, text, int(step))

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        # add_hparams would put them into a folder of their own, as a second run.
        summary = importlib.import_module("tensorboardX.summary")
        for part in summary.hparams(flatten(hparams, leaf=_hparam), {}):
            self._writer.file_writer.add_summary(part)


class CluWriter(MetricWriter):
    """clu's own default writer; needs TensorFlow, so the extra ``tf``."""

    def __init__(self, directory: str | os.PathLike):
        module = require("clu.metric_writers", "log.writers = 'clu'", "scm_jax[tf]")
        self._writer = module.create_default_writer(str(directory))
        for name in ("write_scalars", "write_texts", "flush", "close"):
            vars(self)[name] = getattr(self._writer, name)

    def write_arrays(self, step: int, arrays: Mapping[str, Any]) -> None:
        self._writer.write_scalars(step, _spread(arrays))

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        checked = {name: _check_pixels(pixels) for name, pixels in images.items()}
        self._writer.write_images(step, checked)

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        self._writer.write_hparams(flatten(hparams, leaf=_hparam))


def _to_each(method: str) -> Any:
    def call(self: MultiWriter, *args: Any) -> None:
        for writer in self.writers:
            getattr(writer, method)(*args)

    return call


class MultiWriter(MetricWriter):
    """Passes every call on to each of its writers, in order."""

    def __init__(self, writers: Iterable[MetricWriter]):
        self.writers = tuple(writers)

    write_scalars = _to_each("write_scalars")
    write_arrays = _to_each("write_arrays")
    write_images = _to_each("write_images")
    write_texts = _to_each("write_texts")
    write_hparams = _to_each("write_hparams")
    flush = _to_each("flush")
    close = _to_each("close")


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

    pixels = _check_pixels(pixels)
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
    pixels = _check_pixels(pixels)
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


# Without loss, at least up to 256 colours; MP4 would blur frames this small.
ANIMATIONS = {".gif": "GIF", ".webp": "WEBP", ".apng": "PNG"}


def animation(
    pixels: np.ndarray,
    rate: float,
    suffix: str,
    columns: int | None = None,
    scale: int = 4,
) -> bytes:
    """Clips side by side as one file, endlessly: see ``image_grid``.

    Args:
      pixels: ``(n, t, h, w, c)`` uint8.
      rate: frames per second.
      suffix: a key of ``ANIMATIONS``.
      columns: clips in a row.
      scale: side of an enlarged pixel.
    """
    first, *rest = (
        image_grid(frame, columns, scale) for frame in pixels.swapaxes(0, 1)
    )
    buffer, kind = io.BytesIO(), lookup(ANIMATIONS, suffix, "animation")
    how = {"save_all": True, "append_images": rest, "duration": round(1000 / rate)}
    first.save(buffer, kind, loop=0, lossless=True, **how)
    return buffer.getvalue()


def data_uri(data: bytes, kind: str) -> str:
    """A file as the source of an HTML tag."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def png_bytes(image: PIL.Image.Image) -> bytes:
    """The bytes of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def png_uri(image: PIL.Image.Image) -> str:
    """An image as the source of an HTML tag."""
    return data_uri(png_bytes(image), "png")


def _spread(arrays: Mapping[str, Any]) -> dict[str, Any]:
    return {
        f"{name}/{i:02d}": value
        for name, array in arrays.items()
        for i, value in enumerate(np.ravel(array))
    }


def _hparam(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str) else json.dumps(value)


def _check_pixels(pixels: np.ndarray) -> np.ndarray:
    pixels = np.asarray(pixels)
    if pixels.ndim == 5:  # clips, frame by frame
        pixels = pixels.reshape(-1, *pixels.shape[2:])
    legal = pixels.ndim == 4 and len(pixels) and pixels.shape[-1] in (1, 3)
    if not legal or pixels.dtype != np.uint8:
        raise ValueError(
            "images must be (n, h, w, c) uint8 with one or three channels, not "
            f"{pixels.shape} {pixels.dtype}"
        )
    return pixels


# Name -> what makes it from the run directory and the restored step.
WRITERS: dict[str, Callable[[Path, int | None], MetricWriter]] = {
    "jsonl": lambda run, step: JsonlWriter(run / "metrics.jsonl", resume_step=step),
    "png": lambda run, _: PngWriter(run / "samples"),
    "tensorboard": lambda run, step: TensorBoardWriter(run / "events", step),
    "clu": lambda run, _: CluWriter(run / "events"),
}
