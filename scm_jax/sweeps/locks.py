"""One worker per run directory.

On one machine a lock of the kernel on the file ``LOCK`` decides: it goes with the
process, however that ends. File systems may not share such locks between machines, so
the heartbeat in ``status.json`` counts as well: while another machine's is younger than
three of its intervals, the run is taken. After that it is free, and a worker that comes
back from a long pause finds the other's name in ``status.json`` and leaves.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

LOCK_FILE, STATUS_FILE = "LOCK", "status.json"
RUNNING = "running"
# So many heartbeats may be missing before a worker counts as dead.
MISSED_HEARTBEATS = 3
# A look at a lock (``is_held``) takes it for an instant: a worker tries again.
_TRIES, _PAUSE_SECONDS = 20, 0.05


class HeldError(RuntimeError):
    """Another worker has the run; the message says which."""


@contextlib.contextmanager
def hold(run_dir: str | os.PathLike) -> Iterator[None]:
    """The run directory for this process alone.

    Raises:
      HeldError: another process of this machine has it, or one of another machine whose
        heartbeat is fresh.
    """
    run_dir = Path(run_dir)
    descriptor = os.open(run_dir / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if not _lock(descriptor):
            raise HeldError(f"{run_dir} is held by {_owner(run_dir)}")
        status = read_status(run_dir)
        if _is_elsewhere(status) and is_fresh(status, time.time()):
            raise HeldError(
                f"{run_dir} is held by {_owner(run_dir)}; it counts as dead when it "
                f"was silent for {_limit_seconds(status):g} s"
            )
        yield
    finally:
        os.close(descriptor)


def is_alive(run_dir: str | os.PathLike, status: Mapping[str, Any], now: float) -> bool:
    """Whether the worker that wrote ``status`` (state running) still lives.

    Of this machine: whether the lock is held. Of another: whether its heartbeat is
    fresh at ``now`` (unix seconds).
    """
    if _is_elsewhere(status):
        return is_fresh(status, now)
    held = is_held(run_dir)
    return _process_exists(status.get("pid")) if held is None else held


def is_held(run_dir: str | os.PathLike) -> bool | None:
    """Whether a process of this machine has the run; None where locks do not work."""
    try:
        descriptor = os.open(Path(run_dir) / LOCK_FILE, os.O_RDWR)
    except FileNotFoundError:
        return False
    except OSError:
        return None  # somebody else's directory, which we may only read
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return False


def is_fresh(status: Mapping[str, Any], now: float) -> bool:
    """Whether a running worker gave a sign of life lately."""
    if status.get("state") != RUNNING:
        return False
    return now - float(status.get("heartbeat") or 0) <= _limit_seconds(status)


def identity() -> dict[str, Any]:
    """Who this process is: what a worker writes into ``status.json``."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "boot": _boot()}


def is_mine(status: Mapping[str, Any]) -> bool:
    """Whether this process wrote ``status``."""
    return all(status.get(key) == value for key, value in identity().items())


def read_status(run_dir: str | os.PathLike) -> dict[str, Any]:
    """``status.json``; empty where there is none, or where it is not JSON."""
    try:
        found = json.loads((Path(run_dir) / STATUS_FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _lock(descriptor: int) -> bool:
    for _ in range(_TRIES):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(_PAUSE_SECONDS)
        except OSError:
            return True  # a file system without locks: the heartbeat must do
    return False


def _is_elsewhere(status: Mapping[str, Any]) -> bool:
    """Whether ``status`` was written on another machine, or before a restart.

    The kernel's boot id tells machines apart, and containers on one machine, which
    share its locks, do not differ in it; where one is missing, the name must do.
    """
    boots = (_boot(), status.get("boot"))
    if all(boots):
        return boots[0] != boots[1]
    return status.get("host") != socket.gethostname()


def _limit_seconds(status: Mapping[str, Any]) -> float:
    return MISSED_HEARTBEATS * float(status.get("heartbeat_seconds") or 10.0)


def _owner(run_dir: Path) -> str:
    status = read_status(run_dir)
    if status.get("state") != RUNNING:
        return "another process, which is just starting or ending"
    job = f", job {status['job']}" if status.get("job") else ""
    age = max(0.0, time.time() - float(status.get("heartbeat") or 0))
    return (
        f"process {status.get('pid')} on {status.get('host')}{job}, whose heartbeat is "
        f"{age:.0f} s old"
    )


def _process_exists(pid: Any) -> bool:
    try:
        os.kill(int(pid), 0)
    except (TypeError, ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True


@functools.cache
def _boot() -> str | None:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() or None
    except OSError:
        return None  # not Linux
