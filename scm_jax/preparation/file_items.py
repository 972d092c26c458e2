"""Items that are one file each: images or latents in folders, zips, tars and shards."""

from __future__ import annotations

import collections
import dataclasses
import glob
import json
import logging
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
from scm_jax.preparation.labels import number_labels
from scm_jax.preparation.options import Options
from scm_jax.types import lookup

logger = logging.getLogger(__name__)

# The folders that splits go by.
SPLITS = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
DATASET_JSON = "dataset.json"
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
        origin={**origin, **files.sizes},
        options=options,
    )


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
    """Images in a tar, as in a zip; also a tar of one tar per class, as ILSVRC's."""
    return _read_classes(index_tar(path), "tar", path, options)


def _read_classes(files: Files, kind: str, path: Path, options: Options) -> FileItems:
    chosen = [index for index, name in enumerate(files.names) if is_image(name)]
    parts = {index: files.names[index].split("/") for index in chosen}
    if options.split is not None:
        chosen = _choose_split(parts, path, options.split)
    if not chosen:
        raise ValueError(f"{path}: holds no images; {_LISTED}")
    _mention_others(files, path)
    _drop_common(parts, chosen)
    labels = [_class_of(parts[index]) for index in chosen]
    if options.labels != "none":
        _check_classes(labels, [files.where(index) for index in chosen], path, options)
    origin = {"kind": kind, "path": str(path), "split": options.split}
    return _make_items(files, chosen, labels, origin, options)


def _choose_split(parts: dict[int, list[str]], path: Path, split: str) -> list[int]:
    """Leaves what is in the split's folder, and takes the way to there off the parts."""
    folders = lookup(SPLITS, split, "split")
    chosen = []
    for index, way in parts.items():
        depth = next((i for i, part in enumerate(way[:-1]) if part in folders), None)
        if depth is not None:
            del way[: depth + 1]
            chosen.append(index)
    if not chosen:
        raise ValueError(
            f"{path}: has no images for the split {split!r}, which would be in a folder "
            f"{' or '.join(folders)}"
        )
    return chosen


def _drop_common(parts: dict[int, list[str]], chosen: Sequence[int]) -> None:
    """Takes folders off that all items share: around everything, no class."""
    while all(len(parts[index]) > 1 for index in chosen):
        if len({parts[index][0] for index in chosen}) > 1:
            return
        for index in chosen:
            del parts[index][0]


def _class_of(way: list[str]) -> str | None:
    return way[0] if len(way) > 1 else None


def _check_classes(
    labels: Sequence[str | None], names: Sequence[str], path: Path, options: Options
) -> None:
    """Raises ValueError where the folders are splits, or only some images in them."""
    classes = {label for label in labels if label is not None}
    known = {name for folders in SPLITS.values() for name in folders}
    if options.split is None and len(classes) > 1 and classes <= known:
        raise ValueError(
            f"{path}: has the folders {', '.join(sorted(classes))}, which are splits, no "
            f"classes; choose one with split, legal are {', '.join(SPLITS)}"
        )
    if classes and None in labels:
        outside = names[labels.index(None)]
        raise ItemError(
            f"{outside}: lies outside of the class folders ({len(classes)} of them, "
            f"the first is {min(classes)!r}); labels 'none' reads all images without "
            "classes"
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
    """Webdataset shards: a folder of tars, one tar, or a pattern such as ``a-*.tar``.

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
    """The tars in a folder, the tar itself, or those that a pattern names, sorted."""
    if path.is_dir():
        return sorted(path.glob("*.tar"))
    if path.exists():
        return [path]
    return sorted(Path(name) for name in glob.glob(str(path)))


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
