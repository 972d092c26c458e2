"""Which items go into which batch, and iterators over batches.

Position ``p`` of the endless stream belongs to epoch ``p // num_items``, which has a
permutation of its own. Batch ``k`` holds the positions ``[k * B, (k + 1) * B)``, and
process ``i`` of ``n`` the ``i``-th of ``n`` equal runs of these. So batches are the
same for any number of processes, and ``k`` alone says where a run stands.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np


@functools.lru_cache(maxsize=4)
def _permutation(num_items: int, seed: int, epoch: int) -> np.ndarray:
    # Grain's own shuffle takes 20 us per index (0.2.18), more than all else here.
    return np.random.default_rng([seed, epoch]).permutation(num_items)


def shuffled_items(positions: np.ndarray, num_items: int, seed: int) -> np.ndarray:
    """Items at positions of the endless stream, each exactly once in every epoch.

    Example:
      >>> sorted(shuffled_items(np.arange(4, 8), num_items=4, seed=0).tolist())
      [0, 1, 2, 3]
    """
    epochs, offsets = np.divmod(positions, num_items)
    items = np.empty_like(offsets)
    for epoch in np.unique(epochs):
        rows = epochs == epoch
        items[rows] = _permutation(num_items, seed, int(epoch))[offsets[rows]]
    return items


def process_rows(batch_size: int, process_index: int, process_count: int) -> slice:
    """Rows of the global batch of one process; a ValueError if they are uneven."""
    if not 0 <= process_index < process_count:
        raise ValueError(
            f"process_index {process_index} is not in 0..{process_count - 1}"
        )
    if batch_size <= 0 or batch_size % process_count:
        raise ValueError(
            f"batch_size {batch_size} must be a positive multiple of the number of "
            f"processes, {process_count}"
        )
    rows = batch_size // process_count
    return slice(process_index * rows, (process_index + 1) * rows)


class BatchIterator(Iterator[Any]):
    """Endless host batches of numpy arrays whose position is one number.

    Args:
      batch_at: batch ``k`` as a function of ``k`` alone.
      num_threads: threads that read ahead; 0 reads in the caller's thread.
    """

    def __init__(self, batch_at: Callable[[int], Any], num_threads: int = 0):
        import grain

        options = grain.ReadOptions(
            num_threads=num_threads, prefetch_buffer_size=2 * num_threads
        )
        batches = grain.MapDataset.range(sys.maxsize).map(batch_at)
        self._iterator = iter(batches.to_iter_dataset(options))

    def __next__(self) -> Any:
        return next(self._iterator)

    def get_state(self) -> dict[str, int]:
        """``{"next_index": k}``: the next batch; the same number on all processes."""
        return {"next_index": int(self._iterator.get_state()["next_index"])}

    def set_state(self, state: Mapping[str, int]) -> None:
        """Goes on where ``get_state`` was called; a ValueError for another state."""
        if set(state) != {"next_index"} or int(state["next_index"]) < 0:
            raise ValueError(
                f"not a data position: {dict(state)}; expected {{'next_index': k >= 0}}"
            )
        self._iterator.set_state({"next_index": int(state["next_index"])})
