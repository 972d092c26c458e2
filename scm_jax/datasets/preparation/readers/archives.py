"""The files in zips and tars, also behind links and in tars inside of tars."""

from __future__ import annotations

import bisect
import functools
import posixpath
import stat
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from scm_jax.datasets.preparation.readers.files import (
    DAMAGE,
    Files,
    Place,
    broken_link,
    by_name,
    collect,
    is_hidden,
)
from scm_jax.datasets.preparation.readers.items import damaged

# What compressed files start with; none of them can be read from the middle.
COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstandard",
}
_MAX_LINKS = 40  # as many as the kernel follows before it calls them a loop


def zip_members(path: Path) -> list[zipfile.ZipInfo]:
    """The directory of a zip; raises ValueError where it is cut off or damaged."""
    with damaged(f"{path}: the zip archive is cut off or damaged", DAMAGE):
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    return members


def index_zip(path: Path) -> Files:
    """The files in a zip, sorted by name; raises ValueError where one is unreadable."""
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
        else:
            places.append(Place(name, str(path), member=member.filename))
    found = _follow(places, links, str(path))
    return collect(sorted(found, key=by_name), _sizes([path]))


def index_tar(path: Path) -> Files:
    """The files in a tar, sorted by name, and in the tars in that tar.

    A file of an inner tar bears its name too: ``n01440764/n01440764_18.JPEG`` is in
    ``n01440764.tar``. A folder of tars is read as if it were a tar of them.
    """
    paths = tars_in(path) if path.is_dir() else [path]
    states = tuple((p, p.stat().st_size, p.stat().st_mtime_ns) for p in paths)
    return _index_tar(states, path.is_dir())


@functools.lru_cache(maxsize=1)  # to recognize a tar and then to read it
def _index_tar(states: tuple[tuple[Path, int, int], ...], in_folder: bool) -> Files:
    paths = [path for path, *_ in states]
    places = []
    for path in paths:
        inside = _open_tar(path, unfold=True)
        inside = _below(path.stem, inside) if in_folder else inside
        places += sorted(inside, key=by_name)
    return collect(places, _sizes(paths))


def index_shards(paths: Sequence[Path]) -> Files:
    """The files in several tars, in the order in which they are stored."""
    places = [place for path in paths for place in _open_tar(path, unfold=False)]
    return collect(places, _sizes(paths))


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


def _sizes(paths: Sequence[Path]) -> dict[str, Any]:
    return {"files": {path.name: path.stat().st_size for path in paths}}


def _clean(name: str) -> str:
    """A path from the root of the archive, also of old programs for Windows."""
    return name.replace("\\", "/").removeprefix("./")


def _below(folder: str, places: list[Place], offset: int = 0) -> list[Place]:
    return [
        p._replace(name=f"{folder}/{p.name}", offset=offset + p.offset) for p in places
    ]


def _open_tar(path: Path, unfold: bool) -> list[Place]:
    with path.open("rb") as file:
        start = file.read(8)
        file.seek(0)
        for magic, name in COMPRESSED.items():
            if start.startswith(magic):
                raise ValueError(
                    f"{path}: is compressed with {name}, so it can only be read from "
                    "its start. Uncompress it first (images are compressed already), "
                    "or unpack it and give the folder"
                )
        return _tar_places(file, str(path), str(path), unfold)


def _tar_places(file: IO[bytes], root: str, where: str, unfold: bool) -> list[Place]:
    """The files in an open tar; with ``unfold`` those in its tars, in their place."""
    places, links = [], {}
    what = f"{where}: the tar archive is empty, cut off or damaged"
    errors = (tarfile.TarError, EOFError, OSError)
    with damaged(what, errors), tarfile.open(fileobj=file, mode="r:") as archive:
        end = 0
        while (member := archive.next()) is not None:
            # tarfile keeps them all: 1 kB for each image.
            archive.members.clear()  # type: ignore[attr-defined]
            if member.issparse():
                raise ValueError(f"{where}: {member.name} is a sparse file")
            name = _clean(member.name)
            if member.isreg():
                places.append(Place(name, root, member.size, member.offset_data))
            elif member.isdir() and name != ".":
                places.append(Place(f"{name}/", root))
            elif member.issym():
                links[name] = posixpath.join(posixpath.dirname(name), member.linkname)
            elif member.islnk():
                links[name] = member.linkname
            # After a whole file the archive may only go on or end with zeros; tarfile
            # takes whatever is no header for the end.
            end = archive.offset
        file.seek(end)
        if file.read(512) != bytes(512):
            raise tarfile.ReadError("it has no end mark")
        places = _follow(places, links, root)
        if unfold:
            unfolded = [_unfold(archive, place, where) for place in places]
            places = [place for inside in unfolded for place in inside]
    return places


def _unfold(archive: tarfile.TarFile, tar: Place, where: str) -> list[Place]:
    """The files in a tar inside of an archive; another file as it is."""
    if not tar.name.endswith(".tar") or is_hidden(tar.name):
        return [tar]
    if tar.target is not None:
        raise ValueError(f"{where}: {tar.name} is a link to nothing: {tar.target}")
    member = tarfile.TarInfo(tar.name)
    member.offset_data, member.size = tar.offset, tar.size
    file: Any = archive.extractfile(member)
    inside = _tar_places(file, tar.root, f"{where}: {tar.name}", unfold=False)
    return _below(tar.name.removesuffix(".tar"), inside, tar.offset)


# --- links ----------------------------------------------------------------------------


def _follow(places: list[Place], links: Mapping[str, str], root: str) -> list[Place]:
    """The places, those behind links under the links' names, and links to nothing.

    ``links`` and what they name are paths from the archive's root. A link to a folder
    stands for all files in it. Nothing outside of the archive is ever looked at: a link
    that leaves it, or that leads to itself, leads to nothing.
    """
    known = {place.name: place for place in places if not place.name.endswith("/")}
    ends = {link: _end(link, links) for link in links}
    found = {link: known[end] for link, end in ends.items() if end in known}
    known |= found
    names, broken = sorted(known), []
    for link, end in ends.items():
        if end in known:
            continue
        inside: list[str] = []
        if not f"{link}/".startswith(f"{end}/"):
            first = bisect.bisect_left(names, f"{end}/")
            inside = names[first : bisect.bisect_left(names, f"{end}0")]  # 0 is / + 1
        if not inside:
            target = posixpath.normpath(links[link])
            broken.append(broken_link(link, root, f"{target} is not in the archive"))
        for name in inside:
            found[f"{link}/{name[len(end) + 1 :]}"] = known[name]
    renamed = (place._replace(name=name) for name, place in found.items())
    return [*places, *renamed, *broken]


def _end(name: str, links: Mapping[str, str]) -> str:
    """The path that a link leads to in the end; itself where it goes in circles."""
    first = name
    for _ in range(_MAX_LINKS):
        parts = name.split("/")
        heads = ["/".join(parts[: depth + 1]) for depth in range(len(parts))]
        depth = next((d for d, head in enumerate(heads) if head in links), None)
        if depth is None:
            return name
        name = posixpath.normpath("/".join([links[heads[depth]], *parts[depth + 1 :]]))
    return first
