"""Which processes train together: found in flags or in the environment, never guessed.

The first of these that applies decides:

    1. flags            --coordinator=host:port --num_processes=N --process_id=I
    2. JAX variables    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID
    3. SLURM            a step of srun with more than one task
    4. TPU              TPU_WORKER_HOSTNAMES with more than one host, TPU_WORKER_ID
    5. Kubernetes       an indexed Job or JobSet, with JAX_NUM_PROCESSES
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Mapping

# Above the ports that Linux hands out by itself (32768-60999).
_FIRST_PORT, _NUM_PORTS = 61440, 4096
TPU_PORT = KUBERNETES_PORT = 8482

FLAGS = ("--coordinator", "--num_processes", "--process_id")
VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


@dataclasses.dataclass(frozen=True)
class Cluster:
    """One process among several."""

    coordinator: str  # host:port where process 0 listens
    num_processes: int
    process_id: int  # from 0
    source: str  # where this was found, for messages
    # The accelerators of the host that this process may use; None for all visible ones.
    local_device_ids: tuple[int, ...] | None = None

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.coordinator.rpartition(":")
        return host.strip("[]"), int(port)


def find_cluster(
    environ: Mapping[str, str],
    *,
    distributed: str = "auto",
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> Cluster | None:
    """The cluster of this process, or None where it is alone.

    From the environment variables and the flags; ``distributed=off`` is for a process
    that is alone whatever the environment says.

    Raises:
      ValueError: incomplete or contradictory; names the flag or variable.

    Example:
      >>> find_cluster({"JAX_COORDINATOR_ADDRESS": "a:1234", "JAX_NUM_PROCESSES": "2",
      ...               "JAX_PROCESS_ID": "1"}).process_id
      1
    """
    flags = (coordinator, num_processes, process_id)
    found = None
    if any(value is not None for value in flags):
        if distributed == "off":
            raise ValueError(f"--distributed=off contradicts {', '.join(FLAGS)}")
        found = _checked(flags, FLAGS, "flags")
    elif distributed != "off":
        finders = (_from_variables, _from_slurm, _from_tpu, _from_kubernetes)
        found = next(filter(None, (find(environ) for find in finders)), None)
    return found if found and found.num_processes > 1 else None


def _checked(values: tuple, names: tuple[str, ...], source: str) -> Cluster:
    missing = [n for n, v in zip(names, values, strict=True) if v in (None, "")]
    if missing:
        given = [n for n in names if n not in missing]
        raise ValueError(
            f"{', '.join(given)} without {', '.join(missing)}: all of "
            f"{', '.join(names)} are needed"
        )
    coordinator, number, index = values
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"{names[0]}={coordinator!r}: must be host:port")
    number, index = map(_integer, (number, index), names[1:])
    if number < 1:
        raise ValueError(f"{names[1]}={number}: must be at least 1")
    if not 0 <= index < number:
        raise ValueError(
            f"{names[2]}={index}: must be in 0..{number - 1}, as {names[1]}={number}"
        )
    return Cluster(coordinator, number, index, source)


def _integer(text: str | int, name: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{name}={text!r}: must be an integer") from None


def _number(environ: Mapping[str, str], name: str, default: int) -> int:
    return _integer(environ.get(name) or default, name)


def _from_variables(environ: Mapping[str, str]) -> Cluster | None:
    if "JAX_PROCESS_ID" not in environ and "JOB_COMPLETION_INDEX" in environ:
        return None  # Kubernetes fills in what is missing
    values = tuple(environ.get(name) for name in VARIABLES)
    # The address alone says nothing about who is there: JAX reads it by itself.
    return _checked(values, VARIABLES, "JAX variables") if any(values[1:]) else None


def _from_slurm(environ: Mapping[str, str]) -> Cluster | None:
    names = ("SLURM_STEP_NODELIST", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID")
    # A shell of salloc and the script of sbatch lack the variables of a step of srun:
    # whoever runs there runs alone.
    if any(name not in environ for name in names):
        return None
    hosts, number, index = (environ[name] for name in names)
    if _integer(number, names[1]) < 2:
        return None
    # Two steps of one job on one host must not meet on one port.
    job = _number(environ, "SLURM_JOB_ID", 0) + 97 * _number(
        environ, "SLURM_STEP_ID", 0
    )
    where = f"{expand_hosts(hosts)[0]}:{_FIRST_PORT + job % _NUM_PORTS}"
    cluster = _checked((where, number, index), names, "SLURM")
    return dataclasses.replace(cluster, local_device_ids=_slurm_devices(environ))


def _slurm_devices(environ: Mapping[str, str]) -> tuple[int, ...] | None:
    """One accelerator each where tasks share a host and SLURM did not split it."""
    counts = expand_counts(environ.get("SLURM_STEP_TASKS_PER_NODE", "1"))
    tasks_here = counts[min(_number(environ, "SLURM_NODEID", 0), len(counts) - 1)]
    visible = visible_devices(environ.get("CUDA_VISIBLE_DEVICES", ""))
    if tasks_here == 1 or len(visible) != tasks_here:
        return None
    return (_number(environ, "SLURM_LOCALID", 0),)


def visible_devices(text: str) -> list[str]:
    """The devices of ``CUDA_VISIBLE_DEVICES``: up to the first name that can be none.

    Example:
      >>> visible_devices("2,GPU-8932f937"), visible_devices("-1")
      (['2', 'GPU-8932f937'], [])
    """
    names = [name.strip() for name in text.split(",")]
    legal = re.compile(r"\d+|(GPU|MIG)-.+")
    return list(itertools.takewhile(legal.fullmatch, names))


def expand_hosts(text: str) -> list[str]:
    """The hosts of SLURM's short form.

    Example:
      >>> expand_hosts("gpu[08-10,12],login")
      ['gpu08', 'gpu09', 'gpu10', 'gpu12', 'login']
    """
    hosts = []
    for part in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", text):
        found = re.fullmatch(r"([^\[]*)\[([^\]]*)\](.*)", part)
        if not found:
            hosts.append(part)
            continue
        before, ranges, after = found.groups()
        for item in ranges.split(","):
            first, _, last = item.partition("-")
            for i in range(int(first), int(last or first) + 1):
                hosts += expand_hosts(f"{before}{i:0{len(first)}d}{after}")
    if not hosts:
        raise ValueError(f"SLURM_STEP_NODELIST={text!r}: no host in it")
    return hosts


def expand_counts(text: str) -> list[int]:
    """The numbers of SLURM's short form.

    Example:
      >>> expand_counts("4(x2),1")
      [4, 4, 1]
    """
    counts = []
    for part in text.split(","):
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if not found:
            raise ValueError(f"SLURM_STEP_TASKS_PER_NODE={text!r}: cannot be read")
        counts += [int(found[1])] * int(found[2] or 1)
    return counts


def _from_tpu(environ: Mapping[str, str]) -> Cluster | None:
    """A pod slice, or several: what GKE sets, counted as JAX itself counts."""
    workers = environ.get("TPU_WORKER_HOSTNAMES", "").split(",")
    slices = _number(environ, "MEGASCALE_NUM_SLICES", 1)
    number = len(workers) * slices
    if not workers[0] or number < 2:
        return None
    if "TPU_WORKER_ID" not in environ:
        raise ValueError("TPU_WORKER_HOSTNAMES without TPU_WORKER_ID")
    worker = _integer(environ["TPU_WORKER_ID"], "TPU_WORKER_ID")
    if not 0 <= worker < len(workers):
        raise ValueError(
            f"TPU_WORKER_ID={worker}: TPU_WORKER_HOSTNAMES names {len(workers)} hosts"
        )
    this = _number(environ, "MEGASCALE_SLICE_ID", 0)
    first = environ.get("MEGASCALE_COORDINATOR_ADDRESS") or workers[0]
    return _checked(
        (f"{first.split(':')[0]}:{TPU_PORT}", number, this * len(workers) + worker),
        ("TPU_WORKER_HOSTNAMES", "MEGASCALE_NUM_SLICES", "MEGASCALE_SLICE_ID"),
        "TPU",
    )


def _from_kubernetes(environ: Mapping[str, str]) -> Cluster | None:
    """Pods of an indexed Job: host names end in the index, ``JOB-0`` is process 0."""
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JOB_COMPLETION_INDEX")
    where, number, index = (environ.get(name) for name in names)
    # Nothing but JAX_NUM_PROCESSES tells a Job of many processes from one that works
    # through a list of runs, where each pod is alone.
    if number is None or index is None:
        return None
    if not where and number != "1":
        where = _kubernetes_coordinator(environ, index)
    where = where or f"localhost:{KUBERNETES_PORT}"
    return _checked((where, number, index), names, "Kubernetes")


def _kubernetes_coordinator(environ: Mapping[str, str], index: str) -> str:
    domain = environ.get("JOBSET_NAME")
    # HOSTNAME is JOB-INDEX; with hostNetwork it is the machine's name instead.
    job, _, last = environ.get("HOSTNAME", "").partition(".")[0].rpartition("-")
    if not domain or not job or last != index:
        raise ValueError(
            f"JOB_COMPLETION_INDEX={index} and JAX_NUM_PROCESSES say that this pod is "
            "one of several, but the address of the first is unknown: set "
            "JAX_COORDINATOR_ADDRESS to HOST:PORT, or in a JobSet set JOBSET_NAME "
            "(HOSTNAME must then end in the index)"
        )
    return f"{job}-0.{domain}:{KUBERNETES_PORT}"
