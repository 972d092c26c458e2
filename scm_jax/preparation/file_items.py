"""Items that are one file each: images or latents in folders, zips, tars and shards."""

from __future__ import annotations

import collections
import dataclasses
import glob
import hashlib
import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scm_jax.preparation.archives import (
    ArchiveFiles,
    Files,
    index_shards,
    index_tar,
    index_zip,
    list_folder,
)
from scm_jax.preparation.images import SUFFIXES, decode_image, decode_latent, is_image
from scm_jax.preparation.items import ItemError
from scm_jax.preparation.labels import find_label, number_labels, read_label_file
from scm_jax.preparation.options import Options
from scm_jax.types import lookup

logger = logging.getLogger(__name__)

# The folders that splits go by.
SPLITS = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
_SPLIT_FOLDERS = {folder for folders in SPLITS.values() for folder in folders}
DATASET_JSON = "dataset.json"
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")  # of webdataset's patterns
_LISTED = "image files end in " + " ".join(SUFFIXES)


@dataclasses.dataclass(frozen=True, eq=False)
class FileItems:
    """Items that are one file each; see ``Items`` for the methods.

    Attributes:
      files: all files of the source.
      chosen: ``(n,)``, which of them the items are.
      label: int64 ``(n,)``, or None.
      class_names: of the labels.
      origin: see ``Items``.
      options: how images are decoded.
    """

    files: Files
    chosen: np.ndarray
    label: np.ndarray | None
    class_names: tuple[str, ...]
    origin: dict[str, Any]
    options: Options

    def __len__(self) -> int:
        return len(self.chosen)

    def name(self, index: int) -> str:
        return self.files.where(self.chosen[index])

    def read(self, index: int) -> dict[str, np.ndarray]:
        where, content = self.name(index), self.files.read(self.chosen[index])
        if where.endswith(".npy"):
            fields = {"latent": decode_latent(content, where)}
        else:
            channels, upright = self.options.channels, self.options.upright
            image = decode_image(content, where, channels=channels, upright=upright)
            fields = {"image": image}
        if self.label is not None:
            fields["label"] = self.label[index]
        return fields


def _make_items(
    files: Files,
    chosen: Sequence[int],
    labels: Sequence[Any],
    origin: dict[str, Any],
    options: Options,
) -> FileItems:
    """Items of the chosen files with the labels that each was given, or None."""
    where = origin["path"]
    label, class_names = number_labels(
        labels, lambda index: files.where(chosen[index]), where, options
    )
    return FileItems(
        files=files,
        chosen=np.array(chosen, np.int64),
        label=label,
        class_names=class_names,
        origin={
            **origin,
            **files.sizes,
            "listing_sha256": _digest(files, chosen, label),
        },
        options=options,
    )


def _digest(files: Files, chosen: Sequence[int], label: np.ndarray | None) -> str:
    """Tells listings apart: the names of all items in order, and their labels."""
    digest = hashlib.sha256()
    for index in chosen:
        digest.update(files.names[index].encode("utf-8", "surrogateescape") + b"\0")
    if label is not None:
        digest.update(label.astype("<i8").tobytes())
    return digest.hexdigest()


# --- flat, or one folder per class ----------------------------------------------------


def read_folder(path: Path, options: Options) -> FileItems:
    """Images below a folder: flat, or one folder per class.

    The items are in the order of their names, the classes in that of theirs. With
    ``split``, only what is in the folder of that name, ``train`` or ``val``. A class is
    named by the first folder on the way to an image; deeper ones do not count.
    """
    return _read_classes(list_folder(path), "folder", path, options)


def read_zip(path: Path, options: Options) -> FileItems:
    """Images in a zip, arranged as in ``read_folder``; one folder around all counts."""
    return _read_classes(index_zip(path), "zip", path, options)


def read_tar(path: Path, options: Options) -> FileItems:
    """Images in a tar, as in a zip; also one tar per class, in a tar or a folder.

    One tar per class in a tar is ``ILSVRC2012_img_train.tar``.
    """
    return _read_classes(index_tar(path), "tar", path, options)


