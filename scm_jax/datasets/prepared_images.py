"""Images of any prepared dataset: shape, classes and moments are in its manifest.

Prepared by ``python -m scm_jax data prepare``; ``data/README.md`` says how.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scm_jax.datasets import images, pipeline, storage
from scm_jax.types import DatasetInfo, lookup

SIGMA_DATA = images.SIGMA_DATA
SCALINGS = {
    "unit": "pixels in [-1, 1]",
    "measured": "each channel with mean 0 and standard deviation 0.5",
}


def make_images(
    split: str = "train",
    *,
    root: str | os.PathLike[str] | None = None,
    prepare: bool = False,
    prepared: str = "",
    conditional: bool = True,
    flip: bool = False,
    scaling: str = "unit",
) -> pipeline.LazyDataset:
    """Images that were prepared under some name.

    Args:
      split: one of the prepared splits, or a slice such as ``train[:90%]``.
      root: folder of prepared datasets, by default ``storage.default_root()``.
      prepare: without effect; the data have to be there.
      prepared: name of the prepared dataset, such as ``flowers``.
      conditional: give the classes, too, where there are any.
      flip: mirror half of the images, anew in every epoch.
      scaling: ``unit``: pixels in [-1, 1] as they are, EDM's convention, which takes
        their standard deviation to be 0.5; or ``measured``: each channel shifted and
        scaled to mean 0 and standard deviation 0.5 by the moments of the prepared
        split ``train`` (of the given one where there is no ``train``).

    Raises:
      FileNotFoundError: not prepared; the message has the command that does it.
      ValueError: no such split or scaling, or the prepared data are no images.
    """
    del prepare
    lookup(SCALINGS, scaling, "dataset.scaling")
    root = storage.data_root(root)
    manifest = read_manifest(prepared, root)
    if manifest["field"] != "image":
        raise ValueError(
            f"dataset.prepared = {prepared!r} holds {manifest['field']}s; 'images' "
            "reads images"
        )
    base = split.split("[", 1)[0]
    lookup(manifest["splits"], base, f"split of the prepared dataset {prepared!r}")
    counts = {name: part["count"] for name, part in manifest["splits"].items()}
    labelled = conditional and manifest["num_classes"] > 0
    moments = manifest["splits"].get("train", manifest["splits"][base])
    info = images.image_info(
        prepared,
        tuple(manifest["shape"]),
        manifest["num_classes"] if labelled else 0,
        description=f"{prepared}: {SCALINGS[scaling]}",
    )
    build = functools.partial(images.image_dataset, flip=flip)
    if scaling == "measured":
        measured = Scaling(moments["mean"], moments["std"])
        info = measured.describe(info)
        build = functools.partial(_scaled_dataset, flip=flip, measured=measured)
    return images.make_prepared(
        info,
        split,
        counts,
        root,
        f"image uint8 {info.sample_shape}",
        ("image", "label") if labelled else ("image",),
        build,
        folder=prepared,
    )


def read_manifest(name: str, root: Path) -> dict[str, Any]:
    """The manifest of a prepared dataset.

    Raises:
      FileNotFoundError: it is not prepared; the message has the command.
      ValueError: no name.
    """
    there = sorted(file.parent.parent.name for file in root.glob("*/*/manifest.json"))
    if not name:
        raise ValueError(
            "dataset.prepared is the name of a prepared dataset; there are "
            f"{there or 'none'} in {root}"
        )
    try:
        folder = storage.prepared_folder(name, root)
        return json.loads((folder / "manifest.json").read_text())
    except FileNotFoundError:
        raise FileNotFoundError(
            f"the dataset {name!r} is not prepared in {root}, where there are "
            f"{there or 'none'}. Prepare it from images with `python -m scm_jax data "
            f"prepare --name={name} --source=PATH --size=64 "
            f"--recipe=center_crop_dhariwal --root={root}`, or name another folder in "
            "dataset.root or the environment variable SCM_JAX_DATA"
        ) from None


class Scaling:
    """Levels 0..255 -> mean 0 and standard deviation 0.5 in each channel, and back.

    Args:
      mean: per channel, of pixels in [-1, 1].
      std: likewise.

    Raises:
      ValueError: a channel has one value only.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        if min(std) <= 0:
            raise ValueError(
                f"dataset.scaling = 'measured' with standard deviations {list(std)}: a "
                "channel has one value only"
            )
        self._offset = np.float32(255) * (1 + np.array(mean, np.float32))
        self._scale = np.float32(SIGMA_DATA / 255) / np.array(std, np.float32)

    def to_x(self, image: Any) -> Any:
        """The same bits for numpy and JAX arrays: no product is added to anything."""
        channels = (None,) * (image.ndim - 1)
        doubled = image.astype(np.float32) * np.float32(2)  # exact
        return (doubled - self._offset[channels]) * self._scale[channels]

    def to_pixels(self, x: np.ndarray) -> np.ndarray:
        levels = (np.asarray(x) / self._scale + self._offset) / 2
        return images.to_pixels(levels / 127.5 - 1)

    def describe(self, info: DatasetInfo) -> DatasetInfo:
        """``info`` with the way back to pixels."""
        return dataclasses.replace(info, to_pixels=self.to_pixels)


def _scaled_dataset(
    info: DatasetInfo,
    source: pipeline.Source,
    folder: Path,
    *,
    flip: bool,
    measured: Scaling,
) -> pipeline.FiniteDataset:
    """As ``images.image_dataset``, scaled by measured moments."""
    del folder

    def decode(fields: pipeline.Fields) -> tuple[Any, Any]:
        image = images.stored(fields, "image", ("uint8",), info.name)
        label = images.stored_label(fields, info.name) if info.num_classes else None
        return measured.to_x(image), label

    randomize = images.flip_at_random if flip else None
    return pipeline.FiniteDataset(info, source, decode, randomize)
