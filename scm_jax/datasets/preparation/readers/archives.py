"""Files in zip and tar archives, by number and without unpacking.

An archive is walked once for the place of each file in it: its bytes in a tar, its name
in a zip. Listings can be pickled, and threads and processes read at once.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import posixpath
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from scm_jax.datasets.preparation.readers.folder_files import is_hidden
from scm_jax.datasets.preparation.readers.items import ItemError
from scm_jax.datasets.preparation.readers.links import follow_links

# What compressed files start with; none of them can be read from the middle.
COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstandard",
}
_DAMAGE = (zipfile.BadZipFile, OSError, ValueError, NotImplementedError)


@dataclasses.dataclass(frozen=True, eq=False)
class ArchiveFiles:
    """Files in one or several archives.

    Attributes:
      paths: the archives.
      names: of the files; with several archives each is unique in its own.
      archive: ``(n,)``, which archive a file is in.
      offset: ``(n,)``, its first byte in a tar.
      size: ``(n,)``, how many bytes it has there.
      members: the names of the files in the directory of a zip; empty for a tar.
      sizes: the bytes of each archive.
      broken: the files that are links to nothing in the archive, and what they name.
      empty: see ``Files``.
      hidden: see ``Files``.
    """

    paths: tuple[str, ...]
    names: tuple[str, ...]
    archive: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    members: tuple[str, ...]
    sizes: dict[str, Any]
    broken: Mapping[int, str]
    empty: tuple[str, ...]
    hidden: int

    def where(self, index: int) -> str:
        return f"{self.paths[self.archive[index]]}: {self.names[index]}"

    def read(self, index: int) -> bytes:
        path = self.paths[self.archive[index]]
        if (target := self.broken.get(int(index))) is not None:
            raise ItemError(
                f"{self.where(index)}: is a link to nothing: {target} is not in the "
                "archive"
            )
        try:
            if self.members:
                changed = os.stat(path).st_mtime_ns
                archive = _open_zip(path, changed, os.getpid())
                return archive.read(self.members[index])
            with open(path, "rb", buffering=0) as file:
                file.seek(int(self.offset[index]))
                return _read_exactly(file, int(self.size[index]))
        except (EOFError, KeyError, zlib.error, *_DAMAGE) as error:
            raise ItemError(
                f"{self.where(index)}: cannot be read, the archive is cut off or "
                f"damaged: {error}"
            ) from error


# By process: a forked child would share the position in the file with its parent.
@functools.lru_cache(maxsize=4)
def _open_zip(path: str, changed: int, process: int) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


def _read_exactly(file: IO[bytes], size: int) -> bytes:
    pieces = []
    while size:  # one call gives at most 2 GB
        piece = file.read(size)
        if not piece:
            raise EOFError("the file ends before it")
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


@dataclasses.dataclass(frozen=True, slots=True)
class _Place:
    """Where one file is in an archive; see ``ArchiveFiles``.

    A folder has a slash at the end of its name. ``target`` is what a link names that
    leads to nothing.
    """

    name: str
    offset: int = 0
    size: int = 0
    member: str = ""
    target: str | None = None


def _collect(paths: Sequence[Path], places: list[list[_Place]]) -> ArchiveFiles:
    shown = [[p for p in inside if not is_hidden(p.name)] for inside in places]
    files = [[p for p in inside if not p.name.endswith("/")] for inside in shown]
    for path, inside in zip(paths, files, strict=True):
        seen: set[str] = set()
        for place in inside:
            if place.name in seen:
                raise ValueError(f"{path}: holds {place.name} twice")
            seen.add(place.name)
    flat = [place for inside in files for place in inside]
    numbers = np.repeat(np.arange(len(paths)), [len(inside) for inside in files])
    return ArchiveFiles(
        paths=tuple(map(str, paths)),
        names=tuple(place.name for place in flat),
        archive=numbers,
        offset=np.array([place.offset for place in flat], np.int64),
        size=np.array([place.size for place in flat], np.int64),
        members=tuple(p.member for p in flat) if any(p.member for p in flat) else (),
        sizes={"files": {path.name: path.stat().st_size for path in paths}},
        broken={i: p.target for i, p in enumerate(flat) if p.target is not None},
        empty=_empty_folders([place.name for inside in shown for place in inside]),
        hidden=sum(
            is_hidden(p.name) and not p.name.endswith("/") for i in places for p in i
        ),
    )


def _empty_folders(names: Sequence[str]) -> tuple[str, ...]:
    folders = {name for name in names if name.endswith("/")}
    filled = {name.rpartition("/")[0] for name in names if name not in folders}
    for folder in list(filled):
        while folder := folder.rpartition("/")[0]:
            filled.add(folder)
    return tuple(sorted(name for name in folders if name[:-1] not in filled))


def zip_members(path: Path) -> list[zipfile.ZipInfo]:
    """The directory of a zip.

    Raises:
      ValueError: it is cut off or damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.infolist()
    except _DAMAGE as error:
        raise ValueError(
            f"{path}: the zip archive is cut off or damaged: {error}"
        ) from error


def index_zip(path: Path) -> ArchiveFiles:
    """The files in a zip, in the order of their names.

    Raises:
      ValueError: it is cut off or damaged, encrypted, or compressed by other than
        deflate.
    """
    places, links = [], {}
    for member in zip_members(path):
        name = _clean(member.filename)
        known = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
        if member.compress_type not in known or member.flag_bits & 1:
            raise ValueError(
                f"{path}: {member.filename} is encrypted or compressed in a way that "
                "is not read here; legal are stored and deflated files"
            )
        if stat.S_ISLNK(member.external_attr >> 16):
            with zipfile.ZipFile(path) as archive:
                target = archive.read(member).decode("utf-8", "surrogateescape")
            links[name] = posixpath.join(posixpath.dirname(name), target)
            continue
        places.append(_Place(name, member=member.filename))
    return _collect([path], [_by_name(_follow(places, links))])


