"""Files in folders and archives, by number and without unpacking."""

from __future__ import annotations

import collections
import dataclasses
import functools
import os
import stat
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from scm_jax.datasets.preparation.readers.items import ItemError, damaged

# What a damaged zip makes zipfile raise.
DAMAGE = (zipfile.BadZipFile, OSError, ValueError, NotImplementedError)
_DAMAGE = (*DAMAGE, EOFError, KeyError, zlib.error)


class Place(NamedTuple):
    """Where one file lies, or a folder, whose name ends with a slash."""

    name: str  # path with ``/`` in the folder or archive
    root: str  # the folder or archive
    size: int = 0
    offset: int = 0  # its first byte in a tar
    member: str = ""  # its name in the directory of a zip
    target: str | None = None  # of a link that leads to nothing: what it names


@dataclasses.dataclass(frozen=True, eq=False)
class Files:
    """Files in a fixed order; picklable, and read by threads and processes at once."""

    places: tuple[Place, ...]
    sizes: dict[str, Any]  # what identifies them, ready for JSON
    # Folders without a file, and links to nothing that may have been folders.
    empty: tuple[str, ...]
    hidden: int  # hidden files that were passed over; a hidden folder counts as one

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(place.name for place in self.places)

    def where(self, index: int) -> str:
        return f"{self.places[index].root}: {self.places[index].name}"

    def read(self, index: int) -> bytes:
        """The bytes of a file; raises ItemError where it cannot be read."""
        place, where = self.places[index], self.where(index)
        if place.target is not None:
            raise ItemError(f"{where}: is a link to nothing: {place.target}")
        with damaged(
            f"{where}: cannot be read, cut off or damaged", _DAMAGE, ItemError
        ):
            if place.member:
                changed = os.stat(place.root).st_mtime_ns
                content = _open_zip(place.root, changed, os.getpid()).read(place.member)
            elif place.offset:
                with open(place.root, "rb") as file:
                    file.seek(place.offset)
                    content = file.read(place.size)
                if len(content) < place.size:
                    raise EOFError("the file ends before it")
            else:
                content = Path(place.root, place.name).read_bytes()
        return content


# By process: a forked child would share the position in the file with its parent.
@functools.lru_cache(maxsize=4)
def _open_zip(path: str, changed: int, process: int) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


def collect(places: Iterable[Place], sizes: dict[str, Any]) -> Files:
    """Files without the hidden ones, from the places of files and folders."""
    places = list(places)
    shown = [place for place in places if not is_hidden(place.name)]
    files = [place for place in shown if not place.name.endswith("/")]
    seen = set()
    for place in files:
        if (place.root, place.name) in seen:
            raise ValueError(f"{place.root}: holds {place.name} twice")
        seen.add((place.root, place.name))
    return Files(
        places=tuple(files),
        sizes=sizes,
        empty=_empty_folders({place.name for place in shown}),
        hidden=sum(is_hidden(p.name) and not p.name.endswith("/") for p in places),
    )


def _empty_folders(names: set[str]) -> tuple[str, ...]:
    folders = {name for name in names if name.endswith("/")}
    filled = {name.rpartition("/")[0] for name in names - folders}
    for folder in list(filled):
        while folder := folder.rpartition("/")[0]:
            filled.add(folder)
    return tuple(sorted(name for name in folders if name[:-1] not in filled))


def by_name(place: Place) -> list[str]:
    """Sorts ``a/x`` before ``a-b/x``: by the names of folders, not by whole paths."""
    return place.name.split("/")


def broken_link(name: str, root: str, target: str) -> Place:
    """The place of a link to nothing; without a suffix it may have been a folder."""
    slash = "" if "." in name.rpartition("/")[2] else "/"
    return Place(name + slash, root, target=target)


def list_folder(root: Path) -> Files:
    """The files below a folder, also behind links, sorted by name."""
    files = collect(sorted(_walk(str(root)), key=by_name), {})
    num_bytes = sum(place.size for place in files.places)
    sizes = {"num_files": len(files.places), "num_bytes": num_bytes}
    return dataclasses.replace(files, sizes=sizes)


def _walk(root: str, below: str = "", depth: int = 0) -> Iterator[Place]:
    if depth > 16:
        raise ValueError(
            f"{root}: {below} is deeper than 16 folders, or links to itself"
        )
    with os.scandir(os.path.join(root, below)) as entries:
        found = list(entries)
    for entry in found:
        name = below + entry.name
        if is_hidden(entry.name):  # a hidden folder is not entered
            yield Place(name, root)
            continue
        try:
            status = entry.stat()
        except OSError:
            if not entry.is_symlink():
                raise
            yield broken_link(name, root, os.readlink(entry))
            continue
        if stat.S_ISDIR(status.st_mode):
            yield Place(f"{name}/", root)
            yield from _walk(root, f"{name}/", depth + 1)
        else:
            yield Place(name, root, status.st_size)


def is_hidden(name: str) -> bool:
    """Whether a path is one that file managers leave behind.

    Example:
      >>> is_hidden("__MACOSX/._a.png"), is_hidden("a/.DS_Store"), is_hidden("a/b.png")
      (True, True, False)
    """
    parts = name.split("/")
    return "__MACOSX" in parts or any(part.startswith(".") for part in parts)


def count_kinds(names: Iterable[str]) -> list[str]:
    """How many files there are of each suffix, the most frequent first.

    Example:
      >>> count_kinds(["a.txt", "README", "b/c.TXT"])
      ['2 .txt', '1 without a suffix']
    """
    kinds = collections.Counter(
        PurePosixPath(name).suffix.lower() or "without a suffix" for name in names
    )
    counts = [f"{number:,} {kind}" for kind, number in kinds.most_common(6)]
    return counts + ([f"{len(kinds) - 6} other kinds"] if len(kinds) > 6 else [])
