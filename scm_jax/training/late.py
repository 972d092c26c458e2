"""Results that are read after the fact, so that the host never waits for the device."""

from __future__ import annotations

import collections
import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_add = jax.jit(lambda a, b: jax.tree.map(jnp.add, a, b))


@dataclasses.dataclass(frozen=True)
class Dispatched:
    """One step under way: what is needed if it turns out not to be finite."""

    index: int  # updates before it
    batch: Any  # on the host
    position: dict[str, Any]  # of the data, before the batch
    metrics: Any


class Flight:
    """The steps whose finite flag has not been read yet, oldest first."""

    def __init__(self, limit: int):
        self._limit = limit
        self._steps: collections.deque[Dispatched] = collections.deque()

    def add(self, dispatched: Dispatched) -> Dispatched | None:
        """Returns an old step that was not finite, if there is one."""
        self._steps.append(dispatched)
        return self.drain(self._limit)

    def drain(self, keep: int = 0) -> Dispatched | None:
        """Waits for all but ``keep``; returns the first that was not finite."""
        while len(self._steps) > keep:
            oldest = self._steps.popleft()
            if not oldest.metrics["finite"]:
                return oldest
        return None


class LateMetrics:
    """Sums on the device, read one log interval late."""

    def __init__(self, batch_size: int, writer: Any):
        self._batch_size = batch_size
        self._writer = writer
        self._sum: Any = None
        self._count = 0
        self._row: tuple[int, Any, int, float] | None = None
        self._since = time.monotonic()
        self.loss: float | None = None

    def add(self, metrics: dict[str, Any]) -> None:
        metrics = {k: v for k, v in metrics.items() if k != "finite"}
        self._sum = metrics if self._sum is None else _add(self._sum, metrics)
        self._count += 1

    def end_interval(self, step: int) -> None:
        """Writes the row of the interval before, and begins a new one."""
        self.write_row()
        if self._count:
            now = time.monotonic()
            self._row = step, self._sum, self._count, now - self._since
            self._sum, self._count, self._since = None, 0, now

    def exclude(self, seconds: float) -> None:
        """Time that was not training: hooks and checkpoints."""
        self._since += seconds

    def write_row(self, last_step: int | None = None) -> None:
        """Writes the pending row, unless it goes beyond ``last_step``."""
        if self._row is None or (last_step is not None and self._row[0] > last_step):
            return
        (step, total, count, seconds), self._row = self._row, None
        total = jax.device_get(total)
        bins = total.pop("bins", {})
        row = {name: float(value) / count for name, value in total.items()}
        self.loss = row.get("loss")
        rate = count * self._batch_size / max(seconds, 1e-9)
        row = {"images": step * self._batch_size, **row, "images_per_second": rate}
        self._writer.write_scalars(step, row)
        if bins:
            self._writer.write_arrays(step, bin_means(bins))


def bin_means(bins: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """``bins/NAME``: sums per time bin over ``count``; NaN where a bin is empty."""
    count = np.asarray(bins["count"], np.float64)
    filled = np.maximum(count, 1)
    means = {
        f"bins/{name}": np.where(count > 0, np.asarray(total) / filled, np.nan)
        for name, total in bins.items()
        if name != "count"
    }
    return {**means, "bins/count": count}
