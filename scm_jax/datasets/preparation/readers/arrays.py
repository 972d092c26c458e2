"""Items that are stacked in arrays: npz, CIFAR-10 and ImageNet 64x64 as published.

Pickles are read as data (``state_dict.read_groups``): nothing in them is looked up or
called.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import os
import re
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from scm_jax.datasets.preparation.readers.decode import to_channels
from scm_jax.datasets.preparation.readers.items import Options, damaged
from scm_jax.datasets.preparation.readers.labels import number_labels
from scm_jax.files.state_dict import groups_in
from scm_jax.types import lookup

IMAGE_KEYS = ("images", "image", "arr_0", "data", "x")
LABEL_KEYS = ("labels", "label", "arr_1", "y")
CIFAR10_BATCHES = {
    "train": tuple(f"data_batch_{number}" for number in range(1, 6)),
    "test": ("test_batch",),
}
# The files of ImageNet 64x64, as pickles or as npz.
BATCHES = {"train": "train_data_batch_*", "validation": "val_data*"}

# What damaged files can raise; a wrong length can ask for more memory than there is.
_DAMAGE = (
    *(OSError, EOFError, KeyError, ValueError, RuntimeError, MemoryError),
    *(zlib.error, zipfile.BadZipFile),
)

# A file, and the member of CIFAR-10 that is read of it, or nothing.
Part = tuple[str, str]


@dataclasses.dataclass(frozen=True, eq=False)
class StackedItems:
    """Items in arrays in files; see ``Items`` for the methods."""

    parts: tuple[Part, ...]  # where each array is
    starts: np.ndarray  # (parts + 1,), the first item of each, and the number of all
    label: np.ndarray | None  # int64 (n,)
    class_names: tuple[str, ...]
    origin: dict[str, Any]
    channels: int

    def __len__(self) -> int:
        return int(self.starts[-1])

    def _find(self, index: int) -> tuple[Part, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        part = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self.parts[part], index - int(self.starts[part])

    def name(self, index: int) -> str:
        part, row = self._find(index)
        return f"{_where(*part)}: item {row}"

    def read(self, index: int) -> dict[str, np.ndarray]:
        part, row = self._find(index)
        images, _ = _load(part)
        fields = {"image": to_channels(images[row], self.channels).copy()}
        if self.label is not None:
            fields["label"] = self.label[index]
        return fields


def _where(path: str, part: str) -> str:
    return f"{path}: {part}" if part else path


_LOADING = threading.Lock()


def _load(part: Part) -> tuple[np.ndarray, np.ndarray | None]:
    """Images uint8 ``(n, h, w, 1 or 3)`` and labels ``(n,)`` of a part."""
    with _LOADING:  # so that threads do not read one file several times
        return _loaded(part)


# One array may be gigabytes; items are read in order, so two are enough.
@functools.lru_cache(maxsize=2)
def _loaded(part: Part) -> tuple[np.ndarray, np.ndarray | None]:
    where = _where(*part)
    content = _load_cifar10(*part) if part[1] else _load_file(part[0])
    image_key, label_key = _find_keys(content)
    if image_key is None:
        raise ValueError(
            f"{where}: has no array of images under {', '.join(IMAGE_KEYS)}; its keys "
            f"are {', '.join(map(repr, content))}"
        )
    images = _to_images(content[image_key], f"{where}: {image_key}")
    if label_key is None:
        return images, None
    labels = _to_numbers(content[label_key], f"{where}: {label_key}")
    if len(labels) != len(images):
        raise ValueError(
            f"{where}: has {len(labels)} labels for {len(images)} images; item "
            f"{min(len(labels), len(images))} has only one of them"
        )
    return images, labels


def _find_keys(content: Collection[str]) -> list[str | None]:
    return [
        next((key for key in keys if key in content), None)
        for keys in (IMAGE_KEYS, LABEL_KEYS)
    ]


def _to_images(values: Any, where: str) -> np.ndarray:
    shape = getattr(values, "shape", None)
    if shape is None or values.dtype != np.uint8:
        dtype = getattr(values, "dtype", type(values).__name__)
        raise ValueError(f"{where}: must be an array of uint8, it is {dtype}")
    if len(shape) == 2:  # the red, then the green, then the blue plane of each image
        side = round((shape[1] / 3) ** 0.5)
        if 3 * side**2 == shape[1]:
            return values.reshape(-1, 3, side, side).transpose(0, 2, 3, 1)
    elif len(shape) == 3:
        return values[..., None]
    elif len(shape) == 4 and shape[3] in (1, 3):
        return values
    elif len(shape) == 4 and shape[1] in (1, 3):
        return values.transpose(0, 2, 3, 1)
    raise ValueError(
        f"{where}: has the shape {shape}; legal are (n, h, w), (n, h, w, 1 or 3), "
        "(n, 1 or 3, h, w) and (n, 3 * s * s)"
    )


def _to_numbers(values: Any, where: str) -> np.ndarray:
    numbers = np.asarray(values)
    if numbers.ndim == 2 and numbers.shape[1] == 1:
        numbers = numbers[:, 0]
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
        raise ValueError(
            f"{where}: must be one whole number per item, it is {numbers.dtype} of "
            f"shape {numbers.shape}"
        )
    return numbers


def _make_items(
    parts: list[Part],
    origin: dict[str, Any],
    options: Options,
    class_names: tuple[str, ...] = (),
) -> StackedItems:
    counts: list[int] = []
    labels: list[int | None] = []
    for part in parts:
        images, numbers = _load(part)
        counts.append(len(images))
        labels += [None] * len(images) if numbers is None else numbers.tolist()
    if not labels:
        raise ValueError(f"{origin['path']}: holds no images")
    starts = np.cumsum([0, *counts])
    items = StackedItems(tuple(parts), starts, None, (), origin, options.channels)
    if class_names:
        options = dataclasses.replace(options, num_classes=len(class_names))
    label, numbered = number_labels(labels, items.name, origin["path"], options)
    names = class_names if label is not None and class_names else numbered
    return dataclasses.replace(items, label=label, class_names=names)


# --- npz and pickles of arrays --------------------------------------------------------


def read_arrays(path: Path, options: Options) -> StackedItems:
    """An npz or a pickle of stacked images, or a folder of such batches.

    Images are uint8 under ``images``, ``arr_0`` or ``data``, labels under ``labels`` or
    ``arr_1``. Chrabaszcz's ImageNet 64x64 (arXiv 1707.08819) is a folder of batches
    ``train_data_batch_1`` to ``_10`` and ``val_data``, pickled or npz: choose with
    ``split``, and give ``label_base`` 1. Its classes are in the order of its authors
    (``map_clsloc.txt``), not in alphabetical order. Batches are in the order of the
    numbers in their names.
    """
    split, files = _find_batches(path, options)
    origin = {
        "kind": "npz",
        "path": str(path),
        "split": split,
        "label_base": options.label_base,
        "files": {file.name: file.stat().st_size for file in files},
    }
    return _make_items([(str(file), "") for file in files], origin, options)


def _find_batches(path: Path, options: Options) -> tuple[str | None, list[Path]]:
    """The split that is read, if there are splits, and its files of stacked images."""
    split = options.split
    if not path.is_dir():
        if split is not None:
            raise ValueError(
                f"{path}: one file has no splits; leave --source_split out"
            )
        return None, [path]
    found = {name: list(path.glob(pattern)) for name, pattern in BATCHES.items()}
    if any(found.values()):
        split = split or options.target
    if split is not None:
        files = lookup(found, split, "--source_split")
    elif all(found.values()):
        raise ValueError(
            f"{path}: has batches of several splits; choose one with --source_split, "
            f"legal are {', '.join(BATCHES)}"
        )
    else:
        files = found["train"] or found["validation"] or list(path.glob("*.npz"))
    if not files:
        raise ValueError(
            f"{path}: has no files {' or '.join(BATCHES.values())} or *.npz"
            + (f" for the split {split!r}" if split else "")
        )
    return split, sorted(files, key=_natural)


def _natural(path: Path) -> list[tuple[int, str]]:
    """Batch 2 before batch 10."""
    parts = re.findall(r"\d+|\D+", path.name)
    return [(int(part) if part.isdigit() else -1, part) for part in parts]


def _load_file(path: str) -> dict[str, Any]:
    with open(path, "rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"
        file.seek(0)
        if not is_zip:
            return groups_in(file, path)
        with damaged(f"{path}: the npz is cut off or damaged", _DAMAGE):
            with np.load(file, allow_pickle=False) as archive:
                wanted = _find_keys(archive.files)
                found = {k: archive[k] if k in wanted else None for k in archive.files}
    return found


# --- CIFAR-10 -------------------------------------------------------------------------


def read_cifar10(path: Path, options: Options) -> StackedItems:
    """CIFAR-10 as published: ``cifar-10-python.tar.gz``, or the folder in it.

    The split is ``train`` (by default) or ``test``, in the order of the batches. The
    classes have the names in ``batches.meta``.
    """
    split = options.split or options.target or "train"
    batches = lookup(CIFAR10_BATCHES, split, "--source_split of cifar10")
    names = _load_cifar10(str(path), "batches.meta").get("label_names")
    if not isinstance(names, list) or not all(type(name) is str for name in names):
        raise ValueError(f"{path}: batches.meta has no list of names, label_names")
    files = [path] if path.is_file() else [path / name for name in batches]
    sizes = {file.name: file.stat().st_size for file in files if file.exists()}
    origin = {"kind": "cifar10", "path": str(path), "split": split, "files": sizes}
    parts = [(str(path), name) for name in batches]
    return _make_items(parts, origin, options, tuple(names))


def _load_cifar10(path: str, part: str) -> dict[str, Any]:
    content = _cifar10_files(path).get(part)
    if content is None:
        raise ValueError(f"{path}: {part}: is not there")
    return groups_in(io.BytesIO(content), f"{path}: {part}")


@functools.lru_cache(maxsize=1)
def _cifar10_files(path: str) -> dict[str, bytes]:
    """All files, 184 MB: a gzip can be read from its start only."""
    wanted = ("batches.meta", *sum(CIFAR10_BATCHES.values(), ()))
    if os.path.isdir(path):
        files = [Path(path, name) for name in wanted]
        return {file.name: file.read_bytes() for file in files if file.exists()}
    members = {}
    errors = (tarfile.TarError, EOFError, OSError, zlib.error)
    with damaged(f"{path}: is cut off or damaged", errors):
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                name = member.name.rpartition("/")[2]
                content = archive.extractfile(member)
                if content is not None and name in wanted:
                    members[name] = content.read()
    return members
