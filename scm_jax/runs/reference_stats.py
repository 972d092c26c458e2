"""Reference statistics of datasets: where they are kept, and how they are measured."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from scm_jax.datasets import DATASETS, identity, make_dataset, storage
from scm_jax.datasets.pipeline import Dataset
from scm_jax.datasets.preparation.progress import Progress
from scm_jax.evaluation.features.extraction import FeatureNet
from scm_jax.evaluation.references import accumulate

BATCH = 256
# Items that tell two datasets of one name apart.
_PROBES = 64


def open_dataset(
    name: str, split: str, root: str | os.PathLike[str] | None = None
) -> Dataset:
    """A dataset by its name: a key of ``DATASETS``, or the name of a prepared one."""
    if name in DATASETS:
        return make_dataset(name, split, root=root, prepare=True)
    return make_dataset("images", split, root=root, prepared=name)


def _image_info(dataset: Dataset) -> Any:
    """``dataset.info`` once its data are there."""
    info = getattr(dataset, "opened", dataset).info
    if info.whitening is not None:
        raise ValueError(
            f"dataset {info.name!r} holds latents, and its reference is of the images: "
            "give the file of their statistics in eval.reference or --reference"
        )
    if info.to_pixels is None or not info.num_items:
        raise ValueError(f"dataset {info.name!r} holds no images to take features of")
    return info


def fingerprint(dataset: Any) -> str:
    """Ten hexadecimal digits of the data: their count, 64 items, and their files."""
    info = _image_info(dataset)
    rows = np.linspace(0, info.num_items - 1, min(_PROBES, info.num_items))
    pixels = info.to_pixels(dataset.items(rows.astype(np.int64))[0])
    digest = hashlib.sha256(f"{info.num_items} {pixels.shape}".encode())
    digest.update(np.ascontiguousarray(pixels).tobytes())
    if (stored := identity.of_dataset(dataset)) is not None:
        digest.update(stored.sha256.encode())
    return digest.hexdigest()[:10]


def default_path(
    dataset: Dataset, net: FeatureNet, root: str | os.PathLike[str] | None = None
) -> Path:
    """Where the statistics of a dataset in the features of a network are kept."""
    folder = storage.data_root(root or None)
    name = f"{_image_info(dataset).name}-{fingerprint(dataset)}"
    return folder / "stats" / f"{name}-{net.name}-{net.weights_sha256[:10]}.npz"


def measure(
    dataset: Any,
    net: FeatureNet,
    path: Path,
    process_index: int = 0,
    process_count: int = 1,
) -> bool:
    """``accumulate.measure_reference`` of all items, unless ``path`` is there."""
    if path.is_file():
        return True
    info = _image_info(dataset)
    say = Progress(f"{info.name} in {net.name}", info.num_items)

    def images(first: int, end: int) -> Iterator[np.ndarray]:
        for start in range(first, end, BATCH):
            rows = np.arange(start, min(start + BATCH, end))
            yield info.to_pixels(dataset.items(rows)[0])
            say.add(len(rows))

    whole = accumulate.measure_reference(
        net,
        images,
        info.num_items,
        path,
        info.name,
        {"fingerprint": fingerprint(dataset)},
        process_index=process_index,
        process_count=process_count,
    )
    say.end()
    return whole
