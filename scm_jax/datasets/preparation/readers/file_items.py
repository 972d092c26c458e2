"""Items that are one file each, of any medium, in folders and archives."""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import json
import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scm_jax.datasets.preparation.readers import captions as captions_lib
from scm_jax.datasets.preparation.readers import sound_layouts
from scm_jax.datasets.preparation.readers.archives import (
    index_shards,
    index_tar,
    index_zip,
    refuse_broken,
    tars_in,
)
from scm_jax.datasets.preparation.readers.class_folders import (
    arrange,
    check_classes,
    path_parts,
)
from scm_jax.datasets.preparation.readers.decode import (
    SOUND_SUFFIXES,
    SUFFIXES,
    VIDEO_SUFFIXES,
    decode_image,
    decode_latent,
    is_image,
)
from scm_jax.datasets.preparation.readers.files import Files, count_kinds, list_folder
from scm_jax.datasets.preparation.readers.items import (
    NO_SPLIT,
    ItemError,
    Options,
    damaged,
)
from scm_jax.datasets.preparation.readers.labels import (
    match_labels,
    number_labels,
    read_label_file,
)

DATASET_JSON = "dataset.json"
LISTED = "image files end in " + " ".join(SUFFIXES)
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")  # of webdataset's patterns


@dataclasses.dataclass(frozen=True, eq=False)
class FileItems:
    """Items that are one file each; see ``Items`` for the methods."""

    files: Files  # all of the source
    chosen: np.ndarray  # (n,), which of them the items are
    label: np.ndarray | None  # int64 (n,)
    class_names: tuple[str, ...]
    origin: dict[str, Any]
    options: Options
    captions: captions_lib.Captions | None = None
    # What was not used of the source, and what else to know, each a clause.
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.chosen)

    def name(self, index: int) -> str:
        return self.files.where(self.chosen[index])

    def content(self, index: int) -> bytes:
        """The bytes of an item's file."""
        return self.files.read(self.chosen[index])

    def read(self, index: int) -> dict[str, Any]:
        where, content = self.name(index), self.content(index)
        if where.endswith(".npy"):
            fields: dict[str, Any] = {"latent": decode_latent(content, where)}
        else:
            channels, limit = self.options.channels, self.options.max_pixels
            pixels = decode_image(content, where, channels=channels, max_pixels=limit)
            fields = {"image": pixels}
        return fields | self.said(index)

    def said(self, index: int) -> dict[str, Any]:
        """Label and captions of an item, where there are any."""
        fields: dict[str, Any] = {}
        if self.label is not None:
            fields["label"] = self.label[index]
        if self.captions is not None:
            fields["captions"] = self.captions.read(self.files, self.chosen[index])
        return fields


def _make_items(
    files: Files,
    chosen: Sequence[int],
    labels: Sequence[Any],
    origin: dict[str, Any],
    options: Options,
    notes: Sequence[str] = (),
    used: Iterable[int] = (),
) -> FileItems:
    """Items of the chosen files with the labels that each was given, or None.

    ``used`` are the files that were read besides.
    """
    label, class_names = number_labels(
        labels, lambda index: files.where(chosen[index]), origin["path"], options
    )
    by_key = origin["kind"] == "webdataset"
    said = captions_lib.find(files, chosen, origin["path"], options, by_key)
    if said is not None:
        notes, used = (*notes, said.note), {*used, *said.used}
        origin = {**origin, "captions": said.origin}
    # Tells listings apart: the names of all items in order, and their labels.
    digest = hashlib.sha256()
    for index in chosen:
        digest.update(files.names[index].encode("utf-8", "surrogateescape") + b"\0")
    if label is not None:
        digest.update(label.astype("<i8").tobytes())
    return FileItems(
        files=files,
        chosen=np.array(chosen, np.int64),
        label=label,
        class_names=class_names,
        origin={**origin, **files.sizes, "listing_sha256": digest.hexdigest()},
        options=options,
        captions=said,
        notes=(*notes, *_not_used(files, {*chosen, *used})),
    )


def _not_used(files: Files, used: Collection[int]) -> list[str]:
    """Files that were passed over, by kind and number, as a clause; or nothing."""
    counts = count_kinds(
        name for index, name in enumerate(files.names) if index not in used
    )
    counts += [f"{files.hidden:,} hidden"] if files.hidden else []
    counts += [f"{len(files.empty):,} empty folders"] if files.empty else []
    return [f"not used: {', '.join(counts)}"] if counts else []


# --- flat, or one folder per class ----------------------------------------------------

_INDEX = {"folder": list_folder, "zip": index_zip, "tar": index_tar}


def _wanted(options: Options) -> tuple[tuple[str, ...], str, str]:
    """Suffixes of files that are items, what these are called, both for messages."""
    if options.frames:
        return VIDEO_SUFFIXES, "video", "videos end in " + " ".join(VIDEO_SUFFIXES)
    if options.front_end is not None:
        return SOUND_SUFFIXES, "sound", "sounds end in " + " ".join(SOUND_SUFFIXES)
    return SUFFIXES, "image", f"{LISTED}; videos need --frames, sounds --sample_rate"


