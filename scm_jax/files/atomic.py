"""Files that are whole or not there, and the digests that identify them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to; what is there at the end replaces ``path``, on disk.

    After an error, a crash or on a full disk, ``path`` has its old content.
    """
    # Containers that share a folder often have one process id.
    own = f"{socket.gethostname()}.{os.getpid()}"
    unfinished = path.with_name(f".{path.name}.{own}.tmp")
    try:
        yield unfinished
        with unfinished.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Writes a text whole or not at all (``replacing``)."""
    with replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def json_sha256(value: Any) -> str:
    """SHA-256 of a value's one JSON text, hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def file_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
