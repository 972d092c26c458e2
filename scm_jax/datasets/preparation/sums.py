"""What is summed over the items of a shard, and the record of a whole one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scm_jax.datasets.front_ends import FrontEnd
from scm_jax.files.atomic import file_sha256

if TYPE_CHECKING:
    from scm_jax.datasets.preparation.shards import Plan

PIXELS = ("image", "clip")  # fields whose values are levels 0..255


@dataclasses.dataclass
class Sums:
    """Sums over the values of items, by channel; exact whole numbers for images.

    For sound, they are over what the front end sees, by bin and channel.
    """

    total: np.ndarray
    squares: np.ndarray
    classes: np.ndarray  # items of each class; without classes, of all
    count: int = 0  # values in each channel
    front_end: FrontEnd | None = None

    @classmethod
    def zeros(cls, plan: Plan) -> Sums:
        dtype = np.int64 if plan.field in PIXELS else np.float64
        shape = plan.shape[-1:]
        if plan.front_end is not None:
            shape = plan.front_end.shape[1:]
        total, squares = np.zeros((2, *shape), dtype)
        classes = np.zeros(len(plan.class_names) or 1, np.int64)
        return cls(total, squares, classes, front_end=plan.front_end)

    def add(self, value: np.ndarray, label: Any) -> None:
        if self.front_end is not None:
            value = self.front_end.values(value[None] / np.float32(32768))
        values = value.reshape(-1, *self.total.shape).astype(self.total.dtype)
        self.total += values.sum(0)
        self.squares += (values * values).sum(0)
        self.count += len(values)
        self.classes[int(label)] += 1


def record_of(
    name: str, file: Path, sums: Sums, skipped: list[dict[str, str]]
) -> dict[str, Any]:
    """What is known of a whole shard, which lies at ``file`` and will have ``name``."""
    return {
        "file": name,
        "items": int(sums.classes.sum()),
        "bytes": file.stat().st_size,
        "sha256": file_sha256(file),
        "count": sums.count,
        "total": sums.total.tolist(),
        "squares": sums.squares.tolist(),
        "classes": {str(k): int(n) for k, n in enumerate(sums.classes) if n},
        "skipped": skipped,
    }
