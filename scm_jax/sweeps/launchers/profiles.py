"""Site profiles: what a cluster wants to be told, as TOML.

    [slurm]             partition, account, limits, how the environment is activated
    [kubernetes]        image, volume, queue
    [resources.NAME]    what a run gets whose ``resources`` are NAME

``resources.default`` is for runs that name none. Every key has a default; see the
attributes below and ``experiments/clusters/example.toml``.
"""

from __future__ import annotations

import dataclasses
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar


@dataclasses.dataclass(frozen=True)
class Slurm:
    """What is particular to a SLURM site; "" and 0 leave it to the site.

    Attributes:
      partition: where jobs go.
      account: who pays.
      qos: quality of service.
      max_array_size: elements of one job array; the site's MaxArraySize or less.
      max_submit: jobs of one user that the site keeps queued; an element of an array
        counts as one. Runs beyond it are left for a later ``resubmit``.
      max_requeues: how often a job may start again before it stays away.
      signal_seconds: how long before its time limit a job is asked to save. SLURM may
        ask up to a minute earlier.
      python: the interpreter; "" is the one that submits.
      setup: lines of shell before the run starts, such as what activates an
        environment.
      options: further options of ``sbatch``, such as ``--constraint=a100``.
      srun: further options of ``srun``.
    """

    partition: str = ""
    account: str = ""
    qos: str = ""
    max_array_size: int = 1000
    max_submit: int = 0
    max_requeues: int = 100
    signal_seconds: int = 180
    python: str = ""
    setup: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    srun: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Kubernetes:
    """What is particular to a Kubernetes cluster.

    Attributes:
      image: with scm_jax installed; required.
      namespace: of the jobs.
      queue: Kueue's local queue; "" for a cluster without Kueue.
      python: the interpreter in the image.
      claim: persistent volume claim that all pods mount; the sweep lies on it.
      mount: where, in the pods as on the machine that submits.
      grace_seconds: between being asked to save and being killed.
      accelerator: resource name of a GPU.
      node_selector: labels of the nodes to run on.
      service_account: of the pods; "" is the namespace's default.
      environment: variables of the container.
    """

    image: str = ""
    namespace: str = "default"
    queue: str = ""
    python: str = "python"
    claim: str = ""
    mount: str = ""
    grace_seconds: int = 120
    accelerator: str = "nvidia.com/gpu"
    node_selector: Mapping[str, str] = dataclasses.field(default_factory=dict)
    service_account: str = ""
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Resources:
    """What one run gets; "" and 0 leave it to the site.

    Attributes:
      nodes: hosts that train together.
      tasks: processes on each host: 1, or one for each GPU.
      gpus: on each host.
      cpus: for each process.
      memory: on each host, as the cluster writes it: ``64G``, ``64Gi``.
      time: limit of one start, ``HH:MM:SS`` or ``D-HH:MM:SS``.
    """

    nodes: int = 1
    tasks: int = 1
    gpus: int = 0
    cpus: int = 1
    memory: str = ""
    time: str = ""

    @property
    def processes(self) -> int:
        """How many processes train together."""
        return self.nodes * self.tasks


@dataclasses.dataclass(frozen=True)
class Profile:
    """A cluster and what runs can ask it for."""

    slurm: Slurm = Slurm()
    kubernetes: Kubernetes = Kubernetes()
    resources: Mapping[str, Resources] = dataclasses.field(default_factory=dict)

    def resources_of(self, name: str) -> Resources:
        """The resources of this name; "" is ``default``.

        Raises:
          ValueError: there are none; the message lists the legal names.

        Example:
          >>> Profile().resources_of("").nodes
          1
        """
        found = self.resources.get(name or "default")
        if found is None and name:
            raise ValueError(
                f"resources {name!r} are not in the profile; "
                f"legal: {sorted(self.resources)}"
            )
        return found or Resources()


def load_profile(path: str | os.PathLike) -> Profile:
    """Reads a TOML file; "" is a profile of defaults.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is not TOML, a key is unknown, or a value has a wrong type; the
        message names file and key, and what is legal.
    """
    if not os.fspath(path):
        return Profile()
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"--profile={path}: there is no such file")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: {error}") from error
    _refuse_unknown(table, {"slurm", "kubernetes", "resources"}, f"{path}: ")
    resources = _table(table.get("resources", {}), f"{path}: resources")
    return Profile(
        slurm=_section(Slurm, table.get("slurm", {}), f"{path}: slurm"),
        kubernetes=_section(
            Kubernetes, table.get("kubernetes", {}), f"{path}: kubernetes"
        ),
        resources={
            name: _section(Resources, values, f"{path}: resources.{name}")
            for name, values in resources.items()
        },
    )


def seconds(time: str) -> int:
    """Seconds of ``HH:MM:SS`` or ``D-HH:MM:SS``.

    Raises:
      ValueError: it is neither.

    Example:
      >>> seconds("1-00:00:10")
      86410
    """
    found = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)", time)
    if not found:
        raise ValueError(f"{time!r} must be HH:MM:SS or D-HH:MM:SS")
    days, hours, minutes, rest = (int(text or 0) for text in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + rest


# Whole numbers that make no sense as 0.
_POSITIVE = ("nodes", "tasks", "cpus", "max_array_size")

Section = TypeVar("Section", Slurm, Kubernetes, Resources)


def _section(kind: type[Section], values: Any, where: str) -> Section:
    """A dataclass from a table whose values have the types of its defaults."""
    defaults = dataclasses.asdict(kind())
    values = _table(values, where)
    _refuse_unknown(values, set(defaults), f"{where}.")
    checked = {
        key: _value(value, defaults[key], f"{where}.{key}")
        for key, value in values.items()
    }
    return kind(**checked)


def _value(value: Any, default: Any, where: str) -> Any:
    if isinstance(default, tuple | dict):
        items = value if isinstance(value, list | dict) else [None]
        texts = items.values() if isinstance(items, dict) else items
        legal = isinstance(value, list if isinstance(default, tuple) else dict)
        if not legal or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{where} = {value!r}: must be a {_kind(default)}")
        return tuple(value) if isinstance(default, tuple) else value
    least = int(where.rpartition(".")[2] in _POSITIVE)
    # bool is an int to Python
    if type(value) is not type(default) or (isinstance(value, int) and value < least):
        raise ValueError(f"{where} = {value!r}: must be a {_kind(default, least)}")
    if isinstance(value, str) and "\n" in value:
        raise ValueError(f"{where} = {value!r}: must be one line")
    if where.endswith(".time") and value:
        try:
            seconds(value)
        except ValueError as error:
            raise ValueError(f"{where} = {error}") from None
    return value


def _kind(default: Any, least: int = 0) -> str:
    return {
        str: "text",
        int: f"whole number, {least} or more",
        tuple: "list of texts",
        dict: "table of texts",
    }[type(default)]


def _table(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where} = {value!r}: must be a table")
    return value


def _refuse_unknown(table: Mapping[str, Any], legal: set[str], where: str) -> None:
    unknown = sorted(set(table) - legal)
    if unknown:
        raise ValueError(f"{where}{unknown[0]}: unknown key; legal: {sorted(legal)}")
