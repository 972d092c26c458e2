"""A run of a sweep before it runs, and the files that it begins with."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scm_jax.files.jsonl import write_json
from scm_jax.runs.directory.layout import RunDir
from scm_jax.runs.directory.linked_runs import RUN_FILE
from scm_jax.runs.directory.run_configs import read_whole_object


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep, resolved."""

    # NAME-HASH, the name of its directory; HASH is ten hexadecimal digits of all config
    # keys that can change the result.
    id: str
    sweep: str  # name of the sweep
    file: str  # sweep file and argument it comes from
    base: str  # experiment file and argument that the overrides changed
    label: str  # its name within the sweep file, or ""
    config: Mapping[str, Any]  # resolved, as plain data (``config.to_dict``)
    overrides: Mapping[str, Any]  # what the sweep changed: dotted key -> resolved value
    tags: tuple[str, ...] = ()  # for tables
    resources: str = ""  # a kind of allocation in the profile; "" is its default
    depends_on: tuple[str, ...] = ()  # ids of runs that must be done before it starts
    teacher_id: str | None = None  # id of the run in ``teacher.run``
    parameters: int = 0  # of the network
    images: int = 0  # training length
    train_flops: float = 0.0  # 2 x multiply-adds of all losses and gradients
    metrics: tuple[str, ...] = ()  # columns to show by default
    max_attempts: int = 3  # starts before it counts as failed for good


def write_run(root: str | Path, planned: PlannedRun) -> Path:
    """Makes ``root/ID`` with ``config.json`` and ``run.json``; returns it.

    Both are written again where the run exists already, so that tags, resources and
    other keys without influence on the result have their newest values.

    Raises:
      ValueError: the directory belongs to another config.
    """
    directory = Path(root) / planned.id
    RunDir(directory).write_config(planned.config)
    facts = dataclasses.asdict(planned)
    del facts["config"]
    write_json(directory / RUN_FILE, facts)
    return directory


def read_run(directory: str | Path) -> PlannedRun:
    """Reads what ``write_run`` wrote; ignores facts that only other versions know.

    Raises:
      FileNotFoundError: the directory is not a run of a sweep.
    """
    facts = read_facts(directory)
    if not facts:
        raise FileNotFoundError(f"{directory} is not a run of a sweep: no {RUN_FILE}")
    known = {f.name for f in dataclasses.fields(PlannedRun)}
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in facts.items()
        if key in known
    }
    return PlannedRun(config=RunDir(directory).read_config(), **values)


def read_facts(directory: str | os.PathLike) -> dict[str, Any]:
    """``run.json``; empty for a run that was trained without a sweep."""
    return read_whole_object(Path(directory) / RUN_FILE)


def sweep_runs(root: str | Path) -> list[Path]:
    """The directories of a sweep's runs below ``root``, by name."""
    return sorted(path.parent for path in Path(root).glob(f"*/{RUN_FILE}"))
