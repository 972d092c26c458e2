"""Which data a run was trained on: ``data.json`` in its directory.

Each entry has the step that a part of the training began at, and name, split, count and
SHA-256 of the shards that it read. Synthetic data have no entry.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from scm_jax.datasets import identity
from scm_jax.datasets.identity import Identity
from scm_jax.files.jsonl import write_json
from scm_jax.runs.directory.layout import RunDir
from scm_jax.types import lookup

logger = logging.getLogger(__name__)

# Legal values of ``dataset.changed``.
CHANGED = {"refuse": "stop before the first step", "accept": "go on, and record it"}

Entry = tuple[int, Identity]


def read(run_dir: str | os.PathLike) -> list[Entry]:
    """The entries of a run, the newest last.

    Raises:
      ValueError: the file is damaged.
    """
    path = RunDir(run_dir).data_path
    try:
        parts = json.loads(path.read_text(encoding="utf-8"))["parts"]
        return [
            (
                int(p["from_step"]),
                Identity(p["name"], p["split"], int(p["count"]), tuple(p["shards"])),
            )
            for p in parts
        ]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged ({error!r}): it records the data that the run was "
            "trained on; put a copy back, or move it away to go on without it"
        ) from error


def describe(run_dir: str | os.PathLike) -> str | None:
    """The data of a run in one line, for its results; None where nothing is known."""
    entries = read(run_dir)
    texts = (
        f"from step {step:,} {data}" if step else str(data) for step, data in entries
    )
    return "; ".join(texts) or None


def newest(run_dir: str | os.PathLike) -> Identity | None:
    """The data that a run was trained on last."""
    return next((found for _, found in reversed(read(run_dir))), None)


def check(
    config: ConfigDict, run_dir: str | os.PathLike, dataset: Any, step: int | None
) -> list[Entry]:
    """The entries of a run that begins, or resumes at ``step``, with ``dataset``.

    Raises:
      ValueError: the data are not those of this run so far, of its teacher's or of the
        run it starts from, and ``dataset.changed`` does not accept that.
    """
    # The configs of earlier versions lack the key.
    changed = config.dataset.get("changed", "refuse")
    lookup(CHANGED, changed, "dataset.changed")
    found = identity.of_dataset(dataset)
    if found is None:
        return []
    entries = [e for e in read(run_dir) if step is not None and e[0] <= step]
    if not entries:
        for what, other in _other_runs(config, found):
            _compare(f"{what} was trained on other data", other, found, changed)
    elif not entries[-1][1].same_data(found):
        what = f"the data of {run_dir} have changed since it was trained"
        _compare(what, entries[-1][1], found, changed)
    else:
        return entries
    return [*entries, (step or 0, found)]


def changed_since(
    run_dir: str | os.PathLike, open_dataset: Callable[[], Any]
) -> Identity | None:
    """What the dataset holds now, if the run was trained on other data.

    None also where nothing is recorded, or where the data are missing.
    """
    trained_on = newest(run_dir)
    if trained_on is None:
        return None
    try:
        found = identity.of_dataset(open_dataset())
    except FileNotFoundError:
        return None
    if found is None or found.same_data(trained_on):
        return None
    logger.warning(
        "%s was trained on %s; metrics that need data are measured on %s",
        *(run_dir, trained_on, found),
    )
    return found


def write(run_dir: str | os.PathLike, entries: list[Entry]) -> None:
    """Writes the entries of a run, whole or not at all."""
    parts = [
        {"from_step": step, **dataclasses.asdict(found), "sha256": found.sha256}
        for step, found in entries
    ]
    if parts:
        write_json(RunDir(run_dir).data_path, {"parts": parts})


def _other_runs(config: ConfigDict, found: Identity) -> list[tuple[str, Identity]]:
    """The data of the runs that this one builds on, as far as they are known."""
    others = []
    if config.teacher.source == "run":
        others.append(("teacher.run", config.teacher.run, newest(config.teacher.run)))
    if config.init.run:
        others.append(("init.run", config.init.run, newest(config.init.run)))
    # A network may start from one that was trained on another dataset by name.
    return [
        (f"{key} = {run!r}", data)
        for key, run, data in others
        if data is not None and (key == "teacher.run" or data.name == found.name)
    ]


def _compare(what: str, then: Identity, now: Identity, changed: str) -> None:
    if then.same_data(now):
        return
    text = f"{what}:\n  there: {then}\n  here:  {now}"
    if changed != "accept":
        raise ValueError(
            f"{text}\nPrepare the former data again or name their folder in "
            "dataset.root; to go on with these, set dataset.changed = 'accept' "
            "(--config.dataset.changed=accept)."
        )
    logger.warning("%s\nGoing on, as dataset.changed = 'accept'.", text)
