"""What a training shows of itself while it runs."""

from __future__ import annotations

import collections
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO


class Progress:
    """A bar with ETA on a terminal, a plain line every ten seconds elsewhere."""

    def __init__(
        self,
        num_steps: int,
        batch_size: int,
        *,
        stream: TextIO | None = None,
        label: str = "train",
        clock: Callable[[], float] = time.monotonic,
    ):
        self._num_steps = num_steps
        self._batch_size = batch_size
        self._stream = sys.stderr if stream is None else stream
        self._label = label
        self._clock = clock
        self._bar = self._stream.isatty()
        self._period = 0.2 if self._bar else 10.0
        self._last = -float("inf")
        # Half a minute: compilation and evaluation drop out of the rate soon.
        self._points: collections.deque[tuple[float, int]] = collections.deque()

    def start(self, step: int) -> None:
        verb = "resumes at" if step else "starts at"
        self.message(
            f"{self._label} {verb} step {step:,} of {self._num_steps:,}; "
            "the first step compiles"
        )

    def update(self, step: int, loss: float | None = None) -> None:
        """Call after every step; prints only when it is time to."""
        now = self._clock()
        if now - self._last < self._period and step < self._num_steps:
            return
        self._last = now
        self._points.append((now, step))
        while len(self._points) > 2 and now - self._points[0][0] > 30:
            self._points.popleft()
        text = self._text(step, loss)
        self._print(f"\r{text}\x1b[K" if self._bar else f"{text}\n")

    def message(self, text: str) -> None:
        """A line of its own."""
        self._print(f"\r{text}\x1b[K\n" if self._bar else f"{text}\n")
        self._points.clear()

    def finish(self) -> None:
        self._print("\n" if self._bar else "")

    def _text(self, step: int, loss: float | None) -> str:
        total, batch = self._num_steps, self._batch_size
        parts = [f"{step * batch:,}/{total * batch:,} images {step / total:4.0%}"]
        if self._bar:
            full = 24 * step // total
            parts.insert(0, f"[{'#' * full}{'.' * (24 - full)}]")
        if loss is not None:
            parts.append(f"loss {loss:.4g}")
        (begin, first), (end, last) = self._points[0], self._points[-1]
        if last > first and end > begin:
            rate = (last - first) / (end - begin)
            eta = round((total - step) / rate)
            parts.append(f"{rate:.3g} steps/s")
            parts.append(f"ETA {eta // 3600}:{eta // 60 % 60:02d}:{eta % 60:02d}")
        return f"{self._label} " + "  ".join(parts)

    def _print(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


class NoProgress:
    """For processes that stay silent."""

    def start(self, *args: Any, **kwargs: Any) -> None: ...

    update = message = finish = start
