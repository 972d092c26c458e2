"""Images or clips that were prepared; the manifest has shape, classes and moments."""

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
from scm_jax.datasets.captioned import with_captions
from scm_jax.types import lookup

SIGMA_DATA = images.SIGMA_DATA
SCALINGS = {
    "unit": "pixels in [-1, 1]",
    "measured": "each channel with mean 0 and standard deviation 0.5",
}


def make_images(
    split: str = "train",
    *,
    root: str | os.PathLike[str] | None = None,
    prepared: str = "",
    conditional: bool = True,
    flip: bool = False,
    scaling: str = "unit",
    captioned: bool = False,
    states: str = "",
) -> pipeline.LazyDataset:
    """Images, or clips of videos, that ``data prepare`` made under some name.

    Args:
      split: one of the prepared splits, or a slice such as ``train[:90%]``.
      root: folder of prepared datasets, by default ``storage.default_root()``.
      prepared: name of the prepared dataset, such as ``flowers``.
      conditional: give the classes, too, where there are any.
      flip: mirror half of the images, anew in every epoch.
      scaling: ``unit``: pixels in [-1, 1], EDM's convention, which takes their
        standard deviation to be 0.5; or ``measured``: each channel with mean 0 and
        standard deviation 0.5, by the moments of the prepared split ``train`` (of the
        given one where there is no ``train``).
      captioned: give the captions, too: tokens of all captions of an item, of which a
        visit draws one. Items without a caption have the null caption.
      states: name of what ``data encode-text`` stored of the captions, in place of
        tokens; with ``captioned``.

    Raises:
      FileNotFoundError: not prepared; the message has the command that does it.
      ValueError: no such split or scaling, or the prepared data are no images, or have
        no captions.
    """
    lookup(SCALINGS, scaling, "dataset.scaling")
    root = storage.data_root(root)
    manifest, base, counts = find_split(prepared, split, root, "image", "clip")
    labelled = conditional and manifest["num_classes"] > 0
    moments = manifest["splits"].get("train", manifest["splits"][base])
    info = images.image_info(
        prepared,
        tuple(manifest["shape"]),
        manifest["num_classes"] if labelled else 0,
        description=f"{prepared}: {SCALINGS[scaling]}",
    )
    field = manifest["field"]
    info = dataclasses.replace(info, frame_rate=manifest.get("frame_rate", 0.0))
    build: Any = functools.partial(images.image_dataset, flip=flip, field=field)
    wanted = (root, base), captioned, states
    info, build, beside = with_captions(info, build, manifest, *wanted)
    if scaling == "measured":
        measured = Scaling(moments["mean"], moments["std"])
        info = dataclasses.replace(
            info, to_pixels=measured.to_pixels, from_pixels=measured.to_x
        )
        build = functools.partial(build, to_x=measured.to_x)
    settings: Any = {"field": field, "beside": beside}
    return images.make_prepared(info, split, counts, root, build, **settings)


def find_split(
    prepared: str, split: str, root: Path, *fields: str
) -> tuple[dict[str, Any], str, dict[str, int]]:
    """The manifest, the split without its slice, and the items of every split."""
    manifest = read_manifest(prepared, root)
    if (found := manifest["field"]) not in fields:
        raise ValueError(
            f"dataset.prepared = {prepared!r} holds {found}s; {fields[0]}s were asked "
            "for: 'images' reads images and clips, 'sounds' sounds, 'latents' what "
            "`data encode` made of images"
        )
    base = split.split("[", 1)[0]
    lookup(manifest["splits"], base, f"split of the prepared dataset {prepared!r}")
    counts = {name: part["count"] for name, part in manifest["splits"].items()}
    return manifest, base, counts


def read_manifest(name: str, root: Path) -> dict[str, Any]:
    """The manifest of a prepared dataset; a FileNotFoundError lists those there are."""
    there = sorted(file.parent.parent.name for file in root.glob("*/*/manifest.json"))
    if not name:
        raise ValueError(
            "dataset.prepared is the name of a prepared dataset; there are "
            f"{there or 'none'} in {root}"
        )
    flags = f"--name={name} --source=PATH --size=64 --recipe=center_crop_dhariwal"
    more = f"; there are {there or 'none'} now"
    folder = storage.prepared_folder(name, root, flags=flags, more=more)
    return json.loads((folder / "manifest.json").read_text())


class Scaling:
    """Levels 0..255 -> mean 0 and standard deviation 0.5 in each channel, and back.

    ``mean`` and ``std`` are per channel, of pixels in [-1, 1].
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
