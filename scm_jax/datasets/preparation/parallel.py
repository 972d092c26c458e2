"""Several processes that write the shards of one split, each shard once.

A process claims a shard by a lock on a file, which the system gives back when the
process ends, however it ends. Claims only save work: on a file system without locks a
shard may be made twice, with the same bytes, and the second takes the first's name.
"""

from __future__ import annotations

import contextlib
import fcntl
import multiprocessing
import multiprocessing.connection
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from scm_jax.datasets.preparation import progress, shards
from scm_jax.datasets.preparation.shards import Work

POLL_SECONDS = 0.2
# What worker processes import once, before they are forked.
_PRELOADED = (
    "scm_jax.datasets.preparation.shards",
    "array_record.python.array_record_module",
    "PIL.Image",
    "tensorflow_datasets.core.example_serializer",
)


def run(work: Work, first: int, workers: int, say: progress.Progress) -> None:
    """Writes the shards that are missing from ``first`` on, or waits for others.

    Raises:
      ItemError: an item cannot be used.
      OSError: a shard could not be written.
    """
    num = work.plan.num_shards
    done = [k for k in range(num) if work.record(k) is not None]
    say.start(sum(len(work.plan.items_of(k)) for k in done))
    workers = min(workers, num - len(done))
    if workers <= 1:
        _write_missing(work, first, say.add)
    else:
        firsts = [first + rank * num // workers for rank in range(workers)]
        _run_processes(work, firsts, say)


def _write_missing(work: Work, first: int, on_item: Callable[[], None]) -> None:
    num = work.plan.num_shards
    missing = [(first + k) % num for k in range(num)]
    while missing and work.state.exists():
        wrote = False
        for shard in missing:
            with claimed(work.state / f"{work.plan.file(shard)}.claim") as mine:
                if not mine or work.record(shard) is not None:
                    continue
                work.remove_leftovers(shard)
                shards.write_shard(work, shard, on_item)
                wrote = True
        missing = [shard for shard in missing if work.record(shard) is None]
        if missing and not wrote:
            time.sleep(POLL_SECONDS)  # others are at these


@contextlib.contextmanager
def claimed(path: Path, wait: bool = False) -> Iterator[bool]:
    """Holds the lock on a file or folder; False where another process has it.

    Where the file system has no locks it is True. A claim in a folder that is gone,
    since another process has finished the whole, is False.
    """
    flags = os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT
    try:
        descriptor = os.open(path, flags, 0o666)
    except FileNotFoundError:
        yield False
        return
    try:
        mine = True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            mine = False
        except OSError:  # no locks here
            pass
        yield mine
    finally:
        os.close(descriptor)


# --- processes of this command --------------------------------------------------------


def _run_processes(work: Work, firsts: list[int], say: progress.Progress) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_PRELOADED))
    count = context.Value("q", 0)
    waiting: dict[Any, Any] = {}
    for first in firsts:
        end, sender = context.Pipe(duplex=False)
        arguments = (work, first, count, sender)
        waiting[end] = context.Process(target=_worker, args=arguments, daemon=True)
        waiting[end].start()
        sender.close()
    processes = list(waiting.values())
    try:
        while waiting:
            ready: Any = multiprocessing.connection.wait(list(waiting), POLL_SECONDS)
            for end in ready:
                _end(end, waiting.pop(end))
            say.at(count.value)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()


def _worker(work: Work, first: int, count: Any, sender: Any) -> None:
    parent = multiprocessing.parent_process()

    def on_item() -> None:
        with count.get_lock():
            count.value += 1
        if parent is not None and not parent.is_alive():
            os._exit(1)  # killed: nobody waits for this any more

    try:
        _write_missing(work, first, on_item)
        sender.send(None)
    except (ValueError, OSError) as error:
        sender.send(error)


def _end(end: Any, process: Any) -> None:
    """Raises the error with which a worker has ended, if it has."""
    try:
        error = end.recv()
    except EOFError:
        process.join()
        raise OSError(
            f"a worker process ended with code {process.exitcode}; run the same "
            "command again: whole shards are kept"
        ) from None
    if error is not None:
        raise error
