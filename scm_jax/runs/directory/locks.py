"""One training per run directory, with a worker or without (docs/sweeps.md).

On one machine a kernel lock on the file ``LOCK`` decides, which ends with its process.
Machines may not share it, so there the heartbeat of a worker in ``status.json`` counts.
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

from scm_jax.runs.directory.run_configs import read_whole_object

LOCK_FILE, STATUS_FILE = "LOCK", "status.json"
RUNNING = "running"
MISSED_HEARTBEATS = 3  # before a worker counts as dead
# A look at a lock (``is_held``) takes it for an instant: a worker tries again.
_TRIES, _PAUSE_SECONDS = 20, 0.05
# Directory -> thread of this process that holds it: a worker trains in what it holds.
_HOLDERS: dict[str, int] = {}


class HeldError(RuntimeError):
    """Another worker has the run; the message says which."""


@contextlib.contextmanager
def hold(run_dir: str | os.PathLike) -> Iterator[None]:
    """Keeps the run directory for this thread alone, which may hold it again.

    Raises:
      HeldError: another process of this machine has it, or one of another machine whose
        heartbeat is fresh.
    """
    run_dir = Path(run_dir)
    place = os.path.realpath(run_dir)
    if _HOLDERS.get(place) == threading.get_ident():
        yield
        return
    descriptor = os.open(run_dir / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if not _lock(descriptor):
            raise HeldError(f"{run_dir} is held by {_owner(run_dir)}")
        status = read_status(run_dir)
        if _is_elsewhere(status) and _is_fresh(status, time.time()):
            raise HeldError(
                f"{run_dir} is held by {_described(status)}; it counts as dead after "
                f"{_limit_seconds(status):g} s of silence"
            )
        _write_owner(descriptor)
        _HOLDERS[place] = threading.get_ident()
        try:
            yield
        finally:
            del _HOLDERS[place]
    finally:
        os.close(descriptor)


def is_alive(run_dir: str | os.PathLike, status: Mapping[str, Any], now: float) -> bool:
    """Whether the worker that wrote ``status`` (state running) lives at ``now``.

    On this machine it does if the lock is held, on another if its heartbeat is fresh.
    """
    if _is_elsewhere(status):
        return _is_fresh(status, now)
    held = is_held(run_dir)
    return process_exists(status.get("pid")) if held is None else held


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


def read_owner(run_dir: str | os.PathLike) -> dict[str, Any]:
    """``identity`` and ``started`` (unix seconds) of who holds the run, or {}."""
    return _read_object(Path(run_dir) / LOCK_FILE) if is_held(run_dir) else {}


def identity() -> dict[str, Any]:
    """Host, process and boot of this process, as a worker writes them."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "boot": _boot()}


def same_process(status: Mapping[str, Any], owner: Mapping[str, Any]) -> bool:
    """Whether two records are of one process."""
    return all(status.get(key) == owner.get(key) for key in ("host", "pid", "boot"))


def read_status(run_dir: str | os.PathLike) -> dict[str, Any]:
    """``status.json``; empty where there is none, or where it is not JSON."""
    return _read_object(Path(run_dir) / STATUS_FILE)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        return read_whole_object(path)
    except ValueError:
        return {}


def _write_owner(descriptor: int) -> None:
    text = json.dumps({**identity(), "started": time.time()})
    with contextlib.suppress(OSError):  # a full disk: the lock holds all the same
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode(), 0)


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
    # Containers on one machine, which share its locks, share the boot id as well.
    here, there = _boot(), status.get("boot")
    if here and there:
        return here != there
    return status.get("host") != socket.gethostname()


def _is_fresh(status: Mapping[str, Any], now: float) -> bool:
    age = now - float(status.get("heartbeat") or 0)
    return status.get("state") == RUNNING and age <= _limit_seconds(status)


def _limit_seconds(status: Mapping[str, Any]) -> float:
    return MISSED_HEARTBEATS * float(status.get("heartbeat_seconds") or 10.0)


def _owner(run_dir: Path) -> str:
    status, owner = read_status(run_dir), read_owner(run_dir)
    if status.get("state") == RUNNING and same_process(status, owner or status):
        return _described(status)
    if owner:
        return _described(owner)
    return "another process, which is just starting or ending"


def _described(status: Mapping[str, Any]) -> str:
    text = f"process {status.get('pid')} on {status.get('host')}"
    if started := status.get("started"):
        moment = time.localtime(started)
        text += f" since {time.strftime('%Y-%m-%d %H:%M:%S %Z', moment)}"
    if status.get("job"):
        text += f", job {status['job']}"
    if "heartbeat" in status:
        age = max(0.0, time.time() - float(status["heartbeat"] or 0))
        text += f", whose heartbeat is {age:.0f} s old"
    return text


def process_exists(pid: Any) -> bool:
    """Whether this machine has a process of this id."""
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