def _read_classes(files: Files, kind: str, path: Path, options: Options) -> FileItems:
    images = [index for index, name in enumerate(files.names) if is_image(name)]
    ways = {index: files.names[index].split("/") for index in images}
    if options.split is not None:
        ways = _choose_split(ways, path, options.split)
    if not ways:
        raise ValueError(f"{path}: holds no images; {_LISTED}")
    _mention_others(files, path)
    origin = {"kind": kind, "path": str(path), "split": options.split}
    if options.label_file is not None:
        known = read_label_file(options.label_file)
        labels = [find_label(known, files.names[index]) for index in ways]
        origin["label_file"] = options.label_file
        return _make_items(files, list(ways), labels, origin, options)
    ways = _drop_common(ways)
    labels = [way[0] if len(way) > 1 else None for way in ways.values()]
    if options.labels != "none":
        _check_classes(files, ways, path, options)
    return _make_items(files, list(ways), labels, origin, options)


# Items by number, and the folders on the way to each of them with its name at the end.
_Ways = dict[int, list[str]]


def _choose_split(ways: _Ways, path: Path, split: str) -> _Ways:
    """What is in the folder of a split, on the way from there."""
    folders = lookup(SPLITS, split, "split")
    chosen = {}
    for index, way in ways.items():
        # The first folder that is a split decides; "train" behind it is a class.
        depth = next(
            (i for i, part in enumerate(way[:-1]) if part in _SPLIT_FOLDERS), 0
        )
        if way[depth] in folders:
            chosen[index] = way[depth + 1 :]
    if not chosen:
        raise ValueError(
            f"{path}: has no images for the split {split!r}, which would be in a "
            f"folder {' or '.join(folders)}"
        )
    return chosen


def _drop_common(ways: _Ways) -> _Ways:
    """Without the folders that all items share: these are around all, not classes."""
    while all(len(way) > 1 for way in ways.values()):
        if len({way[0] for way in ways.values()}) > 1:
            break
        ways = {index: way[1:] for index, way in ways.items()}
    return ways


def _check_classes(files: Files, ways: _Ways, path: Path, options: Options) -> None:
    """Raises ValueError where folders are no classes, or classes not all folders."""
    classes = {way[0] for way in ways.values() if len(way) > 1}
    if not classes:
        return
    if options.split is None and classes <= _SPLIT_FOLDERS:
        raise ValueError(
            f"{path}: has the folders {', '.join(sorted(classes))}, which are splits, "
            f"not classes; choose one with split, legal are {', '.join(SPLITS)}"
        )
    first, way = next(iter(ways.items()))
    above = files.names[first].removesuffix("/".join(way))
    for folder in getattr(files, "empty", ()):
        if folder.startswith(above) and folder.count("/") == above.count("/") + 1:
            raise ValueError(
                f"{path}: the class folder {folder} is empty; remove it, or the "
                "classes behind it have other numbers than they seem to have"
            )
    for index, way in ways.items():
        if len(way) == 1:
            raise ItemError(
                f"{files.where(index)}: lies outside of the class folders "
                f"({len(classes)} of them, the first is {min(classes)!r}); labels "
                "'none' reads all images without classes"
            )


def _mention_others(files: Files, path: Path) -> None:
    others = [name for name in files.names if not is_image(name)]
    if others:
        logger.warning(
            "%s: %s files that are no images were left out, the first is %s",
            *(path, f"{len(others):,}", others[0]),
        )


# --- EDM and EDM2 ---------------------------------------------------------------------


def read_edm(path: Path, options: Options) -> FileItems:
    """The archives of EDM and EDM2, zipped or unpacked: images or latents, and labels.

    ``dataset.json`` is ``{"labels": [[file, number], ...]}`` or has null for labels.
    The items are in its order, without labels in the order of their names. Latents are
    ``00000/img-mean-std-00000000.npy``, see ``images.decode_latent``.

    Raises:
      ValueError: dataset.json and the files do not belong together.
    """
    files: Files = list_folder(path) if path.is_dir() else index_zip(path)
    index_of = {name: index for index, name in enumerate(files.names)}
    if DATASET_JSON not in index_of:
        raise ValueError(f"{path}: has no {DATASET_JSON}")
    labels = _json_labels(files, index_of[DATASET_JSON])
    suffixes = collections.Counter(
        "latents" if name.endswith(".npy") else "images"
        for name in files.names
        if is_image(name) or name.endswith(".npy")
    )
    if len(suffixes) != 1:
        raise ValueError(
            f"{path}: holds {suffixes['images']} images and {suffixes['latents']} "
            f"latents (.npy); it must be one or the other; {_LISTED}"
        )
    items = [
        index
        for index, name in enumerate(files.names)
        if is_image(name) or name.endswith(".npy")
    ]
    origin = {"kind": "edm", "path": str(path)}
    if labels is None:
        return _make_items(files, items, [None] * len(items), origin, options)
    for name in labels:
        if name not in index_of:
            raise ItemError(f"{path}: {DATASET_JSON} names {name}, which is not there")
    for index in items:
        if files.names[index] not in labels:
            raise ItemError(f"{files.where(index)}: {DATASET_JSON} does not name it")
    chosen = [index_of[name] for name in labels]
    return _make_items(files, chosen, list(labels.values()), origin, options)


