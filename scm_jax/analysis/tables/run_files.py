"""What the files of one run directory say, as plain data: no pandas, no accelerator.

A run may have been written by another version: keys that are missing or unknown are no
error, and no config is built from what is read.
"""

from __future__ import annotations

import dataclasses
import glob
import json
import os
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from scm_jax.files.jsonl import flatten, read_rows
from scm_jax.sweeps.state import states

# Files that a row of ``load_runs`` is made of.
FACT_FILES = (
    "attempts.jsonl",
    "config.json",
    "results.jsonl",
    "run.json",
    "status.json",
    "summary.json",
)
METRICS_FILE = "metrics.jsonl"
# What every row of metrics has; metrics may not use these names.
ROW_COLUMNS = ("step", "images", "wall_time", "nonfinite")
RESULTS_FILE = "results.jsonl"
_KNOWN = {*FACT_FILES, METRICS_FILE, "submissions.jsonl"}

# Numbers of a result row that say how it was measured, not what was found.
RESULT_FACTS = (
    "steps",
    "nfe",
    "guidance",
    "sampling_compute",
    "num_samples",
    "num_seeds",
    "seed",
    "step",
    "images",
)

# What a foreign or damaged file can raise on the way to a row.
READ_ERRORS = (OSError, ValueError, TypeError, KeyError, AttributeError)

Roots = str | os.PathLike | Iterable[str | os.PathLike]


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """A run directory and what lies in it.

    Attributes:
      id: name of the directory; with its parents' names where another run has it too.
      path: the directory.
      files: name -> (bytes, modification time in ns) of the files that are known here.
      root: the directory it was found in; its own where it was named itself.
    """

    id: str
    path: str
    files: Mapping[str, tuple[int, int]]
    root: str

    def signature(self, names: Sequence[str]) -> str:
        """Changes with every change of these files."""
        found = ((name, self.files[name]) for name in names if name in self.files)
        return ";".join(f"{name}:{size}:{time}" for name, (size, time) in found)


def find_runs(roots: Roots) -> list[RunFiles]:
    """The runs in some places, by path.

    Args:
      roots: a directory of runs, a run directory, a glob of either, or several of them.

    Raises:
      FileNotFoundError: one of them does not exist, or none holds a run.
    """
    found: dict[str, RunFiles] = {}
    places = expand(roots)
    for place in places:
        run = _scan(place, place)
        below = [] if run else _scan_below(place)
        found |= {r.path: r for r in ([run] if run else below)}
    return _with_unique_ids([found[path] for path in sorted(found)])


def expand(roots: Roots) -> list[str]:
    """The directories that are meant, in order.

    Raises:
      FileNotFoundError: one of them does not exist.
    """
    if isinstance(roots, str | os.PathLike):
        roots = [roots]
    places: dict[str, None] = {}
    for root in [os.fspath(root) for root in roots]:
        matches = [root] if os.path.isdir(root) else sorted(glob.glob(root))
        matches = [match for match in matches if os.path.isdir(match)]
        if not matches:
            raise FileNotFoundError(f"no runs at {root}: there is no such directory")
        places |= dict.fromkeys(os.path.normpath(match) for match in matches)
    return list(places)


def _scan_below(root: str) -> list[RunFiles]:
    with os.scandir(root) as entries:
        paths = [e.path for e in entries if not e.name.startswith(".") and e.is_dir()]
    return [run for path in paths if (run := _scan(path, root))]


def _scan(path: str, root: str) -> RunFiles | None:
    """The run at ``path``; None where there is no ``config.json``."""
    files = {}
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name in _KNOWN:
                    stat = entry.stat()
                    files[entry.name] = (stat.st_size, stat.st_mtime_ns)
    except OSError:
        return None
    if "config.json" not in files:
        return None
    return RunFiles(os.path.basename(os.path.abspath(path)), path, files, root)