def read_classes(path: Path, options: Options, kind: str) -> FileItems:
    """Images in a folder, zip or tar: flat, or one folder per class.

    Items are sorted by name, and so are classes. With ``split``, only what is in the
    folder of that name, ``train`` or ``val``. The first folder on the way to an image
    names its class; deeper ones do not count. A tar may be one tar per class, such as
    ``ILSVRC2012_img_train.tar``, and so may a folder with the kind ``tar``.
    """
    files, (suffixes, what, listed) = _INDEX[kind](path), _wanted(options)
    named = enumerate(files.names)
    ways = {i: path_parts(n) for i, n in named if n.lower().endswith(suffixes)}
    if not ways:
        unused = "".join(f"; {note}" for note in _not_used(files, ()))
        raise ValueError(f"{path}: holds no {what}s; {listed}{unused}")
    images = set(ways)
    notes: list[str] = []
    if options.front_end is not None:
        ways, notes = sound_layouts.arrange(files, ways, options)
    ways, around, split, others = arrange(ways, path, options)
    if others:
        counts = (f"{name or 'no folder'} ({n:,})" for name, n in others.items())
        notes.append(
            f"not read: {', '.join(counts)}; with --source_split={NO_SPLIT} such "
            "folders are classes"
        )
    origin = {"kind": kind, "path": str(path), "split": split}
    if (file := options.label_file) is not None:
        origin["label_file"] = file
        names = [files.names[index] for index in ways]
        labels, unmatched = match_labels(file, read_label_file(file), names)
        if unmatched:
            notes.append(f"lines of {file} without an image: {unmatched:,}")
    else:
        labels = [way[0] if len(way) > 1 else None for way in ways.values()]
        if options.labels != "none":
            check_classes(files, ways, path)
        if around and set(labels) == {None}:
            if options.labels == "required":
                labels = [around] * len(labels)
            elif options.labels == "auto":
                notes.append(
                    f"all lie in {around}, the only class with --labels=required"
                )
    if kind == "tar" and len(files.sizes["files"]) > 1:
        notes.append("each tar is a class, and a shard with --kind=webdataset")
    return _make_items(files, list(ways), labels, origin, options, notes, images)


# --- EDM and EDM2 ---------------------------------------------------------------------


def read_edm(path: Path, options: Options) -> FileItems:
    """The archives of EDM and EDM2, packed or unpacked: images or latents, and labels.

    ``dataset.json`` is ``{"labels": [[file, number], ...]}`` or has null for labels;
    its files are relative to its folder. Items are in its order, without labels sorted
    by name. Latents are ``00000/img-mean-std-00000000.npy``; see ``decode_latent``.
    Raises ValueError where dataset.json and the files do not belong together.
    """
    kind = "folder"
    if not path.is_dir():
        with path.open("rb") as file:
            kind = "zip" if file.read(2) == b"PK" else "tar"
    files = _INDEX[kind](path)
    listing, base = _find_json(files, path, kind)
    index_of = {
        name.removeprefix(base): index
        for index, name in enumerate(files.names)
        if name.startswith(base)
    }
    where = files.where(listing)
    otherwise = f"; --kind={kind} reads the source without {DATASET_JSON}"
    labels = _json_labels(files.read(listing), where, otherwise)
    items = [name for name in index_of if is_image(name) or name.endswith(".npy")]
    latents = sum(name.endswith(".npy") for name in items)
    if latents not in (0, len(items)) or not items:
        raise ValueError(
            f"{path}: holds {len(items) - latents} images and {latents} "
            f"latents (.npy); it must be one or the other; {LISTED}"
        )
    if latents and options.channels != 3:
        raise ValueError(
            f"channels = {options.channels}: {path} holds latents, whose channels are "
            "not colours"
        )
    if labels is None:
        labels = dict.fromkeys(items)
    for name in labels:
        if name not in index_of:
            raise ItemError(f"{where}: names {name}, which is not there{otherwise}")
    for name in items:
        if name not in labels:
            raise ItemError(
                f"{files.where(index_of[name])}: {DATASET_JSON} does not name it"
                f"{otherwise}"
            )
    origin = {"kind": "edm", "path": str(path)}
    chosen, values = [index_of[name] for name in labels], list(labels.values())
    return _make_items(files, chosen, values, origin, options, used=[listing])


def _find_json(files: Files, path: Path, kind: str) -> tuple[int, str]:
    """The outermost dataset.json, and the folder that it lies in, with its slash."""
    found = [
        (name.count("/"), index, name.removesuffix(DATASET_JSON))
        for index, name in enumerate(files.names)
        if name.rpartition("/")[2] == DATASET_JSON
    ]
    if not found:
        raise ValueError(f"{path}: has no {DATASET_JSON}")
    outer = [(index, base) for depth, index, base in found if depth == min(found)[0]]
    if len(outer) > 1:
        raise ValueError(
            f"{path}: has {len(outer)} files {DATASET_JSON}, the first in "
            f"{outer[0][1]}. Give the path of one such folder; --kind={kind} reads the "
            "source without them"
        )
    return outer[0]


