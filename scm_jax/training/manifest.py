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
import zlib

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
# Orbax writes these after the manifest; they hold times, no training state.
_UNSEALED = (MANIFEST, "_CHECKPOINT_METADATA", "commit_success.txt")


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or none of those present is whole."""


def list_steps(directory: str | os.PathLike) -> list[int]:
    """Steps of the finished checkpoints in ``directory``, in ascending order."""
    directory = pathlib.Path(directory)
    if not directory.is_dir():
        return []
    return sorted(int(p.name) for p in directory.iterdir() if p.name.isdigit())


def _checksum(path: pathlib.Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            crc = zlib.crc32(chunk, crc)
    return crc


def write_manifest(directory: pathlib.Path) -> None:
    """Seals a folder: size and CRC-32 of every file in it, as ``manifest.json``."""
    files = {
        str(path.relative_to(directory)): [path.stat().st_size, _checksum(path)]
        for path in sorted(directory.rglob("*"))
        if path.is_file() and str(path.relative_to(directory)) not in _UNSEALED
    }
    (directory / MANIFEST).write_text(json.dumps(files, indent=0))


def find_damage(directory: pathlib.Path, item: str = "") -> str | None:
    """What is wrong with a checkpoint directory, or with one item of it; None if whole.

    Reads every file once, at the speed of CRC-32 (about 1 GB/s).
    """
    manifest = directory / MANIFEST
    if not manifest.is_file():
        return f"no {MANIFEST} (not saved to its end, or not by this program)"
    try:
        files = json.loads(manifest.read_text())
    except ValueError as error:
        return f"{MANIFEST} is damaged: {error}"
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
        raise FileNotFoundError(f"no checkpoint in {directory}")
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
            return step, damaged
        damaged[step] = problem
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
