"""Several processes as one run: they meet, agree, start JAX, and end together.

with multihost.joined(cluster, facts, explain) as peers:
    ...  # train; on an error here all processes end with a message
"""

from __future__ import annotations

import collections
import contextlib
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

from scm_jax.training import sharding
from scm_jax.training.processes.cluster import Cluster
from scm_jax.training.processes.peers import Peers, end_process

JOIN_SECONDS = 45.0
# JAX's own watch over the others comes second: its message names nobody.
_JAX_HEARTBEAT_SECONDS = 55
# A death breaks collectives and saves, with errors that name nobody, before or after
# the line of the dead process closes.
_VERDICT_SECONDS = 5.0
_SHARED_SECONDS = 20.0


@contextlib.contextmanager
def joined(
    cluster: Cluster | None,
    facts: Mapping[str, str],
    explain: Callable[[BaseException], str],
    *,
    timeout: float = JOIN_SECONDS,
) -> Iterator[Peers | None]:
    """The processes of ``cluster``, with JAX started over all; None for one alone.

    ``facts`` (dotted key -> text) must be the same on all. ``explain`` gives the text
    for an error in the body. ``timeout`` is in seconds, for the processes to meet and
    again for JAX to find the devices.

    Raises:
      peers.PeerError: they did not meet.
      ValueError: they differ in ``facts`` or in their number of devices; the same
        message on every process. After the body has begun, an error is printed, told
        to the others, and the process ends with exit code 1.
    """
    if cluster is None:
        yield None
        return
    peers = Peers.join(cluster, timeout)
    try:
        everyone = peers.exchange("comparison", dict(facts), timeout)
        _together(peers, differences(peers.names(), everyone))
        _initialize(cluster, peers, timeout)
        yield peers
    except BaseException as error:
        _end_together(peers, error, explain)
    peers.close()
    jax.distributed.shutdown()


def differences(names: Sequence[str], facts: Sequence[Mapping[str, str]]) -> str:
    """Which process differs from the first in which key; empty if all are equal."""
    problems = []
    for name, theirs in zip(names[1:], facts[1:], strict=True):
        keys = sorted(facts[0].keys() | theirs.keys())
        differing = [k for k in keys if facts[0].get(k) != theirs.get(k)]
        problems += [
            f"  {key}: {theirs.get(key, '(absent)')} on {name}, "
            f"{facts[0].get(key, '(absent)')} on {names[0]}"
            for key in differing[:10]
        ]
        if len(differing) > 10:
            problems.append(f"  and {len(differing) - 10} more keys on {name}")
    head = "all processes must run the same config and code; these differ:"
    return "\n".join([head, *problems]) if problems else ""


def _together(peers: Peers, problem: str) -> None:
    if problem:
        peers.leave()  # all have found it alike
        raise ValueError(problem)


def _initialize(cluster: Cluster, peers: Peers, timeout: float) -> None:
    with peers.time_limit("JAX to connect all processes and devices", timeout):
        jax.distributed.initialize(
            cluster.coordinator,
            cluster.num_processes,
            cluster.process_id,
            local_device_ids=cluster.local_device_ids,
            # Found already; JAX would give each task of SLURM a single GPU.
            cluster_detection_method="deactivate",
            initialization_timeout=round(timeout),
            heartbeat_timeout_seconds=_JAX_HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=30,
        )
        devices = collections.Counter(d.process_index for d in jax.devices())
    counts = [f"{devices[i]} on {name}" for i, name in enumerate(peers.names())]
    if len({devices[i] for i in range(cluster.num_processes)}) > 1:
        listed = ", ".join(counts)
        _together(peers, f"processes differ in their number of devices: {listed}")


def _end_together(
    peers: Peers, error: BaseException, explain: Callable[[BaseException], str]
) -> None:
    """Prints the error of this process, tells the others, and leaves."""
    if isinstance(error, Exception) and peers.verdict(_VERDICT_SECONDS):
        return end_process()  # the cause lies elsewhere and is printed
    text = explain(error).strip()
    print(text, file=sys.stderr, flush=True)
    last = text.splitlines()[-1] if "Traceback" in text else text
    peers.report(f"{peers.name} failed: {last}")
    end_process()


def check_shared(peers: Peers | None, directory: str | os.PathLike) -> None:
    """Makes the run directory and checks that all processes see it.

    Raises:
      ValueError: some do not; the message names them, on every process.
    """
    if peers is None:
        return
    path = pathlib.Path(directory).absolute()
    token = peers.exchange("token", os.urandom(8).hex(), JOIN_SECONDS)[0]
    mark = path / f".shared_{token}"
    if peers.cluster.process_id == 0:
        path.mkdir(parents=True, exist_ok=True)
        mark.touch()
    deadline = time.monotonic() + _SHARED_SECONDS
    # Listing asks the server of a network file system; a single look may not.
    while not (seen := path.is_dir() and mark.name in os.listdir(path)):
        if time.monotonic() > deadline:
            break
        time.sleep(0.2)
    seen_by = peers.exchange("shared directory", seen, _SHARED_SECONDS + JOIN_SECONDS)
    if peers.cluster.process_id == 0:
        mark.unlink(missing_ok=True)
    blind = [n for n, s in zip(peers.names(), seen_by, strict=True) if not s]
    problem = (
        f"--workdir={directory}: {', '.join(blind)} cannot see what {peers.names()[0]} "
        "writes there; it must be one directory on a file system that all hosts share"
    )
    _together(peers, problem if blind else "")


def local_copy(tree: Any) -> Any:
    """Arrays that lie on several processes, whole, on one device of each of them.

    All processes must call this. With one process the arrays stay as they are.
    """
    if jax.process_count() == 1:
        return tree
    where = jax.tree.map(lambda x: sharding.replicated(x.sharding.mesh), tree)
    whole = jax.jit(_same, out_shardings=where)(tree)
    return jax.tree.map(lambda x: x.addressable_data(0), whole)


def _same(tree: Any) -> Any:  # a lambda would compile again at every call
    return tree
