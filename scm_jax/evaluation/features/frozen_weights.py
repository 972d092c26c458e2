"""Small frozen networks that are package data: weights, their hash, and layers.

The hash keeps numbers comparable: distances in other features are other numbers.
"""

from __future__ import annotations

import functools
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scm_jax.files.tensors import tensors_sha256

FOLDER = Path(__file__).parents[1] / "weights"
BATCH_SIZE = 256


def load(
    path: Path, shapes: Mapping[str, tuple[int, ...]], sha256: str, dtype: type
) -> dict[str, np.ndarray]:
    """The arrays of an ``.npz`` in ``dtype``, after a check of shapes and hash.

    The hash is that of ``tensors.tensors_sha256``.

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


def loader(
    path: Path, shapes: Mapping[str, tuple[int, ...]], sha256: str, dtype: type
) -> Callable[..., dict[str, np.ndarray]]:
    """``load`` of one network, once from each path; ``path`` if none is given."""
    return functools.cache(lambda file=path: load(file, shapes, sha256, dtype))


def with_biases(
    kernels: Mapping[str, tuple[int, ...]], mark: str = "."
) -> dict[str, tuple[int, ...]]:
    """Shapes of ``layer.kernel`` and ``layer.bias`` by the shapes of the kernels."""
    return {
        f"{layer}{mark}{part}": shape if part == "kernel" else shape[-1:]
        for layer, shape in kernels.items()
        for part in ("kernel", "bias")
    }


def convolution(
    weights: Mapping[str, Any], layer: str, h: jax.Array, stride: int, mark: str = "."
) -> jax.Array:
    """One layer on images ``(n, h, w, c)``, padded to their size, in full precision.

    ``mark`` lies between the names of the layer and of its kernel.
    """
    h = jax.lax.conv_general_dilated(
        h,
        weights[f"{layer}{mark}kernel"],
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=jax.lax.Precision.HIGHEST,
    )
    return h + weights[f"{layer}{mark}bias"][None, None, None]


def dense(
    weights: Mapping[str, Any], layer: str, h: jax.Array, mark: str = "."
) -> jax.Array:
    """One layer on vectors ``(n, c)``, in full precision."""
    kernel, bias = (weights[f"{layer}{mark}{part}"] for part in ("kernel", "bias"))
    return jnp.dot(h, kernel, precision="highest") + bias[None]


def in_batches(
    read: Callable[[Any, Any], dict[str, jax.Array]],
    weights: Mapping[str, Any],
    pixels: np.ndarray,
    shapes: Sequence[tuple[int, ...]],
) -> dict[str, np.ndarray]:
    """``read(weights, pixels)`` in batches of one size, so that a machine repeats it.

    Raises:
      ValueError: ``pixels`` are not uint8 of one of ``shapes``.
    """
    if pixels.shape[1:] not in shapes or pixels.dtype != np.uint8:
        expected = " or ".join(f"(n, {', '.join(map(str, s))})" for s in shapes)
        raise ValueError(
            f"pixels are {pixels.dtype} {pixels.shape}: expected uint8 {expected}"
        )
    found = []
    for start in range(0, len(pixels), BATCH_SIZE):
        batch = pixels[start : start + BATCH_SIZE]
        missing = [(0, BATCH_SIZE - len(batch))] + [(0, 0)] * (batch.ndim - 1)
        part = read(weights, np.pad(batch, missing))
        found.append({k: np.asarray(v)[: len(batch)] for k, v in part.items()})
    return {k: np.concatenate([part[k] for part in found]) for k in found[0]}
