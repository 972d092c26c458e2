"""Signals that ask a training to save and leave."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils


class Interruption:
    """SIGTERM, SIGINT and SIGUSR1 ask the loop to save and leave at the next step.

    A second SIGINT aborts at once. The handlers of before come back at the end.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

    def __init__(self):
        self.signum: int | None = None
        # Several processes must leave at one step. JAX agrees on it, and listens to
        # SIGTERM by itself; the two other signals are passed on as that one.
        self._shared = jax.distributed.is_initialized()

    def _handle(self, signum: int, frame: Any) -> None:
        if signum == signal.SIGINT and self.signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.signum = signum
        if self._shared:
            os.kill(os.getpid(), signal.SIGTERM)

    def requested(self, step: int) -> bool:
        """To be asked once before every step, by every process."""
        if self._shared:
            return multihost_utils.reached_preemption_sync_point(step)
        return self.signum is not None

    @contextlib.contextmanager
    def installed(self) -> Iterator[Interruption]:
        before = {}  # outside the main thread Python has no handlers
        if threading.current_thread() is threading.main_thread():
            mine = self.SIGNALS[1:] if self._shared else self.SIGNALS
            before = {s: signal.signal(s, self._handle) for s in mine}
        try:
            yield self
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)
