"""Signals that come while no training loop looks at them.

While a program is compiled, which can take minutes, Python calls no handler of its own.
But the kernel's signal puts a byte into a pipe at once, and a thread that reads it can
act: as long as no step was made nothing is lost by leaving there and then.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

# Those that the loop takes as well (``training.loop``).
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Watch:
    """Whether a signal came; ``on_signal`` is called from another thread for each."""

    def __init__(self, on_signal: Callable[[int], None]):
        self._on_signal = on_signal
        self.signum: int | None = None

    @contextlib.contextmanager
    def installed(self) -> Iterator[Watch]:
        """Watches until the end of the block; only in the main thread, else never."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        before = {s: signal.signal(s, _ignore) for s in SIGNALS}
        previous = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        thread = threading.Thread(target=self._read, args=(reader,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            signal.set_wakeup_fd(previous)
            for signum, handler in before.items():
                signal.signal(signum, handler)
            os.close(writer)  # ends the thread
            thread.join()
            os.close(reader)

    def _read(self, reader: int) -> None:
        while data := os.read(reader, 64):
            for signum in data:
                if signum in SIGNALS:
                    self.signum = signum
                    self._on_signal(signum)


def _ignore(signum: int, frame: object) -> None:
    """Python writes to the pipe only for signals that have a handler."""
