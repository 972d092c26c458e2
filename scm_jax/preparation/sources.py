"""From a path to raw items: what kinds of raw data there are, and which one a path is.

    items = open_items("ILSVRC2012_img_train.tar")
    len(items), items.class_names[0]       # (1281167, 'n01440764')
    items.read(0)["image"].shape           # (250, 250, 3)

Items can be pickled and read from several threads and processes. Their order is fixed:
that of the names (of ``dataset.json`` where it has labels; as stored in shards, arrays
and tfds records).
"""

from __future__ import annotations

import itertools
import os
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from scm_jax import user_paths
from scm_jax.preparation import arrays, file_items, tfds_items
from scm_jax.preparation.archives import COMPRESSED, zip_members
from scm_jax.preparation.images import is_image
from scm_jax.preparation.items import Items
from scm_jax.preparation.options import Options
from scm_jax.types import lookup


class Source(NamedTuple):
    """One kind of raw data.

    Attributes:
      read: opens it.
      what: what it is, in words, for messages.
      has_splits: whether ``Options.split`` means something to it.
    """

    read: Callable[[Path, Options], Items]
    what: str
    has_splits: bool


SOURCES = {
    "folder": Source(
        file_items.read_folder, "a folder of images, or of one folder per class", True
    ),
    "zip": Source(
        file_items.read_zip, "a zip of images, flat or one folder per class", True
    ),
    "tar": Source(
        file_items.read_tar,
        "an uncompressed tar of images, flat, one folder or one tar per class",
        True,
    ),
    "webdataset": Source(
        file_items.read_webdataset,
        "webdataset shards: a folder of tars, one of them, or a pattern",
        False,
    ),
    "edm": Source(
        file_items.read_edm,
        "an archive of EDM or EDM2, images or latents, zipped or unpacked, with "
        "dataset.json",
        False,
    ),
    "npz": Source(
        arrays.read_arrays,
        "stacked images as npz, or as pickled batches of ImageNet 64x64",
        True,
    ),
    "cifar10": Source(
        arrays.read_cifar10, "cifar-10-python.tar.gz, or the folder in it", True
    ),
    "tfds": Source(
        tfds_items.read_tfds, "tfds:NAME, or a folder that tfds has prepared", True
    ),
}


def open_items(
    path: str | os.PathLike[str],
    *,
    kind: str = "auto",
    split: str | None = None,
    labels: str = "auto",
    label_file: str | os.PathLike[str] | None = None,
    label_base: int = 0,
    num_classes: int | None = None,
    label_key: str = "label",
    channels: int = 3,
    upright: bool = False,
) -> Items:
    """Opens raw data of any kind in ``SOURCES``.

    Args:
      path: the file or folder, a pattern of shards, or ``tfds:NAME``.
      kind: one of ``SOURCES``, or ``auto`` to recognize it by its content.
      split: see ``Options``, as for all that follow.
      labels: ``auto``, ``required`` or ``none``.
      label_file: text with a file and its class in each line.
      label_base: number of the first class in the data.
      num_classes: how many classes there must be.
      label_key: where the label is in the ``.json`` of webdataset shards.
      channels: 3 or 1.
      upright: whether the EXIF orientation of images counts.

    Raises:
      FileNotFoundError: there is nothing at the path.
      ValueError: it is of no known kind, cut off, damaged or empty; labels do not fit.
        Where one item is to blame it is an ``ItemError``.
    """
    options = Options(
        split=split,
        labels=labels,
        label_file=None if label_file is None else str(label_file),
        label_base=label_base,
        num_classes=num_classes,
        label_key=label_key,
        channels=channels,
        upright=upright,
    )
    is_name = str(path).startswith(tfds_items.PREFIX)
    path = Path(path) if is_name else user_paths.expand(path)
    if kind == "auto":
        kind = detect_kind(path)
    source = lookup(SOURCES, kind, "kind")
    if kind not in ("tfds", "webdataset") and not path.exists():
        raise FileNotFoundError(f"{path}: does not exist")
    if split is not None and not source.has_splits:
        raise ValueError(
            f"split = {split!r}: {path} is of the kind {kind!r}, which has no splits; "
            "give the path of the part that is wanted"
        )
    if label_file is not None and kind not in ("folder", "zip", "tar"):
        raise ValueError(
            f"label_file = {str(label_file)!r}: {path} is of the kind {kind!r}, which "
            "has labels of its own; legal are folder, zip and tar"
        )
    return source.read(path, options)


