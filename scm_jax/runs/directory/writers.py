"""Where metrics go: JSON lines and PNG files always, TensorBoard or clu if asked.

The methods have clu's names; ``clu.metric_writers`` itself imports TensorFlow. Analysis
reads only the JSON lines.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from scm_jax.files.atomic import replacing
from scm_jax.files.jsonl import encode_row, flatten, mend_tail
from scm_jax.files.optional import require
from scm_jax.runs.directory.media import check_pixels, image_grid
from scm_jax.types import lookup

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
            pixels = check_pixels(pixels)
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
        checked = {name: check_pixels(pixels) for name, pixels in images.items()}
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


def _spread(arrays: Mapping[str, Any]) -> dict[str, Any]:
    return {
        f"{name}/{i:02d}": value
        for name, array in arrays.items()
        for i, value in enumerate(np.ravel(array))
    }


def _hparam(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str) else json.dumps(value)


# Name -> what makes it from the run directory and the restored step.
WRITERS: dict[str, Callable[[Path, int | None], MetricWriter]] = {
    "jsonl": lambda run, step: JsonlWriter(run / "metrics.jsonl", resume_step=step),
    "png": lambda run, _: PngWriter(run / "samples"),
    "tensorboard": lambda run, step: TensorBoardWriter(run / "events", step),
    "clu": lambda run, _: CluWriter(run / "events"),
}
