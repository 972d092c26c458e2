"""Webdataset shards: tars in which the files of one item share a name."""

from __future__ import annotations

import glob
import re
from pathlib import Path
from typing import Any

from scm_jax.datasets.preparation.readers.archives import (
    ArchiveFiles,
    index_shards,
    refuse_broken,
    tars_in,
)
from scm_jax.datasets.preparation.readers.decode import is_image
from scm_jax.datasets.preparation.readers.file_items import (
    LISTED,
    FileItems,
    make_items,
    parse_json,
)
from scm_jax.datasets.preparation.readers.items import ItemError
from scm_jax.datasets.preparation.readers.options import Options

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")  # of webdataset's patterns


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
            raise ItemError(f"{first}: there is no image of that name; {LISTED}")
    chosen = [group["image"] for group in groups.values()]
    if not chosen:
        raise ValueError(f"{path}: holds no images; {LISTED}")
    found: list[tuple[Any, int]] = [(None, -1)] * len(chosen)
    if options.labels != "none":
        found = [_shard_label(files, group, options) for group in groups.values()]
    labels, used = zip(*found, strict=True)
    notes = []
    if len(paths) > 1 and set(used) == {-1}:
        notes.append("each tar is a shard, and a class with --kind=tar")
    origin = {"kind": "webdataset", "path": str(path)}
    return make_items(files, chosen, labels, origin, options, notes, used)


def find_shards(path: Path) -> list[Path]:
    """The tars in a folder, the tar itself, or those that a pattern names, sorted.

    Patterns are the shell's ``a-*.tar`` and webdataset's ``a-{000..146}.tar``; of the
    second kind all must be there.

    Raises:
      FileNotFoundError: shards of a range are missing; names the first.
    """
    if path.is_dir():
        return tars_in(path)
    if path.exists():
        return [path]
    if found := _RANGE.search(str(path)):
        return _shards_of_range(str(path), found)
    return refuse_broken(sorted(Path(name) for name in glob.glob(str(path))))


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


def _shard_label(
    files: ArchiveFiles, group: dict[str, int], options: Options
) -> tuple[Any, int]:
    """The label of an item and the file it is in; None and -1 where it has none."""
    if "cls" in group:
        where, text = files.where(group["cls"]), files.read(group["cls"])
        try:
            return int(text), group["cls"]
        except ValueError:
            raise ItemError(f"{where}: {text[:40]!r} is no whole number") from None
    if "json" in group:
        where = files.where(group["json"])
        content = parse_json(files.read(group["json"]), where)
        if isinstance(content, dict) and options.label_key in content:
            return content[options.label_key], group["json"]
    return None, -1