def detect_kind(path: Path) -> str:
    """Which of ``SOURCES`` a path is, by its content and not by its suffix.

    Raises:
      FileNotFoundError: there is nothing at the path.
      ValueError: it is none of them; the message lists them.
    """
    if str(path).startswith(tfds_items.PREFIX):
        return "tfds"
    if path.is_dir():
        return _detect_folder(path)
    if path.is_file():
        return _detect_file(path)
    if file_items.find_shards(path):
        return "webdataset"
    raise FileNotFoundError(f"{path}: does not exist, and no files match it")


def _detect_folder(path: Path) -> str:
    names = {entry.name for entry in os.scandir(path) if not entry.name.startswith(".")}
    if not names:
        raise ValueError(f"{path}: is an empty folder")
    if "dataset_info.json" in names or any(path.glob("*.*.*/dataset_info.json")):
        return "tfds"
    if file_items.DATASET_JSON in names:
        return "edm"
    if "batches.meta" in names:
        return "cifar10"
    if names and all(name.endswith(".tar") for name in names):
        return "webdataset"
    patterns = ("train_data_batch_*", "val_data*", "*.npz")
    if any(any(path.glob(pattern)) for pattern in patterns):
        return "npz"
    return "folder"


def _detect_file(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(512)
    if start.startswith(b"PK"):
        return _detect_zip(path)
    if start.startswith(tuple(COMPRESSED)):
        return "cifar10" if _is_cifar10(path) else "tar"  # whose reader refuses it
    if start[257:262] == b"ustar" or path.suffix == ".tar":
        return _detect_tar(path)
    if start.startswith(b"\x80"):  # a pickle of protocol 2 and up
        return "npz"
    raise ValueError(f"{path}: is of no kind that is understood here. {describe()}")


def describe() -> str:
    """All kinds in one sentence.

    >>> describe()[:40]
    'Understood are folder (a folder of image'
    """
    kinds = "; ".join(f"{name} ({source.what})" for name, source in SOURCES.items())
    return f"Understood are {kinds}"


def _detect_zip(path: Path) -> str:
    names = [member.filename for member in zip_members(path)]
    if file_items.DATASET_JSON in names:
        return "edm"
    if names and all(name.endswith(".npy") and "/" not in name for name in names):
        return "npz"
    return "zip"


def _is_cifar10(path: Path) -> bool:
    try:
        with tarfile.open(path, "r:gz") as archive:
            first = archive.next()
    except (tarfile.TarError, OSError, EOFError, zlib.error):
        return path.name.startswith("cifar-10-python")
    return first is not None and first.name.startswith("cifar-10-batches-py")


def _detect_tar(path: Path) -> str:
    """Shards have labels or captions beside their images; the first files tell."""
    suffixes: dict[str, set[str]] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            for member in itertools.islice(archive, 32):
                folder, _, name = member.name.rpartition("/")
                key, _, suffix = name.partition(".")
                suffixes.setdefault(f"{folder}/{key}", set()).add(suffix)
    except tarfile.TarError as error:
        raise ValueError(
            f"{path}: the tar archive is empty, cut off or damaged: {error}"
        ) from error
    is_shard = any(
        found & {"cls", "json", "txt"} and any(is_image(f".{s}") for s in found)
        for found in suffixes.values()
    )
    return "webdataset" if is_shard else "tar"