def _json_labels(content: bytes, where: str, otherwise: str) -> dict[str, Any] | None:
    """File name -> label, in the order of dataset.json."""
    parsed = _parse_json(content, where)
    known = isinstance(parsed, dict) and (not parsed or "labels" in parsed)
    listed = parsed.get("labels") if known else 0
    if listed is None:
        return None
    if not isinstance(listed, list):
        raise ValueError(
            f'{where}: is not {{"labels": [[file, number], ...]}}{otherwise}'
        )
    labels: dict[str, Any] = {}
    for entry in listed:
        if not (isinstance(entry, list) and len(entry) == 2 and type(entry[0]) is str):
            raise ValueError(f"{where}: the entry {entry!r} is not [file, number]")
        name = entry[0].replace("\\", "/").removeprefix("./")
        if name in labels:
            raise ValueError(f"{where}: names {name} twice")
        labels[name] = entry[1]
    return labels


def _parse_json(content: bytes, where: str) -> Any:
    with damaged(f"{where}: is not JSON", (ValueError, RecursionError), ItemError):
        parsed = json.loads(content)
    return parsed


# --- webdataset -----------------------------------------------------------------------


def read_webdataset(path: Path, options: Options) -> FileItems:
    """Webdataset shards: a folder of tars, one tar, or a pattern; ``find_shards``.

    Files with one name up to the first dot are one item: its image, and its label in
    ``.cls`` (a number) or in ``.json`` under ``label_key`` (a number or a name). Shards
    are sorted by name, and items are in the order in which they are stored.
    """
    paths = find_shards(path)
    if not paths:
        raise FileNotFoundError(f"{path}: there are no files *.tar")
    files, (suffixes, what, listed) = index_shards(paths), _wanted(options)
    groups: dict[tuple[str, str], dict[str, int]] = {}
    for index, place in enumerate(files.places):
        folder, _, base = place.name.rpartition("/")
        key, _, suffix = base.partition(".")
        group = groups.setdefault((place.root, f"{folder}/{key}"), {})
        if place.name.lower().endswith(suffixes):
            suffix = what
        if suffix in group:
            raise ItemError(f"{files.where(index)}: a second {suffix} of one item")
        group[suffix] = index
    for group in groups.values():
        if what not in group:
            first = files.where(next(iter(group.values())))
            raise ItemError(f"{first}: there is no {what} of that name; {listed}")
    if not groups:
        raise ValueError(f"{path}: holds no {what}s; {listed}")
    found: list[tuple[Any, int]] = [(None, -1)] * len(groups)
    if options.labels != "none":
        found = [_shard_label(files, group, options) for group in groups.values()]
    labels, used = zip(*found, strict=True)
    notes = []
    if len(paths) > 1 and set(used) == {-1}:
        notes.append("each tar is a shard, and a class with --kind=tar")
    origin = {"kind": "webdataset", "path": str(path)}
    chosen = [group[what] for group in groups.values()]
    return _make_items(files, chosen, labels, origin, options, notes, used)


def find_shards(path: Path) -> list[Path]:
    """The tars in a folder, the tar itself, or those that a pattern names, sorted.

    Patterns are the shell's ``a-*.tar`` and webdataset's ``a-{000..146}.tar``, whose
    shards must all be there, else it raises FileNotFoundError.
    """
    if path.is_dir():
        return tars_in(path)
    if path.exists():
        return [path]
    found = _RANGE.search(str(path))
    if not found:
        return refuse_broken(sorted(Path(name) for name in glob.glob(str(path))))
    first, last = found.groups()
    numbers = (f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1))
    start, end = str(path)[: found.start()], str(path)[found.end() :]
    paths = [Path(f"{start}{number}{end}") for number in numbers]
    missing = [path for path in paths if not path.exists()]
    if missing:
        raise FileNotFoundError(
            f"{path}: {len(missing)} of {len(paths)} shards do not exist; the first is "
            f"{missing[0]}"
        )
    return paths


def _shard_label(
    files: Files, group: dict[str, int], options: Options
) -> tuple[Any, int]:
    """The label of an item and the file it is in; None and -1 where it has none."""
    if "cls" in group:
        where, text = files.where(group["cls"]), files.read(group["cls"])
        try:
            return int(text), group["cls"]
        except ValueError:
            raise ItemError(f"{where}: {text[:40]!r} is not a whole number") from None
    if "json" in group:
        where = files.where(group["json"])
        content = _parse_json(files.read(group["json"]), where)
        if isinstance(content, dict) and options.label_key in content:
            return content[options.label_key], group["json"]
    return None, -1
