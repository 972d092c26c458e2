"""Prepared images or clips as raw items of latents, which the preparation then stores.

Mean and standard deviation of the posterior are stored, so that training draws latents
anew at every visit. A mirrored latent is not the latent of the mirrored image: where
both are wanted, both are encoded.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from scm_jax.datasets.preparation import prepare
from scm_jax.datasets.preparation.readers.items import ItemError, Items

SHARD_ITEMS = 2048  # 256 MiB of 64x64 latents in float32


@dataclasses.dataclass(frozen=True)
class Encoder:
    """What turns a batch of images into latents."""

    # uint8 (batch_size, h, w, c) -> float32 (batch_size, h', w', 2 c'), mean and
    # standard deviation; each image by itself. Clips have frames before h.
    encode: Callable[[np.ndarray], np.ndarray]
    batch_size: int
    # For the manifest: ``pixel_range`` in which pixels enter, ``name``, and ``sha256``
    # of the weights.
    identity: dict[str, Any]


class EncodedItems:
    """Items of latents; see ``Items``.

    Batches begin at multiples of the batch size: an image is always encoded in the same
    company, so that the stored bytes do not depend on where a preparation was
    interrupted. The last batch is kept.

    Args:
      images: items of images, all of one shape.
      encoder: see ``Encoder``.
      flips: item ``2 i`` is image ``i``, item ``2 i + 1`` its mirror image, with the
        same label. Beside each other, so that a slice of a split keeps them together.
    """

    def __init__(self, images: Items, encoder: Encoder, flips: bool = False):
        self.images, self.encoder, self.flips = images, encoder, flips
        self.class_names = images.class_names
        self.origin = {
            "kind": "encoded",
            "path": images.origin.get("path"),
            "split": images.origin.get("split"),
            "images": images.origin,
            "flips": flips,
        }
        if "frame_rate" in images.origin:  # of the clips, not of the latents
            self.origin["frame_rate"] = images.origin["frame_rate"]
        self._encoded = functools.lru_cache(maxsize=1)(self._encode_batch)

    def __len__(self) -> int:
        return len(self.images) * (1 + self.flips)

    def name(self, index: int) -> str:
        image, mirrored = divmod(index, 1 + self.flips)
        return self.images.name(image) + (", mirrored" if mirrored else "")

    def read(self, index: int) -> dict[str, np.ndarray]:
        start = index - index % self.encoder.batch_size
        found = self._encoded(start)[index - start]
        if isinstance(found, ItemError):
            raise found
        return found

    def _encode_batch(self, start: int) -> list[dict[str, np.ndarray] | ItemError]:
        """Each item of a batch, or why it cannot be used."""
        stop = min(start + self.encoder.batch_size, len(self))
        read: list[Any] = [self._read_image(index) for index in range(start, stop)]
        shape = next((r["pixels"].shape for r in read if isinstance(r, dict)), None)
        if shape is None:
            return read
        batch = np.zeros((self.encoder.batch_size, *shape), np.uint8)
        for k, item in enumerate(read):
            if not isinstance(item, dict):
                continue
            if item["pixels"].shape == shape:
                batch[k] = item["pixels"]
                continue
            read[k] = ItemError(
                f"{self.name(start + k)} has shape {item['pixels'].shape}, and the "
                f"images before it {shape}; all must have one to be encoded together"
            )
        latents = np.asarray(self.encoder.encode(batch), np.float32)
        for item, latent in zip(read, latents, strict=False):
            if isinstance(item, dict):
                del item["pixels"]
                item["latent"] = latent
        return read

    def _read_image(self, index: int) -> dict[str, np.ndarray] | ItemError:
        image, mirrored = divmod(index, 1 + self.flips)
        try:
            fields = dict(self.images.read(image))
        except ItemError as error:
            return error
        field = next((name for name in ("image", "clip") if name in fields), None)
        if field is None:
            return ItemError(f"{self.name(index)} is no image: {sorted(fields)}")
        pixels = fields.pop(field)
        return {**fields, "pixels": pixels[..., ::-1, :] if mirrored else pixels}


def encode_dataset(
    images: Items,
    encoder: Encoder,
    target: Path,
    *,
    flips: bool = False,
    shard_items: int = 0,
    **settings: Any,
) -> Path:
    """Writes the latents of images as a prepared dataset; see ``prepare.prepare``.

    Args:
      images: items of images, such as ``sources.open_items`` of a prepared folder.
      encoder: see ``Encoder``; the manifest repeats its identity.
      target: ``ROOT/NAME/VERSION``, which is returned.
      flips: store the latents of the mirrored images, too.
      shard_items: items in a shard, rounded up to whole batches; 0 for 2,048.
      **settings: further arguments of ``prepare.prepare``.
    """
    batches = -(-(shard_items or SHARD_ITEMS) // encoder.batch_size)
    return prepare.prepare(
        EncodedItems(images, encoder, flips),
        target,
        shard_items=batches * encoder.batch_size,
        options={"flips": flips},
        encoder=encoder.identity,
        **settings,
    )
