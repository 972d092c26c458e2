"""Any number of runs as tables: one row a run, one a logged step, one a measurement."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from scm_jax.analysis.tables import collected, metric_rows, run_files
from scm_jax.analysis.tables.run_files import Roots, RunFiles
from scm_jax.files.optional import require
from scm_jax.runs.directory.run_configs import is_neutral

if TYPE_CHECKING:
    import pandas as pd

_ABSENT = object()

# Columns that are texts also where no run has one.
_TEXTS = {"state", "sweep", "name", "objective", "device", "commit", "teacher_id"}
_TEXTS |= {"error", "path", "duplicate_of", "run_id", "ema"}


def load_runs(roots: Roots) -> pd.DataFrame:
    """One row per run, done or not.

    A run that cannot be read is a row too, with state ``unreadable`` and the error.
    What ``scm sweep collect`` has compacted is read from there where the run's files
    have not changed since; the table is the same either way.

    Args:
      roots: a directory of runs, a run directory, a glob of either, or several.

    Returns:
      A frame with index ``run_id`` (the directory's name) and the columns:

      - ``state``, ``sweep``, ``tags``, ``name``, ``seed``;
      - ``objective``: ``sct``, ``scd``, ``diffusion``, or the config's word;
      - every config key that varies, dotted; lists are tuples;
      - ``parameters``, ``images`` and ``flops`` (2 x multiply-adds of loss and
        gradient) of the whole training, also where it is not done yet;
        ``flops_per_image``;
      - ``device``, ``device_hours`` (over all attempts that ended; where nobody
        recorded attempts, of the last one), ``commit`` (``+dirty`` if changed),
        ``teacher_id``;
      - ``error``, ``path``, and ``duplicate_of``: id of the first run with the same
        config but for keys that cannot change the result;
      - ``STEPS_steps/METRIC``: the newest results of the run's default guidance,
        intermediate times and EMA; ``protocols`` says by column how they were measured.

      ``attrs["constant"]`` are the config keys that do not vary, ``attrs["metrics"]``
      the columns that the sweeps want to be shown.

    Raises:
      FileNotFoundError: a root does not exist, or there are no runs.

    Example:
      >>> runs = scm_jax.load_runs("runs/isoflop_digits")  # doctest: +SKIP
      >>> runs[["state", "network.width", "flops", "2_steps/frechet_distance"]]
      ... # doctest: +SKIP
    """
    runs = _find(roots)
    kept = collected.read_facts(runs)
    return frame_of(
        runs, [kept.get(run.path) or run_files.read_facts(run) for run in runs]
    )


def frame_of(
    runs: Sequence[RunFiles], facts: Sequence[Mapping[str, Any]]
) -> pd.DataFrame:
    """The frame of ``load_runs``, from the ``run_files.read_facts`` of each run."""
    pandas = require("pandas", "a table of runs", "scm_jax[analysis]")
    now, ids = time.time(), [run.id for run in runs]
    pairs = zip(runs, facts, strict=True)
    states = [run_files.read_state(run, found, now) for run, found in pairs]
    configs = [found["config"] for found in facts]
    varying, constant = _split_configs(configs)
    columns: dict[str, Any] = {"state": [state for state, _ in states]}
    columns |= _columns([_description(found) for found in facts])
    for key, values in varying.items():
        if key not in ("name", "seed"):
            columns[key] = [_cell(value) for value in values]
    columns |= _columns([_cost(found) for found in facts])
    columns["error"] = [error for _, error in states]
    columns["path"] = [run.path for run in runs]
    columns["duplicate_of"] = _duplicates(ids, configs)
    for name in dict.fromkeys(name for found in facts for name in found["results"]):
        columns[name] = [found["results"].get(name, math.nan) for found in facts]
    columns["protocols"] = [
        {name: found["protocols"][i] for name, i in found["measured_by"].items()}
        for found in facts
    ]
    frame = pandas.DataFrame(
        {name: _series(values, name) for name, values in columns.items()}
    )
    frame.index = pandas.Index(ids, name="run_id")
    frame.attrs["constant"] = {key: _cell(value) for key, value in constant.items()}
    asked = (name for found in facts for name in found["plan"].get("metrics") or ())
    frame.attrs["metrics"] = tuple(dict.fromkeys(asked))
    return frame


def load_metrics(
    roots: Roots,
    names: Sequence[str] | None = None,
    runs: Sequence[str] | None = None,
) -> pd.DataFrame:
    """One row per logged step of every run.

    Rows that a resumed run went back behind are dropped, and of two values for one step
    the later one counts (as in ``Run.metrics``). Texts are left out.

    Args:
      roots: as in ``load_runs``.
      names: metrics to read; default is all. Steps that have none of them are left out.
      runs: run ids to read; default is all.

    Returns:
      ``run_id`` (a category), ``step``, ``images``, ``wall_time`` (seconds since 1970),
      ``nonfinite`` (names of the values that were NaN or infinite, joined by spaces)
      and the metrics: numbers are float64 and NaN where they were not logged, lists are
      float64 arrays. ``attrs["errors"]`` has, by run id, why a run is missing.

    Raises:
      FileNotFoundError: as in ``load_runs``.
      ValueError: no run has logged one of ``names``, or has one of the ids.

    Example:
      >>> curves = load_metrics("runs/isoflop_digits", ["loss"])  # doctest: +SKIP
    """
    require("pandas", "a table of metrics", "scm_jax[analysis]")
    found = _find(roots)
    if runs is not None:
        known = {run.id: run for run in found}
        if unknown := sorted(set(runs) - known.keys()):
            raise ValueError(f"no runs {unknown} in {roots}: there are {sorted(known)}")
        found = [known[run_id] for run_id in dict.fromkeys(runs)]
    return metric_rows.frame(found, None if names is None else list(names))


def load_results(roots: Roots) -> pd.DataFrame:
    """One row per measurement of every run, in the order of measuring.

    Returns:
      ``run_id``, then what ``results.jsonl`` says: ``steps``, ``times`` (a tuple; None
      for the default), ``guidance``, ``ema``, ``nfe``, the metrics and so on. The
      last of several measurements of the same counts. ``attrs["errors"]`` has, by run
      id, why a run is missing.

    Raises:
      FileNotFoundError: as in ``load_runs``.
    """
    found, errors, _ = collected.read_results(_find(roots))
    run_files.warn_of(errors)
    frame = results_frame(
        [{"run_id": run, **row} for run, rows in found.items() for row in _newest(rows)]
    )
    frame.attrs["errors"] = errors
    return frame


def results_frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows of ``results.jsonl`` with their ``run_id`` as a table."""
    pandas = require("pandas", "a table of results", "scm_jax[analysis]")
    names = dict.fromkeys(("run_id", "steps", "times", "guidance", "ema"))
    names |= dict.fromkeys(name for row in rows for name in row if name != "nonfinite")
    columns = {
        name: _series([_cell(row.get(name)) for row in rows], name) for name in names
    }
    return pandas.DataFrame(columns)


def _find(roots: Roots) -> list[RunFiles]:
    """The runs in some places; those of a folder of collected files alone, too."""
    runs = run_files.find_runs(roots)
    found = {run.root for run in runs}
    for place in run_files.expand(roots):
        if place not in found:
            runs += collected.runs_without_directories(place)
    if not runs:
        raise FileNotFoundError(
            f"no runs at {roots}: a run is a directory with a config.json, directly"
            " below one that is named (a glob such as 'runs/*' names several)"
        )
    return runs


def _split_configs(
    configs: Sequence[Mapping[str, Any]],
) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    """Keys that vary, with a value per config, and those that do not."""
    known = [config for config in configs if config]  # others cannot be read
    varying, constant = {}, {}
    for key in dict.fromkeys(key for config in known for key in config):
        first = known[0].get(key, _ABSENT)
        if all(config.get(key, _ABSENT) == first for config in known):
            constant[key] = first
        else:
            varying[key] = [config.get(key) for config in configs]
    return varying, constant


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in rows[0]}