def _clean(name: str) -> str:
    """A path from the root of the archive, also of old programs for Windows."""
    return name.replace("\\", "/").removeprefix("./")


def _follow(places: list[_Place], links: dict[str, str]) -> list[_Place]:
    """The files with those behind links, which are paths from the archive's root."""
    files = {place.name: place for place in places if not place.name.endswith("/")}
    found, broken = follow_links(files, links)
    return [
        *places,
        *(dataclasses.replace(place, name=name) for name, place in found.items()),
        *(
            # What has no suffix may have been a folder.
            _Place(name + ("" if "." in posixpath.basename(name) else "/"), target=to)
            for name, to in broken.items()
        ),
    ]


def _by_name(places: list[_Place]) -> list[_Place]:
    return sorted(places, key=lambda place: place.name.split("/"))


def index_tar(path: Path) -> ArchiveFiles:
    """The files in a tar in the order of their names, also in tars in that tar.

    A file of an inner tar bears its name too: ``n01440764/n01440764_18.JPEG`` is in
    ``n01440764.tar``. A folder of tars is read as if it were a tar of them.
    """
    paths = tars_in(path) if path.is_dir() else [path]
    states = tuple((p, p.stat().st_size, p.stat().st_mtime_ns) for p in paths)
    return _index_tar(states, path.is_dir())


def tars_in(folder: Path) -> list[Path]:
    """The tars in a folder, sorted."""
    shown = (p for p in folder.glob("*.tar") if not is_hidden(p.name))
    return refuse_broken(sorted(shown))


def refuse_broken(paths: list[Path]) -> list[Path]:
    """The paths; raises FileNotFoundError where one is a link to nothing."""
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{path}: is a link to nothing: {path.readlink()}")
    return paths


@functools.lru_cache(maxsize=1)  # to recognize a tar and then to read it
def _index_tar(
    states: tuple[tuple[Path, int, int], ...], in_folders: bool
) -> ArchiveFiles:
    paths = [path for path, *_ in states]
    places = [_open_tar(path) for path in paths]
    if in_folders:
        stems = [path.stem for path in paths]
        places = [_in_folder(s, p) for s, p in zip(stems, places, strict=True)]
    return _collect(paths, [_by_name(inside) for inside in places])


def _open_tar(path: Path) -> list[_Place]:
    """The files in a tar, and those in the tars in it."""
    with path.open("rb") as file:
        _refuse_compressed(path, file)
        places = []
        for place in _tar_places(file, str(path)):
            if not place.name.endswith(".tar") or is_hidden(place.name):
                places.append(place)
                continue
            if place.target is not None:
                raise ValueError(
                    f"{path}: {place.name} is a link to nothing: {place.target} is "
                    "not in the archive"
                )
            window = _Window(file, place.offset, place.size)
            inside = _tar_places(window, f"{path}: {place.name}")
            places += _in_folder(
                place.name.removesuffix(".tar"), inside, offset=place.offset
            )
    return places


def _in_folder(folder: str, places: list[_Place], offset: int = 0) -> list[_Place]:
    return [
        dataclasses.replace(p, name=f"{folder}/{p.name}", offset=offset + p.offset)
        for p in places
    ]


def index_shards(paths: Sequence[Path]) -> ArchiveFiles:
    """The files in several tars, in the order in which they are stored."""
    places = []
    for path in paths:
        with path.open("rb") as file:
            _refuse_compressed(path, file)
            places.append(_tar_places(file, str(path)))
    return _collect(paths, places)


def _refuse_compressed(path: Path, file: IO[bytes]) -> None:
    start = file.read(8)
    file.seek(0)
    for magic, name in COMPRESSED.items():
        if start.startswith(magic):
            raise ValueError(
                f"{path}: is compressed with {name}, and a compressed archive can be "
                "read from its start only, not item by item. Uncompress it first "
                "(images are compressed already), or unpack it and give the folder"
            )


class _Window:
    """A part of an open file as a file, for a tar inside of a tar."""

    def __init__(self, file: Any, start: int, size: int):
        self.file, self.start, self.size, self.position = file, start, size, 0

    def seek(self, position: int) -> int:
        self.position = position
        return position

    def tell(self) -> int:
        return self.position

    def read(self, size: int) -> bytes:
        size = max(min(size, self.size - self.position), 0)
        self.file.seek(self.start + self.position)
        content = self.file.read(size)
        self.position += len(content)
        return content


def _tar_places(file: Any, where: str) -> list[_Place]:
    places, links = [], {}
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            end = 0
            while (member := archive.next()) is not None:
                # tarfile keeps them all: 1 kB for each image.
                archive.members.clear()  # type: ignore[attr-defined]
                if member.issparse():
                    raise ValueError(f"{where}: {member.name} is a sparse file")
                name = _clean(member.name)
                if member.isreg():
                    places.append(_Place(name, member.offset_data, member.size))
                elif member.isdir() and name != ".":
                    places.append(_Place(f"{name}/"))
                elif member.issym():
                    folder = posixpath.dirname(name)
                    links[name] = posixpath.join(folder, member.linkname)
                elif member.islnk():
                    links[name] = member.linkname
                # After a whole file the archive may only go on or end with zeros;
                # tarfile takes whatever is no header for the end.
                end = archive.offset
        file.seek(end)
        if file.read(512) != bytes(512):
            raise tarfile.ReadError("it has no end mark")
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(
            f"{where}: the tar archive is empty, cut off or damaged: {error}"
        ) from error
    return _follow(places, links)
