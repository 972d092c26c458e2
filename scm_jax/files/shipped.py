"""Folders of the repository that travel with the package: experiments and data."""

from __future__ import annotations

import os
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def folder(name: str) -> Path:
    """``experiments`` or ``data``: the checkout's, or in a wheel the package's own."""
    inside = _PACKAGE / "shipped" / name
    return inside if inside.is_dir() else _PACKAGE.parent / name


def find(path: str | os.PathLike[str]) -> Path:
    """``path``, or the shipped file of that name where there is none here.

    Example:
      >>> find("experiments/digits.py").is_file()
      True
    """
    first, *rest = Path(path).parts or ("",)
    if not Path(path).exists() and first in ("experiments", "data"):
        return folder(first).joinpath(*rest)
    return Path(path)
