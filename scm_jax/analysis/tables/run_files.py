"""What the files of one run directory say, as plain data: no pandas, no accelerator.

A run may have been written by another version: keys that are missing or unknown are no
error, and no config is built from what is read.
"""

from __future__ import annotations

import collections
import dataclasses
import glob
import math
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scm_jax.files.jsonl import flatten, read_rows
from scm_jax.runs.directory.run_configs import read_whole_object, sampling_ema
from scm_jax.sweeps.state import states

METRICS_FILE, RESULTS_FILE = "metrics.jsonl", "results.jsonl"
# Files that a row of ``load_runs`` is made of.
FACT_FILES: tuple[str, ...] = ("attempts.jsonl", "config.json", RESULTS_FILE)
FACT_FILES += ("run.json", "status.json", "summary.json")
_KNOWN = {*FACT_FILES, METRICS_FILE, "submissions.jsonl"}
# What every row of metrics has; metrics may not use these names.
ROW_COLUMNS = ("step", "images", "wall_time", "nonfinite")
# Numbers of a result row that say how it was measured, not what was found.
_MEASURED_BY: tuple[str, ...] = (
    "steps",
    "nfe",
    "guidance",
    "sampling_compute",
    "num_samples",
)
_MEASURED_BY += ("num_seeds", "seed", "step", "images")
# What a foreign or damaged file can raise on the way to a row.
READ_ERRORS = (OSError, ValueError, TypeError, KeyError, AttributeError)

Roots = str | os.PathLike | Iterable[str | os.PathLike]


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """A run directory and its files."""

    id: str  # name of the directory, with parents where several runs have it
    path: str
    files: Mapping[str, tuple[int, int]]  # name -> bytes, modification time in ns
    root: str  # where it was found; its own path where it was named itself

    def signature(self, names: Sequence[str]) -> str:
        """Changes with every change of these files."""
        found = ((name, self.files[name]) for name in names if name in self.files)
        return ";".join(f"{name}:{size}:{time}" for name, (size, time) in found)


def find_runs(roots: Roots) -> list[RunFiles]:
    """The runs in some places (see ``frames.load_runs``), by path.

    Raises:
      FileNotFoundError: a root does not exist.
    """
    found: dict[str, RunFiles] = {}
    for place in expand(roots):
        run = _scan(place, place)
        found |= {r.path: r for r in ([run] if run else _scan_below(place))}
    return _with_unique_ids([found[path] for path in sorted(found)])


def expand(roots: Roots) -> list[str]:
    """The directories that are meant, in order.

    Raises:
      FileNotFoundError: one of them does not exist.
    """
    places: dict[str, None] = {}
    for root in [roots] if isinstance(roots, str | os.PathLike) else roots:
        root = os.fspath(root)
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
    try:
        with os.scandir(path) as entries:
            stats = {e.name: e.stat() for e in entries if e.name in _KNOWN}
    except OSError:
        return None
    files = {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}
    if "config.json" not in files:
        return None
    return RunFiles(os.path.basename(os.path.abspath(path)), path, files, root)


def _with_unique_ids(runs: list[RunFiles]) -> list[RunFiles]:
    """Prefixes parents to names that several runs have, as many as it takes."""
    counts = collections.Counter(run.id for run in runs)
    parts = {r.path: Path(r.path).absolute().parts for r in runs if counts[r.id] > 1}
    length = 2
    while len({p[-length:] for p in parts.values()}) < len(parts):
        length += 1
    named = {path: "/".join(p[-length:]) for path, p in parts.items()}
    return [dataclasses.replace(run, id=named.get(run.path, run.id)) for run in runs]


def warn_of(errors: Mapping[str, str]) -> None:
    """One warning that names the runs that cannot be read."""
    if errors:
        lines = [f"  {run}: {error}" for run, error in list(errors.items())[:5]]
        more = len(errors) - len(lines)
        lines += [f"  and {more} more"] if more else []
        warnings.warn(
            "left out, as they cannot be read:\n" + "\n".join(lines), stacklevel=3
        )


