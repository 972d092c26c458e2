"""What a source of raw data is told, and what it gives to the preparation."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import numpy as np

from scm_jax.types import lookup

LABELS = {"auto": "where there are any", "required": "", "none": "left out"}
NO_SPLIT = "none"  # as a split: folders that look like splits are classes
# Twice the number at which Pillow warns, where it refuses an image.
MAX_PIXELS = 178_956_970


class ItemError(ValueError):
    """One item cannot be used; the message names file and item."""


@dataclasses.dataclass(frozen=True)
class Options:
    """How a source is read; a kind refuses options that it has no use for.

    Attributes:
      split: part of the data (``--source_split``): a folder such as ``train`` around or
        inside of class folders, or a split of CIFAR-10 or tfds; ``NO_SPLIT`` where
        folders with such names are classes; None for what ``target`` says.
      target: the split that is made of the data, which is read where they have splits;
        None for all there is (CIFAR-10 and tfds: train).
      labels: ``auto`` takes labels where there are any, ``required`` makes missing ones
        an error, ``none`` leaves them out.
      label_file: text with a file and its class in each line, for images outside of
        class folders (ImageNet's validation images); see ``label_files``.
      label_base: number of the first class; 1 for the files of ImageNet 64x64.
      num_classes: how many classes there are; None for as many as are seen.
      label_key: key of the label in the ``.json`` of webdataset shards.
      channels: 3 for RGB, whatever is stored; 1 for grey.
      upright: turn images as their EXIF orientation asks. Off, since the published
        figures (ADM, EDM2) were measured without.
      max_pixels: larger images are bad items: a file of a few bytes may take all
        memory.
    """

    split: str | None = None
    target: str | None = None
    labels: str = "auto"
    label_file: str | None = None
    label_base: int = 0
    num_classes: int | None = None
    label_key: str = "label"
    channels: int = 3
    upright: bool = False
    max_pixels: int = MAX_PIXELS

    def __post_init__(self):
        lookup(LABELS, self.labels, "labels")
        if self.label_file is not None:  # a path may be given, and the origin is JSON
            object.__setattr__(self, "label_file", str(self.label_file))
        if self.channels not in (1, 3):
            raise ValueError(f"channels = {self.channels!r} is not one of [1, 3]")
        if self.num_classes is not None and self.num_classes < 1:
            raise ValueError(f"num_classes = {self.num_classes} must be at least 1")


class Items(Protocol):
    """Raw items in a fixed order; picklable, so that several processes read them.

    Attributes:
      class_names: names of the classes 0, 1, ... in order; empty for unlabelled data.
      origin: what identifies the raw data, ready for JSON: kind, path, file sizes.
    """

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def origin(self) -> dict[str, Any]: ...

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """Where an item comes from, for messages: ``a.tar: n01440764/1.JPEG``."""
        ...

    def read(self, index: int) -> dict[str, np.ndarray]:
        """The stored fields of one item.

        ``image`` uint8 ``(h, w, 3)`` or ``(h, w, 1)``, of any size, or ``latent``
        float32 ``(h, w, c)``; with classes also ``label``, a 0-dimensional int64.

        Raises:
          ItemError: it does not decode, or its label is out of range.
        """
        ...


@dataclasses.dataclass(frozen=True)
class ArrayItems:
    """Items in memory: fields stacked over items."""

    fields: dict[str, np.ndarray]
    class_names: tuple[str, ...] = ()
    origin: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.fields.values())))

    def name(self, index: int) -> str:
        return f"item {index}"

    def read(self, index: int) -> dict[str, np.ndarray]:
        return {name: values[index] for name, values in self.fields.items()}
