"""Packages that are needed for one purpose only."""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass
logger = logging.getLogger(__name__)


class MissingPackageError(ImportError):
    """An optional package is not installed; the message says which."""


def require(module: str, purpose: str, package: str) -> Any:
    """Imports an optional module.

    Raises:
      MissingPackageError: it is missing; the message says what to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = error.name or module
        raise MissingPackageError(
            f"{purpose} needs {missing!r}, which cannot be imported: "
            f"pip install {package!r}"
        ) from error
