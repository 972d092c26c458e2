"""A process of ``scm data encode`` that keeps step with another: LOG, arguments.

What it waits for are files in LOG, named ``began-SHARD-PROCESS`` and ``wrote-...``: the
process 1 is the late one, which finishes its first shard only when all others are
there; and the process 0 begins with its first shard only when process 1 has begun.
"""

import pathlib
import sys
import time

from scm_jax.commands import main
from scm_jax.datasets.preparation import shards

DEADLINE_SECONDS = 3600


def wait_for(log, pattern, number):
    end = time.monotonic() + DEADLINE_SECONDS
    while len(list(log.glob(pattern))) < number:
        if time.monotonic() > end:
            sys.exit(f"waited in vain for {number} of {pattern}")
        time.sleep(0.01)


def keeping_step(write_shard, log, process):
    """``write_shard`` as said above."""

    def write(work, shard, *args):
        (log / f"began-{shard}-{process}").touch()
        if process == 0:
            wait_for(log, "began-*-1", 1)
        elif not list(log.glob("wrote-*-1")):
            wait_for(log, "wrote-*-0", work.plan.num_shards - 1)
        write_shard(work, shard, *args)
        (log / f"wrote-{shard}-{process}").touch()

    return write


if __name__ == "__main__":
    log, *arguments = sys.argv[1:]
    process = int("--process_id=1" in arguments)
    shards.write_shard = keeping_step(shards.write_shard, pathlib.Path(log), process)
    sys.argv = ["scm", "data", "encode", *arguments]
    sys.exit(main.main())
