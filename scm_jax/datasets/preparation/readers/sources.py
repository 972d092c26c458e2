"""From a path to raw items: what kinds of raw data there are, and which one a path is.

Items are sorted by name, or in the order of ``dataset.json``, or as stored in shards,
arrays and tfds records.
"""

from __future__ import annotations

import functools
import os
import re
import tarfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from scm_jax.datasets.preparation.readers import arrays, file_items, tfds_items
from scm_jax.datasets.preparation.readers.archives import (
    COMPRESSED,
    index_tar,
    tars_in,
    zip_members,
)
from scm_jax.datasets.preparation.readers.decode import (
    SOUND_SUFFIXES,
    SUFFIXES,
    is_image,
)
from scm_jax.datasets.preparation.readers.files import count_kinds, is_hidden
from scm_jax.datasets.preparation.readers.items import Items, Options
from scm_jax.files import user_paths
from scm_jax.types import lookup

DRAWN = "drawn"  # a kind without files, whose items are drawn when they are read


class Source(NamedTuple):
    """One kind of raw data."""

    read: Callable[[Path, Options], Items]
    what: str  # in words, for messages
    options: tuple[str, ...]  # of those that only some kinds have a use for


_CAPTIONS = ("captions", "caption_file", "caption_key")
_CLIPS = ("frames", "stride", "frame_rate")
_SOUNDS = ("front_end", "trim")


def _classes(kind: str, what: str) -> Source:
    read = functools.partial(file_items.read_classes, kind=kind)
    options = ("split", "label_file", "max_pixels", *_CAPTIONS, *_CLIPS, *_SOUNDS)
    return Source(read, what, options)


SOURCES = {
    "folder": _classes("folder", "a folder of images, or of one folder per class"),
    "zip": _classes("zip", "a zip of images, flat or one folder per class"),
    "tar": _classes(
        "tar", "an uncompressed tar of images, flat, one folder or one tar per class"
    ),
    "webdataset": Source(
        file_items.read_webdataset,
        "webdataset shards: a folder of tars, one of them, or a pattern",
        ("label_key", "max_pixels", *_CAPTIONS, *_CLIPS, *_SOUNDS),
    ),
    "edm": Source(
        file_items.read_edm,
        "EDM's or EDM2's images or latents with dataset.json, packed or unpacked",
        ("max_pixels", *_CAPTIONS),
    ),
    "npz": Source(
        arrays.read_arrays,
        "stacked images as npz, or as pickled batches of ImageNet 64x64",
        ("split",),
    ),
    "cifar10": Source(
        arrays.read_cifar10, "cifar-10-python.tar.gz, or the folder in it", ("split",)
    ),
    "tfds": Source(
        tfds_items.read_tfds,
        "tfds:NAME, or a folder tfds has prepared",
        ("split", "captions"),
    ),
}
_WITHOUT = {
    "split": "has no splits; give the path of the part that is wanted",
    "label_file": "has labels of its own, unless --kind is folder, zip or tar",
    "label_key": "has no keys; only webdataset has",
    **dict.fromkeys(_CAPTIONS, "has no captions beside its images"),
    **dict.fromkeys(_CLIPS, "has no videos; folder, zip, tar and webdataset have"),
    **dict.fromkeys(_SOUNDS, "has no sounds; folder, zip, tar and webdataset have"),
    "max_pixels": "has arrays, not files that are decoded",
}