def _description(facts: Mapping[str, Any]) -> dict[str, Any]:
    plan, config = facts["plan"], facts["config"]
    objective = config.get("objective.name")
    if objective == "consistency":
        kinds = {"data": "sct", "teacher": "scd"}
        objective = kinds.get(str(config.get("objective.dx_dt")), objective)
    return {
        "sweep": plan.get("sweep") or "",
        "tags": tuple(plan.get("tags") or ()),
        "name": plan.get("label") or config.get("name") or "",
        "seed": config.get("seed"),
        "objective": objective,
    }


def _cost(facts: Mapping[str, Any]) -> dict[str, Any]:
    summary, plan = facts["summary"], facts["plan"]
    images = (
        summary.get("images")
        or plan.get("images")
        or facts["config"].get("train.duration_images")
    )
    macs = summary.get("total_train_macs")
    flops = 2 * macs if macs else plan.get("train_flops") or None
    per_image = 2 * (summary.get("train_macs_per_image") or 0)
    if not per_image and flops and images:
        per_image = flops / images
    seconds, commit = facts["device_seconds"], summary.get("commit")
    return {
        "parameters": summary.get("parameters") or plan.get("parameters") or None,
        "images": images,
        "flops": None if flops is None else float(flops),
        "flops_per_image": float(per_image) if per_image else None,
        "device": facts["device"],
        "device_hours": None if seconds is None else seconds / 3600,
        "commit": commit and f"{commit}{'+dirty' if summary.get('dirty') else ''}",
        "teacher_id": plan.get("teacher_id"),
    }


