"""Features of many images: batches over all devices of a process, and feature networks.

How to add a network: write ``apply(params, x) -> {"features": (b, d), ...}`` and a
function that loads its weights and returns a ``FeatureNet``.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Outputs = dict[str, np.ndarray]
Apply = Callable[[Any, jax.Array], dict[str, jax.Array]]


def unchanged(images: np.ndarray) -> np.ndarray:
    """The images as they are."""
    return images


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureNet:
    """A pretrained network that maps images to features.

    Attributes:
      name: of the network; it enters a number's protocol, as do the next two.
      weights_sha256: of its weights, see ``tensors.tensors_sha256``.
      resize: name of the rule that brings images to the network's size.
      apply: ``(params, x (b, ...)) -> {"features": (b, d), ...}``, traced by JAX; a
        function of a module, so that it is compiled once.
      params: arrays, the first argument of ``apply``.
      prepare: uint8 ``(n, h, w, 3)`` -> ``x``, row by row in numpy.
      batch_size: images at a time.
    """

    name: str
    weights_sha256: str
    resize: str
    apply: Apply
    params: Any
    prepare: Callable[[np.ndarray], np.ndarray] = unchanged
    batch_size: int = 64

    def __call__(self, images: np.ndarray | Iterable[np.ndarray]) -> Outputs:
        """All of ``batches`` in one; ValueError if there are no images."""
        parts = list(self.batches(images))
        if not parts:
            raise ValueError(f"{self.name}: no images to extract features of")
        return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}

    def batches(self, images: np.ndarray | Iterable[np.ndarray]) -> Iterator[Outputs]:
        """``"features"`` ``(b, d)`` and the other outputs, float32, in batches.

        Images are split over the devices of this process; ``batch_size`` is rounded up
        to a multiple of these. Row i of an output may depend on image i only.

        Args:
          images: uint8 ``(n, h, w, c)`` with c = 1 (grey, repeated to 3) or 3, or an
            iterable of such arrays of one height and width.

        Raises:
          ValueError: ``batch_size`` below 1, or images of another type or shape.
        """
        if self.batch_size < 1:
            raise ValueError(f"batch_size = {self.batch_size}: must be at least 1")
        run, split, whole = _compiled(self.apply)
        params = jax.device_put(self.params, whole)
        devices = jax.local_device_count()
        size = -(-self.batch_size // devices) * devices
        chunks = [images] if isinstance(images, np.ndarray) else images
        prepared = (self.prepare(as_rgb(chunk)) for chunk in chunks)
        before: tuple[dict[str, jax.Array], int] | None = None
        for batch, count in _batches(prepared, size):
            # While the devices work on a batch, the one before is fetched.
            outputs = run(params, jax.device_put(batch, split))
            if before is not None:
                yield _fetch(*before)
            before = outputs, count
        if before is not None:
            yield _fetch(*before)


def as_rgb(images: np.ndarray) -> np.ndarray:
    """uint8 ``(n, h, w, 1 or 3)`` -> ``(n, h, w, 3)``; grey is repeated.

    Raises:
      ValueError: another dtype or shape.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(
            f"images are {images.dtype} {images.shape}: expected uint8 (n, h, w, c)"
            " with c = 1 or 3"
        )
    return np.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images


@functools.lru_cache(maxsize=8)
def _compiled(apply: Apply) -> tuple[Callable, NamedSharding, NamedSharding]:
    """The jitted ``apply``, where batches lie, and where parameters lie."""
    mesh = Mesh(np.array(jax.local_devices()), ("images",))
    split = NamedSharding(mesh, PartitionSpec("images"))
    whole = NamedSharding(mesh, PartitionSpec())

    def in_float32(params, x):
        # Also where the hardware's default is less.
        with jax.default_matmul_precision("highest"):
            return apply(params, x)

    run = jax.jit(in_float32, in_shardings=(whole, split), out_shardings=split)
    return run, split, whole


def _batches(
    chunks: Iterable[np.ndarray], size: int
) -> Iterator[tuple[np.ndarray, int]]:
    """Batches of ``size`` rows, the last one padded, and how many of them count."""
    rest: np.ndarray | None = None
    for chunk in chunks:
        if rest is not None and chunk.shape[1:] != rest.shape[1:]:
            raise ValueError(
                f"images of shape {chunk.shape[1:]} after such of {rest.shape[1:]}:"
                " all must have one shape"
            )
        rest = chunk if rest is None else np.concatenate([rest, chunk])
        full = len(rest) // size * size
        for start in range(0, full, size):
            yield rest[start : start + size], size
        rest = rest[full:]
    if rest is not None and len(rest):
        padding = [(0, size - len(rest))] + [(0, 0)] * (rest.ndim - 1)
        yield np.pad(rest, padding), len(rest)


def _fetch(outputs: dict[str, jax.Array], count: int) -> Outputs:
    return {name: np.asarray(x)[:count] for name, x in outputs.items()}