def open_items(
    path: str | os.PathLike[str], *, kind: str = "auto", **options: Any
) -> Items:
    """Opens raw data of any kind in ``SOURCES``.

    Example:
      >>> items = open_items("ILSVRC2012_img_train.tar")  # doctest: +SKIP
      >>> len(items), items.class_names[0]  # doctest: +SKIP
      (1281167, 'n01440764')

    Args:
      path: the file or folder, a pattern of shards, or ``tfds:NAME``.
      kind: one of ``SOURCES``, or ``auto`` to recognize it by its content.
      **options: the attributes of ``Options``, such as ``split`` or ``label_file``.

    Raises:
      FileNotFoundError: there is nothing at the path.
      ValueError: it is of no known kind, cut off, damaged or empty; labels do not fit.
        Where one item is to blame it is an ``ItemError``.
    """
    chosen = Options(**options)
    is_name = str(path).startswith(tfds_items.PREFIX)
    path = Path(path) if is_name else user_paths.expand(path)
    if kind == "auto":
        kind = detect_kind(path)
    source = lookup(SOURCES, kind, "kind")
    if kind not in ("tfds", "webdataset") and not path.exists():
        raise FileNotFoundError(f"{path}: does not exist")
    if kind in ("folder", "zip") and path.is_dir() != (kind == "folder"):
        raise ValueError(
            f"{path}: is {'a folder' if path.is_dir() else 'no folder'}, and the kind "
            f"{kind!r} is {source.what}"
        )
    for option, why in _WITHOUT.items():
        value = getattr(chosen, option)
        if value != getattr(Options, option) and option not in source.options:
            name = "--source_split" if option == "split" else option
            raise ValueError(
                f"{name} = {value!r}: {path} is of the kind {kind!r}, which {why}"
            )
    if chosen.label_file is not None and chosen.labels == "none":
        raise ValueError(
            f"label_file = {chosen.label_file!r}: labels 'none' reads no classes"
        )
    items = source.read(path, chosen)
    if not chosen.frames and chosen.front_end is None:
        return items
    from scm_jax.datasets.preparation.readers import clip_items, sound_items

    assert isinstance(items, file_items.FileItems)
    if chosen.front_end is not None:
        return sound_items.SoundItems(items, chosen.front_end)
    return clip_items.cut(items)


def summarize(items: Items) -> str:
    """One line: what a source was taken for, and what of it is not used.

    Example:
      >>> from scm_jax.datasets.shapes import ShapeSource
      >>> summarize(ShapeSource(num_items=3))[:61]
      'no file: kind shapes, split train, 3 items, 10 classes (circl'
    """
    origin, names = items.origin, items.class_names
    kind = f"kind {origin['kind']}, " if "kind" in origin else ""
    split = f"split {origin['split']}, " if origin.get("split") else ""
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    plural = "class" if len(names) == 1 else "classes"
    classes = f"{len(names):,} {plural} ({shown})" if names else "no classes"
    parts = [f"{kind}{split}{len(items):,} items, {classes}"]
    parts += getattr(items, "notes", ())
    path = Path(origin.get("path", "no file"))
    if origin.get("kind") in ("tar", "webdataset", "npz") and path.is_dir():
        beside = sorted(set(os.listdir(path)) - set(origin["files"]))
        counts = count_kinds(name for name in beside if not is_hidden(name))
        parts += [f"not used beside them: {', '.join(counts)}"] if counts else []
    return f"{path}: " + "; ".join(parts)


# --- which kind a path is -------------------------------------------------------------


def detect_kind(path: Path) -> str:
    """Which of ``SOURCES`` a path is, by its content and not by its suffix.

    Raises:
      FileNotFoundError: there is nothing at the path.
      ValueError: it is none of them, or may be two.
    """
    if str(path).startswith(tfds_items.PREFIX):
        return "tfds"
    if path.is_dir():
        return _detect_folder(path)
    if path.is_file():
        return _detect_file(path)
    if path.is_symlink():
        raise FileNotFoundError(f"{path}: is a link to nothing: {path.readlink()}")
    if file_items.find_shards(path):
        return "webdataset"
    raise FileNotFoundError(f"{path}: does not exist, and no files match it")


