"""One training per run directory, with a worker or without.

On one machine a lock of the kernel on the file ``LOCK`` decides: it ends with the
process. File systems may not share such locks between machines, so there the heartbeat
in ``status.json`` counts: the run is taken while it is younger than three intervals.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import socket
import threading
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
# Directory -> thread of this process that holds it: a worker trains in what it holds.
_HOLDERS: dict[str, int] = {}


class HeldError(RuntimeError):
    """Another worker has the run; the message says which."""


@contextlib.contextmanager
def hold(run_dir: str | os.PathLike) -> Iterator[None]:
    """Holds the run directory for this thread, which may hold it already.

    Raises:
      HeldError: another process of this machine has it, or one of another machine whose
        heartbeat is fresh.
    """
    run_dir = Path(run_dir)
    place = os.path.realpath(run_dir)
    if _HOLDERS.get(place) == threading.get_ident():
        yield
        return
    with (run_dir / LOCK_FILE).open("ab+", buffering=0) as file:
        if not _lock(file.fileno()):
            raise HeldError(f"{run_dir} is held by {_owner(run_dir)}")
        status = read_status(run_dir)
        if _is_elsewhere(status) and is_fresh(status, time.time()):
            raise HeldError(
                f"{run_dir} is held by {_described(status)}; it counts as dead after "
                f"{_limit_seconds(status):g} s of silence"
            )
        with contextlib.suppress(OSError):  # a full disk: the lock holds all the same
            file.truncate(0)
            file.write(json.dumps({**identity(), "started": time.time()}).encode())
        _HOLDERS[place] = threading.get_ident()
        try:
            yield
        finally:
            del _HOLDERS[place]


def is_alive(run_dir: str | os.PathLike, status: Mapping[str, Any], now: float) -> bool:
    """Whether the worker that wrote ``status`` still lives at ``now`` (unix seconds).

    On this machine the lock decides, on another one the heartbeat.
    """
    if _is_elsewhere(status):
        return is_fresh(status, now)
    held = is_held(run_dir)
    return _process_exists(status.get("pid")) if held is None else held


def is_held(run_dir: str | os.PathLike) -> bool | None:
    """Whether a process of this machine has the run; None where locks do not work."""
    try:
        with (Path(run_dir) / LOCK_FILE).open("rb+") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    except OSError:
        return None  # no locks, or a directory of another user that is read-only
    return False


def read_owner(run_dir: str | os.PathLike) -> dict[str, Any]:
    """``identity`` and ``started`` (unix seconds) of the holder; may be empty."""
    return _read_object(Path(run_dir) / LOCK_FILE) if is_held(run_dir) else {}


def is_fresh(status: Mapping[str, Any], now: float) -> bool:
    """Whether the heartbeat of a running worker is recent."""
    if status.get("state") != RUNNING:
        return False
    return now - float(status.get("heartbeat") or 0) <= _limit_seconds(status)


def identity() -> dict[str, Any]:
    """What tells this process from others, as a worker writes it."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "boot": _boot()}


def is_mine(status: Mapping[str, Any]) -> bool:
    """Whether this process wrote ``status``."""
    return same_process(status, identity())


def same_process(status: Mapping[str, Any], owner: Mapping[str, Any]) -> bool:
    """Whether both records are of one process."""
    return all(status.get(key) == owner.get(key) for key in ("host", "pid", "boot"))


def read_status(run_dir: str | os.PathLike) -> dict[str, Any]:
    """``status.json``; empty where it is missing or not JSON."""
    return _read_object(Path(run_dir) / STATUS_FILE)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
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
    """Whether ``status`` was written on another machine, or before a restart."""
    # Containers on one machine share its locks and its boot id, but not its name.
    boots = (_boot(), status.get("boot"))
    if all(boots):
        return boots[0] != boots[1]
    return status.get("host") != socket.gethostname()


def _limit_seconds(status: Mapping[str, Any]) -> float:
    return MISSED_HEARTBEATS * float(status.get("heartbeat_seconds") or 10.0)


def _owner(run_dir: Path) -> str:
    status, owner = read_status(run_dir), read_owner(run_dir)
    if status.get("state") == RUNNING and same_process(status, owner or status):
        return _described(status)
    return _described(owner) if owner else "a process that is just starting or ending"


def _described(status: Mapping[str, Any]) -> str:
    text = f"process {status.get('pid')} on {status.get('host')}"
    if started := status.get("started"):
        since = time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(started))
        text += f" since {since}"
    if status.get("job"):
        text += f", job {status['job']}"
    if "heartbeat" in status:
        age = max(0.0, time.time() - float(status["heartbeat"] or 0))
        text += f", whose last heartbeat was {age:.0f} s ago"
    return text


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
