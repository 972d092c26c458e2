"""What every source of raw data looks like to the preparation."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import numpy as np


class ItemError(ValueError):
    """One item cannot be used; the message names file and item."""


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
    """Items that are in memory already: fields stacked over items."""

    fields: dict[str, np.ndarray]
    class_names: tuple[str, ...] = ()
    origin: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.fields.values())))

    def name(self, index: int) -> str:
        return f"item {index}"

    def read(self, index: int) -> dict[str, np.ndarray]:
        return {name: values[index] for name, values in self.fields.items()}