def _detect_folder(path: Path) -> str:
    entries = [entry for entry in os.scandir(path) if not is_hidden(entry.name)]
    names = {entry.name for entry in entries}
    if not names:
        raise ValueError(f"{path}: is an empty folder")
    if "dataset_info.json" in names or any(path.glob("*.*.*/dataset_info.json")):
        return "tfds"
    below = (path.glob(way + file_items.DATASET_JSON) for way in ("", "*/", "*/*/"))
    if any(not is_hidden(str(p.relative_to(path))) for found in below for p in found):
        return "edm"
    if "batches.meta" in names:
        return "cifar10"
    tars = tars_in(path)
    if tars and not any(is_image(entry.name) or entry.is_dir() for entry in entries):
        return _detect_tars(path, tars)
    patterns = (*arrays.BATCHES.values(), "*.npz")
    if any(any(path.glob(pattern)) for pattern in patterns):
        return "npz"
    return "folder"


def _detect_file(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(512)
    if start.startswith(b"PK"):
        names = [member.filename for member in zip_members(path)]
        if _has_json(names):
            return "edm"
        stacked = all(name.endswith(".npy") and "/" not in name for name in names)
        return "npz" if names and stacked else "zip"
    if start.startswith(tuple(COMPRESSED)):
        return "cifar10" if _is_cifar10(path) else "tar"  # whose reader refuses it
    if start[257:262] == b"ustar" or path.suffix == ".tar":
        return _detect_tar(path)
    if start.startswith(b"\x80"):  # a pickle of protocol 2 and up
        return "npz"
    kinds = "; ".join(f"{name} ({source.what})" for name, source in SOURCES.items())
    raise ValueError(f"{path}: is of no known kind. Known are {kinds}")


def _is_cifar10(path: Path) -> bool:
    try:
        with tarfile.open(path, "r:gz") as archive:
            first = archive.next()
    except (tarfile.TarError, OSError, EOFError, zlib.error):
        return path.name.startswith("cifar-10-python")
    return first is not None and first.name.startswith("cifar-10-batches-py")


def _has_json(names: Iterable[str]) -> bool:
    shown = (name.replace("\\", "/") for name in names if not is_hidden(name))
    return any(name.rpartition("/")[2] == file_items.DATASET_JSON for name in shown)


def _detect_tars(path: Path, tars: list[Path]) -> str:
    """Tars in a folder are shards where the first one is, else one for each class."""
    kind = _detect_tar(tars[0])
    numbers = [re.fullmatch(r"(.*?)(\d+)", tar.stem) for tar in tars]
    ends = sorted(int(number[2]) for number in numbers if number)
    in_turn = bool(ends) and ends == list(range(ends[0], ends[0] + len(tars)))
    if kind == "tar" and len(tars) > 1 and in_turn:
        raise ValueError(
            f"{path}: {tars[0].name} to {tars[-1].name} may be one tar for each class, "
            "or shards without classes. --kind=tar reads classes, --kind=webdataset "
            "shards"
        )
    return kind


def _detect_tar(path: Path) -> str:
    """Shards have labels or captions beside their images, or beside most of them."""
    names = index_tar(path).names
    if _has_json(names):
        return "edm"
    suffixes: dict[tuple[str, str], set[str]] = {}
    for name in names[:20_000]:  # those of one item follow each other
        folder, _, base = name.rpartition("/")
        key, _, suffix = base.partition(".")
        suffixes.setdefault((folder, key), set()).add(suffix.rpartition(".")[2])
    media = SUFFIXES + SOUND_SUFFIXES
    items = [
        (folder, found & {"cls", "json", "txt"})
        for (folder, _), found in suffixes.items()
        if any(f".{suffix}".lower().endswith(media) for suffix in found)
    ]
    labels = set().union(*(beside for _, beside in items))
    folders = {folder for folder, _ in items}
    if 2 * sum(bool(beside) for _, beside in items) < len(items):
        return "tar"
    if len(folders) > 1 and labels and "cls" not in labels:
        raise ValueError(
            f"{path}: has files {' and '.join(f'.{s}' for s in sorted(labels))} beside "
            f"images in {len(folders)} folders, so it may be a webdataset shard or "
            "class folders. --kind=webdataset reads a shard, --kind=tar class folders"
        )
    return "webdataset" if labels else "tar"
