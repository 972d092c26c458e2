"""How far a long preparation is: a line that changes, or one line every ten seconds."""

from __future__ import annotations

import sys
import time


class Progress:
    """Counts items and says how many, how fast and how long still, on stderr."""

    def __init__(self, what: str, total: int):
        self._what, self._total = what, total
        self._terminal = sys.stderr.isatty()
        self._before = self._done = 0
        self._started = self._said = time.monotonic()

    def start(self, before: int) -> None:
        """Items that are done before this process counts its own."""
        self._before = before
        self._started = self._said = time.monotonic()
        if before:
            self._line(f"{before:,} of {self._total:,} items are there; going on")

    def add(self, items: int = 1) -> None:
        """So many more items."""
        self.at(self._done + items)

    def at(self, done: int) -> None:
        """So many items since ``start``."""
        self._done = done
        now = time.monotonic()
        if now - self._said >= (0.5 if self._terminal else 10):
            self._said = now
            self._line(self.text(now - self._started))

    def text(self, seconds: float) -> str:
        """The state after so many seconds, in words."""
        there = self._before + self._done
        rate = self._done / max(seconds, 1e-9)
        left = (
            f"{_duration((self._total - there) / rate)} left" if rate else "no item yet"
        )
        share = 100 * there / max(self._total, 1)
        return (
            f"{there:,} of {self._total:,} items ({share:.0f} %), {rate:,.0f} items/s, "
            f"{left}"
        )

    def end(self) -> None:
        """All of them are there."""
        seconds = time.monotonic() - self._started
        rate = self._done / max(seconds, 1e-9)
        self._line(
            f"{self._done:,} items in {_duration(seconds)}, {rate:,.0f} items/s", "\n"
        )

    def _line(self, text: str, end: str | None = None) -> None:
        clear, default = ("\r\x1b[K", "") if self._terminal else ("", "\n")
        print(f"{clear}{self._what}: {text}", end=end or default, file=sys.stderr)
        sys.stderr.flush()


def _duration(seconds: float) -> str:
    """``59 s``, ``12 min`` or ``3.5 h``."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