def _duplicates(
    ids: Sequence[str], configs: Sequence[Mapping[str, Any]]
) -> list[str | None]:
    """For each run, the first one with the same ``config_hash``."""
    keys = dict.fromkeys(key for config in configs for key in config)
    telling = [key for key in keys if not is_neutral(key)]
    first: dict[str, str] = {}
    found = []
    for run_id, config in zip(ids, configs, strict=True):
        # Texts, as hashing takes 10 times as long, and 1 and 1.0 are two in a hash.
        text = repr([config.get(key, _ABSENT) for key in telling])
        owner = first.setdefault(text, run_id) if config else run_id
        found.append(None if owner == run_id else owner)
    return found


def _newest(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows in order; of those with the same key the last."""
    found: dict[Any, dict[str, Any]] = {}
    for number, row in enumerate(rows):
        lost = dict.fromkeys(row.get("nonfinite") or (), math.nan)
        key = row.get("key", number)
        found.pop(key, None)
        found[key] = {**row, **{name: nan for name, nan in lost.items() if name in row}}
    return list(found.values())


def _cell(value: Any) -> Any:
    """A value as a table can group by it: lists become tuples."""
    return tuple(map(_cell, value)) if isinstance(value, list) else value


def _series(values: list[Any], name: str) -> Any:
    """A column whose type depends on its values alone.

    Only numbers and gaps: int64, or float64 with gaps or fractions; only texts and
    gaps: pandas' text; all else, also bools and tuples, are objects.
    """
    import pandas

    kinds = {type(value) for value in values if value is not None}
    whole = None not in values
    if kinds <= {int, float} and (kinds or name not in _TEXTS):
        small = kinds == {int} and whole and all(abs(v) < 2**63 for v in values)
        return pandas.Series(values, dtype="int64" if small else "float64")
    if kinds <= {str}:
        return pandas.Series(values, dtype="str")
    return pandas.Series(
        values, dtype="bool" if kinds == {bool} and whole else "object"
    )


def is_missing(value: Any) -> bool:
    """Whether a cell of a table is a gap."""
    return value is None or (isinstance(value, float) and math.isnan(value))
