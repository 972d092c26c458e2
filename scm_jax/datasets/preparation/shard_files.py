"""Files that appear whole or not at all, and what goes wrong with them."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def disk_errors(file: Path) -> Iterator[None]:
    """Array records report a full disk as a RuntimeError; here it is an OSError."""
    try:
        yield
    except (RuntimeError, ValueError, OSError) as error:
        no = error.errno if isinstance(error, OSError) else None
        known = {"No space left": errno.ENOSPC, "File too large": errno.EFBIG}
        no = no or next((n for text, n in known.items() if text in str(error)), None)
        raise OSError(
            no or errno.EIO,
            f"cannot write {file}: "
            f"{os.strerror(no) if no else error}. Make room and run the same command "
            "again: whole shards are kept",
        ) from error


def num_records(file: Path) -> int:
    """Items of a shard, from its own index.

    Raises:
      OSError: it is not whole.
    """
    from array_record.python import array_record_module as array_record

    try:
        reader = array_record.ArrayRecordReader(str(file))
        try:
            return reader.num_records()
        finally:
            reader.close()
    except RuntimeError as error:
        raise OSError(errno.EIO, f"not whole: {error}") from error


def sha256(file: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def write_json(file: Path, value: Any, indent: int | None = None) -> None:
    """Writes a JSON file that appears, or changes, by one rename."""
    written = temporary(file.parent, file.name)
    try:
        with open(written, "w") as opened:
            opened.write(json.dumps(value, indent=indent) + "\n")
            opened.flush()
            os.fsync(opened.fileno())
        os.replace(written, file)
    finally:
        written.unlink(missing_ok=True)


def temporary(folder: Path, name: str) -> Path:
    """Where this process writes a file until it is whole."""
    return folder / f"{_prefix(name)}{os.getpid()}"


def _prefix(name: str) -> str:
    return f".{name}.{socket.gethostname()}."


def remove_leftovers(folder: Path, name: str) -> None:
    """Removes what killed processes of this machine left of a file.

    For the holder of the file's claim: no other process of this machine writes it.
    """
    for file in folder.iterdir():
        if file.name.startswith(_prefix(name)):
            file.unlink(missing_ok=True)