def read_facts(run: RunFiles) -> dict[str, Any]:
    """All that a row of ``load_runs`` says but the state of an unfinished run.

    Returns:
      Plain data that JSON can carry: ``config`` (flat), ``plan`` (of ``run.json``),
      ``summary``, ``device_seconds``, ``device``, ``results`` (column -> value),
      ``protocols`` and ``measured_by`` (column -> index into them), and ``error``: why
      the run cannot be read, or None.
    """
    facts: dict[str, Any] = {"error": None, "config": {}, "results": {}, "plan": {}}
    facts |= {"summary": {}, "device_seconds": None, "device": None}
    facts |= {"protocols": [], "measured_by": {}}
    try:
        directory = Path(run.path)
        facts["config"] = flatten(read_whole_object(directory / "config.json"))
        facts["plan"] = read_whole_object(directory / "run.json")
        facts["plan"].pop("overrides", None)
        summary = read_whole_object(directory / "summary.json")
        rows = summary.pop("results", None) or []
        facts["summary"] = _summary(summary)
        facts |= _attempts(run, facts["summary"])
        if RESULTS_FILE in run.files:
            rows = result_rows(run)
        facts |= _default_results(rows, facts["config"])
    except READ_ERRORS as error:
        facts["error"] = _message(error, run)
    return facts


def result_rows(run: RunFiles) -> list[dict[str, Any]]:
    """Every evaluated row of the run, in order."""
    if RESULTS_FILE not in run.files:
        return []
    rows = read_rows(os.path.join(run.path, RESULTS_FILE))
    return [row for row in rows if isinstance(row, dict)]


def _default_results(
    rows: Sequence[Mapping[str, Any]], config: Mapping[str, Any]
) -> dict[str, Any]:
    """The newest numbers of the run's own sampler with its guidance, times and EMA.

    The row of the latest training step counts, then the last one.
    """
    names = ("sampling", "rel_std", "half_life_images")
    ema = sampling_ema({name: config.get(f"ema.{name}") for name in names})
    guidance = config.get("sampling.guidance")
    sampler, shift, gamma = (
        config.get(f"sampling.{name}") for name in ("sampler", "shift", "gamma")
    )
    samplers = {sampler, f"{sampler}(shift={shift})"}
    if gamma and sampler == "map":
        samplers = {f"{sampler}(gamma={gamma})"}
    newest: dict[str, tuple[float, float]] = {}
    entries: dict[str, Any] = {}
    for row in rows:
        if not (
            isinstance(row, Mapping)
            and "steps" in row
            and row.get("times") is None
            and (guidance is None or row.get("guidance", guidance) == guidance)
            and (sampler is None or row.get("sampler", sampler) in samplers)
            and (not ema or row.get("ema", ema) == ema)
        ):
            continue
        step = row.get("step") or 0
        for name, value in _numbers(row).items():
            column = f"{row['steps']}_steps/{name}"
            if column not in newest or step >= newest[column][0]:
                newest[column] = (step, value)
                entries[column] = _protocol(row, name)
    # Each protocol once: columns of one row share it.
    unique = {id(entry): entry for entry in entries.values() if entry is not None}
    places = {key: place for place, key in enumerate(unique)}
    return {
        "results": {column: value for column, (_, value) in newest.items()},
        "protocols": list(unique.values()),
        "measured_by": {c: places[id(e)] for c, e in entries.items() if e is not None},
    }


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a result row; one that was not finite is NaN."""
    lost = row.get("nonfinite") or ()
    return {
        name: math.nan if value is None else float(value)
        for name, value in row.items()
        if name not in _MEASURED_BY
        and (name in lost if value is None else type(value) in (int, float))
    }


def _protocol(row: Mapping[str, Any], metric: str) -> dict[str, Any] | None:
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
    """Device time over all attempts, and the device."""
    rows = []
    if "attempts.jsonl" in run.files:
        rows = read_rows(os.path.join(run.path, "attempts.jsonl"))
    environments = {
        row.get("attempt"): row["environment"] for row in rows if row.get("environment")
    }
    last = list(environments.values())[-1] if environments else {}
    # An attempt that was killed before it could write its end has no known length.
    ended = [row for row in rows if row.get("seconds") is not None]
    usual = summary.get("device_count") or 1
    seconds: float = 0
    for row in ended:
        environment = environments.get(row.get("attempt")) or last
        seconds += row["seconds"] * (environment.get("device_count") or usual)
    if not ended and summary.get("seconds") is not None:
        seconds = summary["seconds"] * usual
    return {
        "device_seconds": seconds or None,
        "device": summary.get("device") or last.get("device"),
    }


def _message(error: Exception, run: RunFiles) -> str:
    text = str(error)
    return text if run.path in text else f"{run.path}: {error!r}"


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
