"""Whole or not: a list of what a checkpoint folder must hold, sealed into it.

Orbax makes a save visible by one rename. What happens to the files later it notices
only in part: it reads flipped bits of an array without complaint. So every folder
carries the size and the CRC-32 of its files, written before the rename.
"""

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
# Without these nobody can read the arrays of an item: their names, and the index that
# joins what processes wrote.
_INDEX = ("_METADATA", "manifest.ocdbt")
# Folders that are no checkpoints by intent: set aside, or not saved to their end.
_NO_STEP = re.compile(r"\..*|\d+\.(damaged|orbax-checkpoint-tmp).*")


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or none of those present is whole."""


def list_steps(directory: str | os.PathLike) -> list[int]:
    """Steps of the finished checkpoints in ``directory``, in ascending order."""
    names = _names(directory)
    return sorted(int(name) for name in names if _is_step(name))


def find_strays(directory: str | os.PathLike) -> list[str]:
    """Folders beside the checkpoints that their names keep from being any."""
    found = [n for n in _names(directory) if not _is_step(n) and not _NO_STEP.match(n)]
    return sorted(name for name in found if (pathlib.Path(directory) / name).is_dir())


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
    """A file without which the arrays of an item of ``files`` cannot be read."""
    files = set(files)
    for name in sorted(files):
        folder, _, rest = name.partition("/")
        is_part = rest in _INDEX or rest.startswith("ocdbt.process_")
        if not is_part or not name.startswith(item):
            continue
        for needed in _INDEX:
            if f"{folder}/{needed}" not in files:
                return f"{folder}/{needed}"
    return None


def find_damage(directory: pathlib.Path, item: str = "") -> str | None:
    """What is wrong with a checkpoint directory, or with one item of it; None if whole.

    Reads every file once, at the speed of CRC-32 (about 1 GB/s).
    """
    try:
        return _find_damage(directory, item)
    except OSError as error:
        return f"it cannot be read: {error}"


def _find_damage(directory: pathlib.Path, item: str) -> str | None:
    manifest = directory / MANIFEST
    if not manifest.is_file():
        return f"no {MANIFEST} (not saved to its end, or not by this program)"
    try:
        files = json.loads(manifest.read_text())
    except ValueError as error:
        return f"{MANIFEST} is damaged: {error}"
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
    return None


def newest_whole(directory: pathlib.Path, item: str = "") -> tuple[int, dict[int, str]]:
    """The newest whole step of ``directory`` and the damage of the newer ones.

    Raises:
      FileNotFoundError: there is no checkpoint.
      CheckpointError: there are some, none is whole; says what is wrong with each.
    """
    steps = list_steps(directory)
    if not steps:
        raise FileNotFoundError(f"no checkpoint in {directory}{strays_text(directory)}")
    damaged: dict[int, str] = {}
    for step in reversed(steps):
        problem = find_damage(directory / str(step), item)
        if problem is None:
            for bad, why in damaged.items():
                logger.warning(
                    "checkpoint %s is damaged: %s; falling back to %s",
                    directory / str(bad),
                    why,
                    directory / str(step),
                )
            if strays := strays_text(directory):
                logger.warning("using checkpoint %s%s", directory / str(step), strays)
            return step, damaged
        damaged[step] = problem
    listed = "\n".join(f"  {step}: {why}" for step, why in damaged.items())
    raise CheckpointError(
        f"none of the {len(damaged)} checkpoints in {directory} is whole:\n{listed}\n"
        "Put a copy back, or move that folder away to start again from step 0."
    )


def strays_text(directory: pathlib.Path) -> str:
    """What a message on ``directory`` says of its strays; empty if there are none."""
    names = ", ".join(repr(name) for name in find_strays(directory))
    if not names:
        return ""
    return (
        f"; not used: {names} (the name of a checkpoint is its step number; "
        "rename a folder to use it)"
    )


def set_aside(path: pathlib.Path) -> None:
    """Frees the name of a damaged checkpoint, so that its step can be saved again."""
    target, n = path.with_name(f"{path.name}.damaged"), 1
    while target.exists():
        target, n = path.with_name(f"{path.name}.damaged-{n}"), n + 1
    logger.warning("renamed %s to %s", path, target.name)
    path.rename(target)
