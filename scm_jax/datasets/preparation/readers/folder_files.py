"""Files with names, and those below a folder."""

from __future__ import annotations

import collections
import dataclasses
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from scm_jax.datasets.preparation.readers.items import ItemError


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

    @property
    def empty(self) -> tuple[str, ...]:
        """Folders without a file, each with a slash at its end."""
        ...

    @property
    def hidden(self) -> int:
        """How many hidden files were passed over."""
        ...

    def where(self, index: int) -> str: ...

    def read(self, index: int) -> bytes: ...


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


@dataclasses.dataclass(frozen=True, eq=False)
class FolderFiles:
    """All files below a folder.

    Attributes:
      root: the folder.
      names: of the files, see ``Files``.
      sizes: their number and bytes.
      empty: see ``Files``; links to nothing that may have been folders, too.
      hidden: see ``Files``; a hidden folder counts as one.
    """

    root: str
    names: tuple[str, ...]
    sizes: dict[str, Any]
    empty: tuple[str, ...]
    hidden: int

    def where(self, index: int) -> str:
        return f"{self.root}: {self.names[index]}"

    def read(self, index: int) -> bytes:
        path = Path(self.root) / self.names[index]
        try:
            return path.read_bytes()
        except OSError as error:
            if path.is_symlink() and not path.exists():
                raise ItemError(
                    f"{self.where(index)}: is a link to nothing: {path.readlink()}"
                ) from error
            raise ItemError(f"{self.where(index)}: cannot be read: {error}") from error


def list_folder(root: Path) -> FolderFiles:
    """The files below a folder, also behind links, hidden ones left out."""
    found = dict(_walk(str(root), ""))
    shown = {name: size for name, size in found.items() if not is_hidden(name)}
    sizes = {name: size for name, size in shown.items() if not name.endswith("/")}
    names = sorted(sizes, key=lambda name: name.split("/"))
    total = {"num_files": len(sizes), "num_bytes": sum(sizes.values())}
    empty = tuple(sorted(shown.keys() - sizes.keys()))
    return FolderFiles(str(root), tuple(names), total, empty, len(found) - len(shown))


def _walk(root: str, below: str, depth: int = 0) -> Iterator[tuple[str, int]]:
    """Files with their bytes; of folders only the empty and the hidden ones."""
    if depth > 16:
        raise ValueError(
            f"{root}: {below} is deeper than 16 folders, or links to itself"
        )
    with os.scandir(os.path.join(root, below)) as entries:
        found = [(e.name, None if is_hidden(e.name) else _status(e)) for e in entries]
    if below and all(is_hidden(name) for name, _ in found):
        yield below, 0
    for name, status in found:
        if status is None and not is_hidden(name):  # a link to nothing
            yield below + name + ("" if "." in name else "/"), 0
        elif status is not None and stat.S_ISDIR(status.st_mode):
            yield from _walk(root, f"{below}{name}/", depth + 1)
        else:
            yield below + name, status.st_size if status else 0


def _status(entry: os.DirEntry[str]) -> os.stat_result | None:
    """What an entry is, or what it links to; None for a link to nothing."""
    try:
        return entry.stat()
    except OSError:
        if entry.is_symlink():
            return None
        raise
