"""Batches that are on the devices before the step that needs them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
from jax.sharding import Mesh

from scm_jax.training import sharding


class DataIterator(Protocol):
    """Endless, and its position is a JSON dict, as in grain."""

    def __next__(self) -> Any: ...

    def get_state(self) -> dict[str, Any]: ...

    def set_state(self, state: dict[str, Any]) -> None: ...


class Placed(NamedTuple):
    """A batch on the host and on the devices, and the data position before it."""

    host: Any
    arrays: Any
    position: dict[str, Any]


def make_place(to_batch: Callable[[Any], Any], mesh: Mesh) -> Callable[[Any], Any]:
    """``place`` for ``Ahead``: the transfer, and ``to_batch`` on the devices.

    ``to_batch`` is a dataset's: host batch -> batch of the step, row by row, so that no
    device needs the rows of another.
    """
    rows = sharding.batch_sharding(mesh)
    compute = jax.jit(to_batch, in_shardings=rows, out_shardings=rows)
    if jax.process_count() > 1:
        return lambda host: compute(sharding.place_batch(host, mesh))

    def place(host: Any) -> Any:
        sharding.check_batch_size(len(jax.tree.leaves(host)[0]), mesh)
        # The call transfers numpy arrays in a tenth of the time that placing takes.
        return compute(host)

    return place


class Ahead:
    """One batch ahead of the training.

    ``fetch`` right after a dispatch: then reading the batch, its transfer and its
    decoding happen while the devices compute. ``count`` batches will be taken.
    """

    def __init__(self, data: DataIterator, place: Callable[[Any], Any], count: int):
        self._data = data
        self._place = place
        self._left = count
        self._next: Placed | None = None
        self._error: Exception | None = None
        self.fetch()

    @property
    def position(self) -> dict[str, Any]:
        """The data position before the first batch that has not been taken."""
        return self._data.get_state() if self._next is None else self._next.position

    def fetch(self) -> None:
        """Reads the next batch and begins its transfer; nothing after the last."""
        if self._left == 0:
            return
        self._left -= 1
        position = self._data.get_state()
        try:
            host = next(self._data)
            self._next = Placed(host, self._place(host), position)
        except Exception as error:  # take raises it, after all that comes before it
            self._error = error

    def take(self) -> Placed:
        """The batch that was fetched.

        Raises:
          ValueError: the data ended.
        """
        if isinstance(self._error, StopIteration):
            raise ValueError(
                "the data ended before the training; the iterator must never end"
            ) from self._error
        if self._error is not None:
            raise self._error
        taken, self._next = self._next, None
        assert taken is not None, "fetch comes first"
        return taken
