"""Paths that users give or that lie in their home directory, which may not exist."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def expand(path: str | os.PathLike[str]) -> Path:
    """``path`` with ``~`` and ``~name`` replaced; a ValueError if they are unknown."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(
            f"{os.fspath(path)}: this user's home directory is not known; set HOME, or "
            "write an absolute path"
        ) from error


def cache_folder(*parts: str) -> Path | None:
    """``~/.cache/scm_jax/PARTS``; None where the user has no home directory."""
    try:
        return expand("~/.cache/scm_jax").joinpath(*parts)
    except ValueError:
        return None


def writable(path: str | os.PathLike[str]) -> Path:
    """``path`` of a file to write later; an OSError now if none can be made there."""
    path = expand(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            path.open("ab").close()
        else:
            tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    return path
