"""Paths, numbers and switches as people type them; they may have no home directory."""

from __future__ import annotations

import contextlib
import math
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


def whole_number(text: str) -> int:
    """An int as people type it; anything else is a ``ValueError``.

    Example:
      >>> whole_number("1e6"), whole_number("1_000")
      (1000000, 1000)
    """
    with contextlib.suppress(ValueError):
        return int(text)
    with contextlib.suppress(ValueError):
        if float(text).is_integer():
            return int(float(text))
    raise ValueError(
        f"{text!r} is not a whole number: write digits, such as 1000000 or 1e6"
    )


def real_number(text: str) -> float:
    """A finite float from text; anything else is a ``ValueError``.

    Example:
      >>> real_number("none")
      Traceback (most recent call last):
      ValueError: 'none' is not a finite number: write for example 0.001 or 1e-3
    """
    with contextlib.suppress(ValueError):
        if math.isfinite(number := float(text)):
            return number
    raise ValueError(
        f"{text!r} is not a finite number: write for example 0.001 or 1e-3"
    )


def yes_or_no(text: str) -> bool:
    """A flag's word as a bool, an empty one as true; others are a ``ValueError``.

    Example:
      >>> yes_or_no("TRUE"), yes_or_no("off")
      (True, False)
    """
    words = dict.fromkeys(("yes", "true", "on", "1", ""), True)
    words |= dict.fromkeys(("no", "false", "off", "0"), False)
    if text.lower() not in words:
        raise ValueError(f"{text!r} is not one of {sorted(words)}")
    return words[text.lower()]
