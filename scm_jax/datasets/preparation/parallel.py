"""Several processes that write the shards of one split, each shard once.

A process claims a shard by a lock on a file, which the system gives back when the
process ends, however it ends. Any number of processes may run, started together by
``--workers`` or each by hand, on one machine or on several that share a file system.
Claims only save work: on a file system without locks a shard may be made twice, with
the same bytes, and the second takes the name of the first.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from scm_jax.datasets.preparation import progress, shard_files, shards
from scm_jax.datasets.preparation.readers.items import ItemError, Items

POLL_SECONDS = 0.2


@dataclasses.dataclass(frozen=True)
class Work:
    """What the processes of one preparation share; picklable.

    Attributes:
      items: the raw items.
      plan: what to make of them.
      staging: hidden folder where it is made.
      target: folder where it will be.
      skip_bad: how many bad items may be left out.
      process_index: which of the processes that were started by hand this is.
      process_count: how many these are.
    """

    items: Items
    plan: shards.Plan
    staging: Path
    target: Path
    skip_bad: int = 0
    process_index: int = 0
    process_count: int = 1

    @property
    def folder(self) -> Path:
        """Whole shards."""
        return self.staging / "folder"

    @property
    def state(self) -> Path:
        """Their records, claims, and what is incomplete."""
        return self.staging / "state"

    def record(self, shard: int) -> dict[str, Any] | None:
        """The record of a whole shard, else None."""
        folders = (self.folder, self.target)  # while it is published it may be in both
        found = shards.read_record(self.items, self.plan, shard, self.state, folders)
        if found is not None and found["skipped"] and not self.skip_bad:
            return None  # of a command that allowed it; its items may be mended now
        return found


def run(work: Work, workers: int, say: progress.Progress) -> None:
    """Writes all shards that are missing, or waits for others that write them.

    Raises:
      ItemError: an item cannot be used.
      OSError: a shard could not be written.
    """
    done = [k for k in range(work.plan.num_shards) if work.record(k) is not None]
    say.start(sum(len(work.plan.items_of(k)) for k in done))
    missing = work.plan.num_shards - len(done)
    if min(workers, missing) <= 1:
        write_missing(work, 0, say.add)
        return
    _run_processes(work, min(workers, missing), say)


def write_missing(
    work: Work, first: int, on_item: Callable[[], None] = lambda: None
) -> None:
    """Writes shards until all are there, beginning at another one in each process."""
    num = work.plan.num_shards
    rank = first + num * work.process_index // max(work.process_count, 1)
    missing = [(rank + k) % num for k in range(num)]
    while missing and work.state.exists():
        wrote = False
        for shard in missing:
            with claimed(work.state / f"{work.plan.file(shard)}.claim") as mine:
                if not mine or work.record(shard) is not None:
                    continue
                shard_files.remove_leftovers(work.state, work.plan.file(shard))
                _write(work, shard, on_item)
                wrote = True
        missing = [shard for shard in missing if work.record(shard) is None]
        if missing and not wrote:
            time.sleep(POLL_SECONDS)  # others are at these


def _write(work: Work, shard: int, on_item: Callable[[], None]) -> None:
    def on_bad(error: ItemError, before: int) -> None:
        if not work.skip_bad:
            raise error
        if _num_skipped(work, but=shard) + before >= work.skip_bad:
            raise ItemError(
                f"{error}; {work.skip_bad} other bad items were skipped already, and "
                f"skip_bad = {work.skip_bad} allows no more"
            )

    shards.write_shard(
        work.items, work.plan, shard, work.folder, work.state, on_bad, on_item
    )


def _num_skipped(work: Work, but: int) -> int:
    records = (work.record(k) for k in range(work.plan.num_shards) if k != but)
    return sum(len(record["skipped"]) for record in records if record is not None)


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
        yield _locked(descriptor, wait)
    finally:
        os.close(descriptor)


def _locked(descriptor: int, wait: bool) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


# --- processes of this command --------------------------------------------------------


def _run_processes(work: Work, workers: int, say: progress.Progress) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["scm_jax.datasets.preparation.preloaded"])
    count = context.Value("q", 0)
    ends, processes = [], []
    for rank in range(workers):
        receiver, sender = context.Pipe(duplex=False)
        first = rank * work.plan.num_shards // workers
        process = context.Process(
            target=_worker, args=(work, first, count, sender), daemon=True
        )
        process.start()
        sender.close()
        ends.append(receiver)
        processes.append(process)
    try:
        _watch(processes, ends, lambda: say.at(count.value))
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
        write_missing(work, first, on_item)
        sender.send(None)
    except (ValueError, OSError) as error:
        sender.send(error)


def _watch(processes: list[Any], ends: list[Any], show: Callable[[], None]) -> None:
    """Waits for all; the first error of one is raised here."""
    waiting: dict[Any, Any] = dict(zip(ends, processes, strict=True))
    while waiting:
        ready: Any = multiprocessing.connection.wait(list(waiting), POLL_SECONDS)
        for end in ready:
            process = waiting.pop(end)
            try:
                error = end.recv()
            except EOFError:
                process.join()
                raise OSError(
                    f"a worker process ended with code {process.exitcode}; run the "
                    "same command again: whole shards are kept"
                ) from None
            if error is not None:
                raise error
        show()
