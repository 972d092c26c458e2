"""Packages that are needed for one purpose only."""

from __future__ import annotations

import importlib
from typing import Any


class MissingPackageError(ImportError):
    """An optional package is not installed; the message says which."""


def require(module: str, purpose: str, package: str) -> Any:
    """Imports an optional module; a ``MissingPackageError`` says what to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = error.name or module
        raise MissingPackageError(
            f"{purpose} needs {missing!r}, which cannot be imported: "
            f"pip install {package!r}"
        ) from error
