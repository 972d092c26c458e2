"""Signals that come while no training loop looks at them.

Python calls no handler while a program is compiled, which can take minutes. The signal
puts a byte into a pipe at once, though, and a thread that reads it can act.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

# Those that the loop takes as well (``training.loop``).
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@contextlib.contextmanager
def handled(signums: Iterable[int], handler: Callable[..., Any]) -> Iterator[None]:
    """Has the handler for the time of the block."""
    before = {signum: signal.signal(signum, handler) for signum in signums}
    try:
        yield
    finally:
        for signum, previous in before.items():
            signal.signal(signum, previous)


@contextlib.contextmanager
def watched(on_signal: Callable[[int], None]) -> Iterator[None]:
    """Calls ``on_signal`` from another thread for each signal that comes in the block.

    Outside the main thread, which alone may do so, no signal is watched.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def read() -> None:
        while data := os.read(reader, 64):
            for signum in data:
                if signum in SIGNALS:
                    on_signal(signum)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, reader)
        stack.callback(thread.join)
        stack.callback(os.close, writer)  # ends the thread
        # Python writes to the pipe only for signals that have a handler.
        stack.enter_context(handled(SIGNALS, lambda signum, frame: None))
        previous = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        stack.callback(signal.set_wakeup_fd, previous)
        yield
