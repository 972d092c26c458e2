"""Files in folders, zip and tar archives, by number and without unpacking.

An archive is walked once for the place of each file in it. Reading then takes that
place and nothing else: no handle is kept, so listings can be pickled, and threads and
processes read at once.
"""

from __future__ import annotations

import dataclasses
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from scm_jax.preparation.items import ItemError

# What compressed files start with; none of them can be read from the middle.
COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstandard",
}
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a file in a zip: lengths of two fields
_STORED, _DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED


class Files(Protocol):
    """Files with names, in a fixed order; picklable."""

    @property
    def names(self) -> tuple[str, ...]:
        """Their paths with ``/``, relative to the folder or archive."""
        ...

    @property
    def sizes(self) -> dict[str, Any]:
        """What identifies them, ready for JSON."""
        ...

    def where(self, index: int) -> str: ...

    def read(self, index: int) -> bytes: ...


def is_hidden(name: str) -> bool:
    """Whether a path is one that file managers leave behind.

    >>> is_hidden("__MACOSX/._a.png"), is_hidden("a/.DS_Store"), is_hidden("a/b.png")
    (True, True, False)
    """
    parts = name.split("/")
    return "__MACOSX" in parts or any(part.startswith(".") for part in parts)


# --- folders --------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class FolderFiles:
    """All files below a folder.

    Attributes:
      root: the folder.
      names: of the files, see ``Files``.
      sizes: their number and bytes.
      empty: the folders that nothing lies in.
    """

    root: str
    names: tuple[str, ...]
    sizes: dict[str, Any]
    empty: tuple[str, ...]

    def where(self, index: int) -> str:
        return f"{self.root}: {self.names[index]}"

    def read(self, index: int) -> bytes:
        try:
            return (Path(self.root) / self.names[index]).read_bytes()
        except OSError as error:
            raise ItemError(f"{self.where(index)}: cannot be read: {error}") from error


def list_folder(root: Path) -> FolderFiles:
    """The files below a folder, also behind links, hidden ones left out."""
    found = dict(_walk(str(root), ""))
    sizes = {name: size for name, size in found.items() if not name.endswith("/")}
    names = sorted(sizes, key=lambda name: name.split("/"))
    total = {"num_files": len(sizes), "num_bytes": sum(sizes.values())}
    empty = tuple(sorted(found.keys() - sizes.keys()))
    return FolderFiles(str(root), tuple(names), total, empty)


def _walk(root: str, below: str, depth: int = 0) -> Iterator[tuple[str, int]]:
    """Files with their bytes; of folders only the empty ones, with a slash."""
    if depth > 16:
        raise ValueError(
            f"{root}: {below} is deeper than 16 folders, or links to itself"
        )
    with os.scandir(os.path.join(root, below)) as entries:
        found = [(entry.name, entry.stat()) for entry in entries]
    if not found and below:
        yield below, 0
    for name, status in found:
        if is_hidden(name):
            continue
        if stat.S_ISDIR(status.st_mode):
            yield from _walk(root, f"{below}{name}/", depth + 1)
        else:
            yield below + name, status.st_size


# --- archives -------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class ArchiveFiles:
    """Files in one or several archives.

    Attributes:
      paths: the archives.
      names: of the files; with several archives each is unique in its own.
      archive: ``(n,)``, which archive a file is in.
      offset: ``(n,)``, its first byte there; in a zip that of its local header.
      stored: ``(n,)``, how many bytes it takes.
      crc: ``(n,)``, checksum of its content, -1 for none (tar).
      length: ``(n,)``, bytes of its content where these are deflated, else -1.
      sizes: the bytes of each archive.
    """

    paths: tuple[str, ...]
    names: tuple[str, ...]
    archive: np.ndarray
    offset: np.ndarray
    stored: np.ndarray
    crc: np.ndarray
    length: np.ndarray
    sizes: dict[str, Any]

    def where(self, index: int) -> str:
        return f"{self.paths[self.archive[index]]}: {self.names[index]}"

    def read(self, index: int) -> bytes:
        path = self.paths[self.archive[index]]
        try:
            with open(path, "rb", buffering=0) as file:
                return self._read(file, index)
        except (OSError, EOFError, zlib.error, struct.error) as error:
            raise ItemError(
                f"{self.where(index)}: cannot be read, the archive is cut off or "
                f"damaged: {error}"
            ) from error

    def _read(self, file: IO[bytes], index: int) -> bytes:
        file.seek(int(self.offset[index]))
        if self.crc[index] >= 0:  # a zip has a header of its own before each file
            header = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
            if header[0] != b"PK\x03\x04":
                raise EOFError("there is no file where the directory says")
            file.seek(header[1] + header[2], os.SEEK_CUR)
        content = _read_exactly(file, int(self.stored[index]))
        if (length := int(self.length[index])) >= 0:
            content = zlib.decompressobj(-15).decompress(content, length + 1)
            if len(content) != length:
                raise EOFError(f"it unpacks to other than {length:,} bytes")
        if self.crc[index] >= 0 and zlib.crc32(content) != self.crc[index]:
            raise EOFError("its checksum is another one")
        return content


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
    """Where one file is in an archive; see ``ArchiveFiles``."""

    name: str
    offset: int
    stored: int
    crc: int = -1
    length: int = -1


