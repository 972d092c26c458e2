"""Sealed checkpoints: a list of the files of each folder, written into it."""

# Orbax makes a save visible by one rename, and later reads flipped bits of an array
# without complaint. So every folder carries the size and the CRC-32 of its files,
# written before the rename.

from __future__ import annotations

import json
import logging
import os
import pathlib
import re
import zlib
from collections.abc import Iterable

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
# Orbax writes these after the manifest; they hold times, no training state.
_UNSEALED = (MANIFEST, "_CHECKPOINT_METADATA", "commit_success.txt")
# The names of an item's arrays, and the index that joins what processes wrote: without
# these nobody can read the arrays.
_INDEX = ("_METADATA", "manifest.ocdbt")
_ARRAYS = re.compile(r"([^/]+)/(_METADATA$|manifest\.ocdbt$|ocdbt\.process_)")
# Folders that are no checkpoints by intent: set aside, or not saved to their end.
_NO_STEP = re.compile(r"\..*|\d+\.(damaged|orbax-checkpoint-tmp).*")


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or none of those present is whole."""


def list_steps(directory: str | os.PathLike) -> list[int]:
    """Steps of the finished checkpoints in ``directory``, in ascending order."""
    return sorted(int(name) for name in _names(directory) if _is_step(name))


def strays_text(directory: str | os.PathLike) -> str:
    """Part of a message: folders that their names keep from being checkpoints."""
    strays = (n for n in _names(directory) if not _is_step(n) and not _NO_STEP.match(n))
    folders = sorted(n for n in strays if (pathlib.Path(directory) / n).is_dir())
    if not folders:
        return ""
    return (
        f"; not used: {', '.join(map(repr, folders))} (the name of a checkpoint is its "
        "step number; rename a folder to use it)"
    )


def _names(directory: str | os.PathLike) -> list[str]:
    return os.listdir(directory) if os.path.isdir(directory) else []


def _is_step(name: str) -> bool:
    return name.isdecimal() and name.isascii() and str(int(name)) == name


def _checksum(path: pathlib.Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            crc = zlib.crc32(chunk, crc)
    return crc


def write_manifest(directory: pathlib.Path) -> None:
    """Seals a folder: size and CRC-32 of every file in it, as ``manifest.json``.

    Raises:
      CheckpointError: a file is missing that reading needs.
    """
    files = {
        str(path.relative_to(directory)): [path.stat().st_size, _checksum(path)]
        for path in sorted(directory.rglob("*"))
        if path.is_file() and str(path.relative_to(directory)) not in _UNSEALED
    }
    if missing := _missing_index(files):
        raise CheckpointError(f"{missing} was not written: nobody could read its item")
    (directory / MANIFEST).write_text(json.dumps(files, indent=0))


def _missing_index(files: Iterable[str], item: str = "") -> str | None:
    found = map(_ARRAYS.match, (name for name in files if name.startswith(item)))
    folders = sorted({match[1] for match in found if match})
    needed = (f"{folder}/{name}" for folder in folders for name in _INDEX)
    return next((name for name in needed if name not in files), None)


def find_damage(directory: pathlib.Path, item: str = "") -> str | None:
    """What is wrong with a checkpoint directory, or with one item of it; None if whole.

    Reads every file once, at the speed of CRC-32 (about 1 GB/s).
    """
    if not (directory / MANIFEST).is_file():
        return f"no {MANIFEST} (not saved to its end, or not by this program)"
    try:
        files = json.loads((directory / MANIFEST).read_text())
        if missing := _missing_index(files, item):
            return f"{missing} was never written"
        for name, (size, crc) in files.items():
            path = directory / name
            if not name.startswith(item):
                continue
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size} bytes, {size} were written"
            if _checksum(path) != crc:
                return f"{name} has changed since it was written"
    except ValueError as error:
        return f"{MANIFEST} is damaged: {error}"
    except OSError as error:
        return f"it cannot be read: {error}"
    return None


def newest_whole(directory: pathlib.Path, item: str = "") -> tuple[int, dict[int, str]]:
    """The newest whole step of ``directory`` and the damage of the newer ones.

    Raises:
      FileNotFoundError: there is no checkpoint.
      CheckpointError: there are some, none is whole; says what is wrong with each.
    """
    damaged: dict[int, str] = {}
    for step in reversed(list_steps(directory)):
        path = directory / str(step)
        problem = find_damage(path, item)
        if problem is None:
            for bad, why in damaged.items():
                logger.warning(
                    "checkpoint %s is damaged: %s; falling back to %s",
                    *(directory / str(bad), why, path),
                )
            if strays := strays_text(directory):
                logger.warning("using checkpoint %s%s", path, strays)
            return step, damaged
        damaged[step] = problem
    if not damaged:
        raise FileNotFoundError(f"no checkpoint in {directory}{strays_text(directory)}")
    listed = "\n".join(f"  {step}: {why}" for step, why in damaged.items())
    raise CheckpointError(
        f"none of the {len(damaged)} checkpoints in {directory} is whole:\n{listed}\n"
        "Put a copy back, or move that folder away to start again from step 0."
    )


def set_aside(path: pathlib.Path) -> None:
    """Frees the name of a damaged checkpoint, so that its step can be saved again."""
    target, n = path.with_name(f"{path.name}.damaged"), 1
    while target.exists():
        target, n = path.with_name(f"{path.name}.damaged-{n}"), n + 1
    logger.warning("renamed %s to %s", path, target.name)
    path.rename(target)
