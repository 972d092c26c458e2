"""Reference statistics of data sets: where they are kept, and how they are measured."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from scm_jax.datasets import DATASETS, make_dataset, storage
from scm_jax.datasets.pipeline import Dataset
from scm_jax.evaluation import pretrained
from scm_jax.evaluation.extraction import FeatureNet

logger = logging.getLogger(__name__)

BATCH = 256
# Items that tell two data sets of one name apart.
_PROBES = 64


def open_dataset(
    name: str, split: str, root: str | os.PathLike[str] | None = None
) -> Dataset:
    """A data set by its name: of ``DATASETS``, or one that was prepared under it."""
    if name in DATASETS:
        return make_dataset(name, split, root=root, prepare=True)
    return make_dataset("images", split, root=root, prepared=name)


def pixel_batches(dataset: Dataset) -> Iterator[np.ndarray]:
    """All items in stored order as uint8 ``(n, h, w, c)``, no chance in it.

    Raises:
      ValueError: the items are no pictures.
    """
    info = _pictures(dataset)
    for start in range(0, info.num_items, BATCH):
        rows = np.arange(start, min(start + BATCH, info.num_items))
        yield info.to_pixels(dataset.items(rows)[0])


def _pictures(dataset: Dataset) -> Any:
    """What ``dataset`` says of itself once its data are there."""
    info = getattr(dataset, "opened", dataset).info
    if info.whitening is not None:
        raise ValueError(
            f"dataset {info.name!r} holds latents: its reference are the statistics of "
            "the images themselves; name their file in eval.reference or --reference"
        )
    if info.to_pixels is None or not info.num_items:
        raise ValueError(f"dataset {info.name!r} holds no pictures to take features of")
    return info


def fingerprint(dataset: Dataset) -> str:
    """Ten hexadecimal digits of the number of items and of the pixels of 64 of them."""
    info = _pictures(dataset)
    rows = np.linspace(0, info.num_items - 1, min(_PROBES, info.num_items))
    pixels = info.to_pixels(dataset.items(rows.astype(np.int64))[0])
    digest = hashlib.sha256(f"{info.num_items} {pixels.shape}".encode())
    digest.update(np.ascontiguousarray(pixels).tobytes())
    return digest.hexdigest()[:10]


def default_path(
    dataset: Dataset, net: FeatureNet, root: str | os.PathLike[str] | None = None
) -> Path:
    """Where the statistics of a data set in the features of a network are kept."""
    folder = Path(root).expanduser() if root else storage.default_root()
    name = f"{_pictures(dataset).name}-{fingerprint(dataset)}"
    return folder / "stats" / f"{name}-{net.name}-{net.weights_sha256[:10]}.npz"


def measure(dataset: Dataset, net: FeatureNet, path: Path) -> Path:
    """Writes the statistics of all items, unless they are there."""
    if path.is_file():
        return path
    info = _pictures(dataset)
    logger.warning(
        "measuring the statistics of %s images of %r with %s, once: %s",
        *(f"{info.num_items:,}", info.name, net.name, path),
    )
    started = time.monotonic()
    path.parent.mkdir(parents=True, exist_ok=True)
    notes = {"fingerprint": fingerprint(dataset)}
    images = pixel_batches(dataset)
    pretrained.measure_reference(net, images, info.num_items, path, info.name, notes)
    logger.warning("measured in %.0f s", time.monotonic() - started)
    return path
