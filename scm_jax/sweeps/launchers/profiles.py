"""Site profiles: what a cluster wants to be told, as TOML.

Tables are ``[slurm]``, ``[kubernetes]`` and, for each kind of allocation,
``[resources.NAME]``; ``experiments/clusters/example.toml`` is one to copy.
"""

from __future__ import annotations

import dataclasses
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar


@dataclasses.dataclass(frozen=True)
class Slurm:
    """The settings of a SLURM site; "" and 0 leave one to the site."""

    partition: str = ""
    account: str = ""
    qos: str = ""  # quality of service
    max_array_size: int = 1000  # elements of a job array; at most MaxArraySize
    # Jobs of one user that the site keeps queued; an element of an array counts as one.
    # Runs beyond it are left for a later ``resubmit``.
    max_submit: int = 0
    max_requeues: int = 100  # restarts of a job before it stays away
    # How long before its time limit a job is asked to save; SLURM may ask up to a
    # minute earlier.
    signal_seconds: int = 180
    python: str = ""  # the interpreter; "" is the one that submits
    setup: tuple[str, ...] = ()  # lines of shell that activate the environment
    options: tuple[str, ...] = ()  # further options of ``sbatch``
    srun: tuple[str, ...] = ()  # further options of ``srun``


@dataclasses.dataclass(frozen=True)
class Kubernetes:
    """The settings of a Kubernetes cluster."""

    image: str = ""  # required; with scm_jax installed
    namespace: str = "default"
    queue: str = ""  # Kueue's local queue; "" for a cluster without Kueue
    python: str = "python"  # the interpreter in the image
    claim: str = ""  # required; volume claim that holds the sweep, mounted by all pods
    mount: str = ""  # required; where, in the pods as on the machine that submits
    grace_seconds: int = 120  # between being asked to save and being killed
    accelerator: str = "nvidia.com/gpu"  # resource name of a GPU
    node_selector: Mapping[str, str] = dataclasses.field(default_factory=dict)
    service_account: str = ""  # of the pods; "" is the namespace's default
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Resources:
    """What one run gets; "" and 0 leave it to the site."""

    nodes: int = 1  # hosts that train together
    tasks: int = 1  # processes on each host: 1, or one for each GPU
    gpus: int = 0  # on each host
    cpus: int = 1  # for each process
    memory: str = ""  # on each host, as the cluster writes it: ``64G``, ``64Gi``
    time: str = ""  # limit of one start, ``HH:MM:SS`` or ``D-HH:MM:SS``


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
    _check_keys(table, Profile, f"{path}: ")
    resources = _table(table.get("resources", {}), f"{path}: resources")
    return Profile(
        _section(Slurm, table.get("slurm", {}), f"{path}: slurm"),
        _section(Kubernetes, table.get("kubernetes", {}), f"{path}: kubernetes"),
        {
            name: _section(Resources, values, f"{path}: resources.{name}")
            for name, values in resources.items()
        },
    )


def seconds(time: str) -> int:
    """Seconds of ``HH:MM:SS`` or ``D-HH:MM:SS``.

    Raises:
      ValueError: it is neither.
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
    _check_keys(_table(values, where), kind, f"{where}.")
    defaults = vars(kind())
    return kind(
        **{k: _value(v, defaults[k], f"{where}.{k}") for k, v in values.items()}
    )


def _value(value: Any, default: Any, where: str) -> Any:
    key = where.rpartition(".")[2]
    if isinstance(default, tuple):
        legal = isinstance(value, list) and _are_texts(value)
        must_be, value = "a list of texts", tuple(value) if legal else value
    elif isinstance(default, dict):
        legal = isinstance(value, dict) and _are_texts(value.values())
        must_be = "a table of texts"
    elif isinstance(default, int):
        least = int(key in _POSITIVE)
        legal = type(value) is int and value >= least  # bool is an int to Python
        must_be = f"a whole number, {least} or more"
    else:
        legal = isinstance(value, str) and "\n" not in value
        must_be = "one line of text"
    if not legal:
        raise ValueError(f"{where} = {value!r}: must be {must_be}")
    if key == "time" and value:
        try:
            seconds(value)
        except ValueError as error:
            raise ValueError(f"{where} = {error}") from None
    return value


def _are_texts(values: Iterable[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def _table(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where} = {value!r}: must be a table")
    return value


def _check_keys(table: Mapping[str, Any], kind: type, where: str) -> None:
    legal = {field.name for field in dataclasses.fields(kind)}
    if unknown := sorted(set(table) - legal):
        raise ValueError(f"{where}{unknown[0]}: unknown key; legal: {sorted(legal)}")
