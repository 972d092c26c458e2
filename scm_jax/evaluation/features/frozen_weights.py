"""Frozen weights that are package data: an ``.npz`` file and the hash it must have.

The hash keeps numbers comparable: distances in other features are other numbers.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from scm_jax.files.tensors import tensors_sha256

FOLDER = Path(__file__).parents[1] / "weights"


def load(
    path: Path, shapes: Mapping[str, tuple[int, ...]], sha256: str, dtype: type
) -> dict[str, np.ndarray]:
    """The arrays of an ``.npz`` in ``dtype``, after their hash was checked.

    Args:
      path: the file.
      shapes: of all arrays, by name.
      sha256: what ``tensors.tensors_sha256`` must give.
      dtype: of the result.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a damaged file, other arrays, or another hash.
    """
    try:
        with open(path, "rb") as file, np.load(file) as arrays:
            weights = dict(arrays)
    except (zipfile.BadZipFile, EOFError, ValueError) as error:
        raise ValueError(f"{path} is damaged: install the package again") from error
    found_shapes = {name: array.shape for name, array in weights.items()}
    if found_shapes != dict(shapes):
        raise ValueError(f"{path} holds {found_shapes}: expected {dict(shapes)}")
    found = tensors_sha256(weights)
    if found != sha256:
        raise ValueError(
            f"{path} has sha256 {found}, expected {sha256}: distances in other features"
            " cannot be compared. After training new weights on purpose, put their hash"
            f" into WEIGHTS_SHA256 of scm_jax/evaluation/features/{path.stem}.py."
        )
    return {name: array.astype(dtype) for name, array in weights.items()}