def _collect(paths: Sequence[Path], places: list[list[_Place]]) -> ArchiveFiles:
    for path, inside in zip(paths, places, strict=True):
        seen: set[str] = set()
        for place in inside:
            if place.name in seen:
                raise ValueError(f"{path}: holds {place.name} twice")
            seen.add(place.name)
    flat = [place for inside in places for place in inside]
    numbers = np.repeat(np.arange(len(paths)), [len(inside) for inside in places])
    columns = ("offset", "stored", "crc", "length")
    return ArchiveFiles(
        paths=tuple(map(str, paths)),
        names=tuple(place.name for place in flat),
        archive=numbers,
        **{c: np.array([getattr(p, c) for p in flat], np.int64) for c in columns},
        sizes={"files": {path.name: path.stat().st_size for path in paths}},
    )


def zip_members(path: Path) -> list[zipfile.ZipInfo]:
    """The directory of a zip.

    Raises:
      ValueError: it is cut off or damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise ValueError(
            f"{path}: the zip archive is cut off or damaged: {error}"
        ) from error


def index_zip(path: Path) -> ArchiveFiles:
    """The files in a zip, in the order of their names.

    Raises:
      ValueError: it is cut off or damaged, encrypted, or compressed by other than
        deflate.
    """
    places = []
    for member in zip_members(path):
        if member.is_dir() or is_hidden(member.filename):
            continue
        if member.compress_type not in (_STORED, _DEFLATED) or member.flag_bits & 1:
            raise ValueError(
                f"{path}: {member.filename} is encrypted or compressed in a way that "
                "is not read here; legal are stored and deflated files"
            )
        deflated = member.compress_type == _DEFLATED
        places.append(
            _Place(
                member.filename,
                member.header_offset,
                member.compress_size,
                member.CRC,
                member.file_size if deflated else -1,
            )
        )
    return _collect([path], [_by_name(places)])


def _by_name(places: list[_Place]) -> list[_Place]:
    return sorted(places, key=lambda place: place.name.split("/"))


def index_tar(path: Path) -> ArchiveFiles:
    """The files in a tar in the order of their names, also in tars in that tar.

    A file of an inner tar bears its name too: ``n01440764/n01440764_18.JPEG`` is in
    ``n01440764.tar``. A folder of tars is read as if it were a tar of them.
    """
    if path.is_dir():
        paths = sorted(path.glob("*.tar"))
        places = [_by_name(_in_folder(tar.stem, _open_tar(tar))) for tar in paths]
        return _collect(paths, places)
    return _collect([path], [_by_name(_open_tar(path))])


def _open_tar(path: Path) -> list[_Place]:
    places = []
    with path.open("rb") as file:
        _refuse_compressed(path, file)
        for place in _tar_places(file, str(path)):
            if not place.name.endswith(".tar"):
                places.append(place)
                continue
            window = _Window(file, place.offset, place.stored)
            inside = list(_tar_places(window, f"{path}: {place.name}"))
            places += _in_folder(
                place.name.removesuffix(".tar"), inside, offset=place.offset
            )
    return places


def _in_folder(folder: str, places: list[_Place], offset: int = 0) -> list[_Place]:
    return [
        _Place(f"{folder}/{place.name}", offset + place.offset, place.stored)
        for place in places
    ]


def index_shards(paths: Sequence[Path]) -> ArchiveFiles:
    """The files in several tars, in the order in which they are stored."""
    places = []
    for path in paths:
        with path.open("rb") as file:
            _refuse_compressed(path, file)
            places.append(list(_tar_places(file, str(path))))
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


def _tar_places(file: Any, where: str) -> Iterator[_Place]:
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            end = 0
            while (member := archive.next()) is not None:
                archive.members.clear()  # tarfile keeps them all: 1 kB for each image
                if member.issparse():
                    raise ValueError(f"{where}: {member.name} is a sparse file")
                name = member.name.removeprefix("./")
                if member.isreg() and not is_hidden(name):
                    yield _Place(name, member.offset_data, member.size)
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
