"""Items that are drawn, not stored: each is a function of seed, split and number."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from scm_jax.types import check_choice, check_seed

SPLITS = ("train", "test")

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(z: np.ndarray) -> np.ndarray:
    """SplitMix64's finalizer (Steele, Lea, Flood 2014, Fig. 17); wraps around."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def uniforms(seed: int, stream: int, indices: np.ndarray, num: int) -> np.ndarray:
    """``num`` numbers in [0, 1) for each item, ``(n, num)`` float64, by a counter.

    Example:
      >>> uniforms(0, 0, np.array([5, 6]), 2).round(3).tolist()
      [[0.086, 0.973], [0.563, 0.568]]
    """
    item = np.asarray(indices, np.uint64)[:, None]
    start = _mix(np.array([[seed]], np.uint64) + _GOLDEN)
    start = _mix(start + np.array([[stream]], np.uint64) * _GOLDEN)
    start = _mix(start + item * _GOLDEN)
    counter = np.arange(1, num + 1, dtype=np.uint64)[None]
    return (_mix(start + counter * _GOLDEN) >> np.uint64(11)) * 2.0**-53


@dataclasses.dataclass(frozen=True)
class DrawnSource:
    """A split that is drawn when it is asked for: a ``pipeline.Source`` but ``gather``.

    A longer set begins with a shorter one.
    """

    split: str = "train"  # one of SPLITS, which have other items
    num_items: int = 20_000
    seed: int = dataclasses.field(default=0, kw_only=True)
    dataset: ClassVar[str]  # for messages
    stream: ClassVar[int]  # of the first split; those of all data differ

    def __post_init__(self) -> None:
        check_choice(self.split, SPLITS, f"split of dataset {self.dataset!r}")
        check_seed(self.seed)
        if self.num_items < 1:
            raise ValueError(f"dataset.num_items = {self.num_items} must be at least 1")

    def __len__(self) -> int:
        return self.num_items

    def uniforms(self, indices: np.ndarray, num: int) -> np.ndarray:
        """``uniforms`` of some items of the split, ``(n, num)``."""
        stream = self.stream + SPLITS.index(self.split)
        return uniforms(self.seed, stream, indices, num)