def _with_unique_ids(runs: list[RunFiles]) -> list[RunFiles]:
    """Runs of one name at several places are named with as many parents as it takes."""
    counts: dict[str, int] = {}
    for run in runs:
        counts[run.id] = counts.get(run.id, 0) + 1
    clashing = [run for run in runs if counts[run.id] > 1]
    if not clashing:
        return runs
    parts = {run.path: os.path.abspath(run.path).split(os.sep) for run in clashing}
    length = 2
    while len({tuple(p[-length:]) for p in parts.values()}) < len(parts):
        length += 1
    named = {path: "/".join(p[-length:]) for path, p in parts.items()}
    return [dataclasses.replace(run, id=named.get(run.path, run.id)) for run in runs]


def warn_of(errors: Mapping[str, str]) -> None:
    """One warning that names the runs that could not be read."""
    if errors:
        lines = [f"  {run}: {error}" for run, error in list(errors.items())[:5]]
        more = len(errors) - len(lines)
        lines += [f"  and {more} more"] if more else []
        warnings.warn(
            "left out, as they cannot be read:\n" + "\n".join(lines), stacklevel=3
        )


# --- One run's facts ------------------------------------------------------------------


def read_facts(run: RunFiles) -> dict[str, Any]:
    """All that a row of ``load_runs`` says but the state of an unfinished run.

    Returns:
      Plain data that JSON can carry: ``config`` (flat), ``plan`` (of ``run.json``),
      ``summary``, ``device_seconds``, ``device``, ``results`` (column ->
      value), ``protocols`` and ``measured_by`` (column -> index into them), and
      ``error``: why the run cannot be read, or None.
    """
    facts: dict[str, Any] = {"error": None, "config": {}, "results": {}}
    try:
        facts["config"] = flatten(_read_object(run, "config.json"))
        facts["plan"] = _read_object(run, "run.json")
        facts["plan"].pop("overrides", None)
        summary = _read_object(run, "summary.json")
        rows = summary.pop("results", None) or []
        facts["summary"] = _summary(summary)
        facts |= _attempts(run, facts["summary"])
        if RESULTS_FILE in run.files:
            rows = result_rows(run)
        facts |= default_results(rows, facts["config"])
    except READ_ERRORS as error:
        facts["error"] = _message(error, run)
    return facts


def result_rows(run: RunFiles) -> list[dict[str, Any]]:
    """Every evaluated row of the run, in order."""
    if RESULTS_FILE not in run.files:
        return []
    rows = read_rows(os.path.join(run.path, RESULTS_FILE))
    return [row for row in rows if isinstance(row, dict)]


def default_results(
    rows: Sequence[Mapping[str, Any]], config: Mapping[str, Any]
) -> dict[str, Any]:
    """The numbers of the run's own way to sample, the newest of each.

    Rows of another guidance, other intermediate times or another average are left out;
    of several rows the one of the latest training step counts, then the last.

    Args:
      rows: as ``evaluate`` writes them.
      config: flat.
    """
    average = default_average(config)
    guidance = config.get("sampling.guidance")
    newest: dict[str, tuple[float, float, Mapping[str, Any], str]] = {}
    for row in rows:
        if not _is_default(row, average, guidance):
            continue
        step = row.get("step") or 0
        for name, value in numbers(row).items():
            column = f"{row['steps']}_steps/{name}"
            if column not in newest or step >= newest[column][0]:
                newest[column] = (step, value, row, name)
    return {
        "results": {column: found[1] for column, found in newest.items()},
        **_protocols(newest),
    }


def default_average(config: Mapping[str, Any]) -> str | None:
    """Name of the average that samples; None where the config does not say."""
    if config.get("ema.sampling"):
        return config["ema.sampling"]
    for rel_std in config.get("ema.rel_std") or ():
        return f"{rel_std:g}"
    for images in config.get("ema.half_life_images") or ():
        return f"half_life_{images:g}"
    return None


def numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a result row; one that was not finite is NaN."""
    lost = row.get("nonfinite") or ()
    return {
        name: float("nan") if value is None else float(value)
        for name, value in row.items()
        if name not in RESULT_FACTS
        and (name in lost if value is None else _is_number(value))
    }


def _is_default(
    row: Mapping[str, Any], average: str | None, guidance: float | None
) -> bool:
    return (
        isinstance(row, Mapping)
        and "steps" in row
        and row.get("times") is None
        and (guidance is None or row.get("guidance", guidance) == guidance)
        and (average is None or row.get("ema", average) == average)
    )


def _protocols(newest: Mapping[str, tuple]) -> dict[str, Any]:
    """The protocols behind some numbers, each once, and which column has which."""
    protocols: list[Any] = []
    places: dict[int, int] = {}
    measured_by = {}
    for column, (_, _, row, name) in newest.items():
        entry = protocol_of(row, name)
        if entry is None:
            continue
        if id(entry) not in places:
            places[id(entry)] = len(protocols)
            protocols.append(entry)
        measured_by[column] = places[id(entry)]
    return {"protocols": protocols, "measured_by": measured_by}


def protocol_of(row: Mapping[str, Any], metric: str) -> dict[str, Any] | None:
    """How a number of a result row was measured, where the row says so."""
    entries = row.get("protocol")
    if not isinstance(entries, dict):
        return None
    name = (row.get("measured_by") or {}).get(metric)
    if name is None and len(entries) == 1:
        (name,) = entries
    return entries.get(name)


def _summary(summary: Mapping[str, Any]) -> dict[str, Any]:
    environment = summary.get("environment") or {}
    kept = ("parameters", "images", "train_macs_per_image", "total_train_macs")
    facts = {name: summary.get(name) for name in (*kept, "seconds")}
    named = ("device", "device_count", "commit", "dirty")
    return facts | {name: environment.get(name) for name in named}


def _attempts(run: RunFiles, summary: Mapping[str, Any]) -> dict[str, Any]:
    """Device time over all attempts, and the device.

    An attempt that was killed before it could write its end has no known length.
    """
    rows = []
    if "attempts.jsonl" in run.files:
        rows = read_rows(os.path.join(run.path, "attempts.jsonl"))
    environments = {
        row.get("attempt"): row["environment"] for row in rows if row.get("environment")
    }
    last = list(environments.values())[-1] if environments else {}
    ended = [row for row in rows if row.get("seconds") is not None]
    counts = [
        (environments.get(row.get("attempt")) or last).get("device_count")
        or summary.get("device_count")
        or 1
        for row in ended
    ]
    seconds = sum(
        row["seconds"] * count for row, count in zip(ended, counts, strict=True)
    )
    if not ended and summary.get("seconds") is not None:
        seconds = summary["seconds"] * (summary.get("device_count") or 1)
    return {
        "device_seconds": seconds or None,
        "device": summary.get("device") or last.get("device"),
    }


def _read_object(run: RunFiles, name: str) -> dict[str, Any]:
    """A JSON object of the run; empty where it does not exist."""
    if name not in run.files:
        return {}
    path = os.path.join(run.path, name)
    with open(path, "rb", buffering=0) as file:
        content = file.readall()
    try:
        found = json.loads(content)
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a {type(found).__name__}, not an object")
    return found


def _message(error: Exception, run: RunFiles) -> str:
    text = str(error)
    return text if run.path in text else f"{run.path}: {error!r}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# --- State ----------------------------------------------------------------------------


def read_state(
    run: RunFiles, facts: Mapping[str, Any], now: float
) -> tuple[str, str | None]:
    """State of a run, ``unreadable`` or one of ``states.STATES``, and its error."""
    if facts["error"]:
        return "unreadable", facts["error"]
    if "summary.json" in run.files:
        return states.DONE, None
    try:
        found = states.read_state(run.path, now)
    except READ_ERRORS as error:
        return "unreadable", _message(error, run)
    return found.state, found.error


def now() -> float:
    """Seconds since 1970; a function of its own so that tests can stop the clock."""
    return time.time()