def _json_labels(files: Files, index: int) -> dict[str, Any] | None:
    """File name -> label, in the order of dataset.json."""
    where = files.where(index)
    content = _parse_json(files.read(index), where)
    listed = content.get("labels") if isinstance(content, dict) else 0
    if listed is None:
        return None
    if not isinstance(listed, list):
        raise ValueError(f'{where}: is not {{"labels": [[file, number], ...]}}')
    labels: dict[str, Any] = {}
    for entry in listed:
        if not (isinstance(entry, list) and len(entry) == 2 and type(entry[0]) is str):
            raise ValueError(f"{where}: the entry {entry!r} is not [file, number]")
        if entry[0] in labels:
            raise ValueError(f"{where}: names {entry[0]} twice")
        labels[entry[0]] = entry[1]
    return labels


def _parse_json(content: bytes, where: str) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ItemError(f"{where}: is no JSON: {error}") from error


# --- webdataset -----------------------------------------------------------------------


def read_webdataset(path: Path, options: Options) -> FileItems:
    """Webdataset shards: a folder of tars, one tar, or a pattern; ``find_shards``.

    Files with one name up to the first dot are one item: its image, and its label in
    ``.cls`` (a number) or in ``.json`` under ``label_key`` (a number or a name). Shards
    are in the order of their names, items in that in which they are stored.
    """
    paths = find_shards(path)
    if not paths:
        raise FileNotFoundError(f"{path}: there are no files *.tar")
    files = index_shards(paths)
    groups: dict[tuple[int, str], dict[str, int]] = {}
    for index, name in enumerate(files.names):
        folder, _, base = name.rpartition("/")
        key, _, suffix = base.partition(".")
        group = groups.setdefault((files.archive[index], f"{folder}/{key}"), {})
        if is_image(name):
            suffix = "image"
        if suffix in group:
            raise ItemError(f"{files.where(index)}: a second {suffix} of one item")
        group[suffix] = index
    for group in groups.values():
        if "image" not in group:
            first = files.where(next(iter(group.values())))
            raise ItemError(f"{first}: there is no image of that name; {_LISTED}")
    chosen = [group["image"] for group in groups.values()]
    if not chosen:
        raise ValueError(f"{path}: holds no images; {_LISTED}")
    labels = [None] * len(chosen)
    if options.labels != "none":
        labels = [_shard_label(files, group, options) for group in groups.values()]
    origin = {"kind": "webdataset", "path": str(path)}
    return _make_items(files, chosen, labels, origin, options)


def find_shards(path: Path) -> list[Path]:
    """The tars in a folder, the tar itself, or those that a pattern names, sorted.

    Patterns are the shell's ``a-*.tar`` and webdataset's ``a-{000..146}.tar``; of the
    second kind all must be there.

    Raises:
      FileNotFoundError: shards of a range are missing; names the first.
    """
    if path.is_dir():
        return sorted(path.glob("*.tar"))
    if path.exists():
        return [path]
    if found := _RANGE.search(str(path)):
        return _shards_of_range(str(path), found)
    return sorted(Path(name) for name in glob.glob(str(path)))


def _shards_of_range(pattern: str, found: re.Match[str]) -> list[Path]:
    first, last = found.groups()
    numbers = (f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1))
    start, end = pattern[: found.start()], pattern[found.end() :]
    paths = [Path(f"{start}{number}{end}") for number in numbers]
    missing = [path for path in paths if not path.exists()]
    if missing:
        raise FileNotFoundError(
            f"{pattern}: {len(missing)} of {len(paths)} shards do not exist; the first "
            f"is {missing[0]}"
        )
    return paths


def _shard_label(files: ArchiveFiles, group: dict[str, int], options: Options) -> Any:
    if "cls" in group:
        where, text = files.where(group["cls"]), files.read(group["cls"])
        try:
            return int(text)
        except ValueError:
            raise ItemError(f"{where}: {text[:40]!r} is no whole number") from None
    if "json" in group:
        where = files.where(group["json"])
        content = _parse_json(files.read(group["json"]), where)
        if isinstance(content, dict):
            return content.get(options.label_key)
    return None
