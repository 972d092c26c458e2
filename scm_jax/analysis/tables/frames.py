"""Any number of runs as tables: one row a run, one a logged step, one a measurement.

Example:
  >>> import scm_jax
  >>> runs = scm_jax.load_runs("runs/isoflop_digits")  # doctest: +SKIP
  >>> runs[["state", "network.width", "flops", "2_steps/frechet_distance"]]
  ... # doctest: +SKIP
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from scm_jax.analysis.tables import collected, metric_rows, run_files
from scm_jax.analysis.tables.run_files import Roots, RunFiles
from scm_jax.files.optional import require
from scm_jax.runs.directory.run_configs import is_neutral

if TYPE_CHECKING:
    import pandas as pd

# Config keys that have a column under another name.
_NAMED = {"name": "name", "seed": "seed"}

_LOST = float("nan")
_ABSENT = object()


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
        intermediate times and average; ``protocols`` says by column how they were
        measured.

      ``attrs["constant"]`` are the config keys that do not vary, ``attrs["metrics"]``
      the columns that the sweeps want to be shown.

    Raises:
      FileNotFoundError: a root does not exist, or there are no runs.

    Example:
      >>> runs = load_runs("runs/*")  # doctest: +SKIP
      >>> runs.groupby("state").size()  # doctest: +SKIP
    """
    runs = find(roots)
    kept = collected.read_facts(runs)
    return frame_of(
        runs,
        [kept.get(run.path) or run_files.read_facts(run) for run in runs],
    )


def frame_of(
    runs: Sequence[RunFiles], facts: Sequence[Mapping[str, Any]]
) -> pd.DataFrame:
    """The frame of ``load_runs``.

    Args:
      runs: where the runs are.
      facts: of each, see ``run_files.read_facts``.
    """
    pandas = require("pandas", "a table of runs", "scm_jax[analysis]")
    now = run_files.now()
    states = [
        run_files.read_state(run, found, now)
        for run, found in zip(runs, facts, strict=True)
    ]
    configs = [found["config"] for found in facts]
    varying, constant = split_configs(configs)
    columns: dict[str, Any] = {
        "state": [state for state, _ in states],
        **_descriptions(facts),
    }
    for key, values in varying.items():
        if key not in _NAMED:
            columns[key] = [_cell(value) for value in values]
    columns |= _accounts(facts)
    columns["error"] = [error for _, error in states]
    columns["path"] = [run.path for run in runs]
    columns["duplicate_of"] = _duplicates([run.id for run in runs], configs, varying)
    columns |= _results(facts)
    columns["protocols"] = [_protocols(found) for found in facts]
    frame = pandas.DataFrame(
        {name: _series(values, name) for name, values in columns.items()}
    )
    frame.index = pandas.Index([run.id for run in runs], name="run_id")
    frame.attrs["constant"] = {key: _cell(value) for key, value in constant.items()}
    asked = (name for f in facts for name in _plan(f).get("metrics") or ())
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
    found = find(roots)
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
      for the default), ``guidance``, ``ema``, ``nfe``, the metrics and so on. Of the
      same measurement made twice the last counts. ``attrs["errors"]`` has, by run id,
      why a run is missing.

    Raises:
      FileNotFoundError: as in ``load_runs``.
    """
    errors: dict[str, str] = {}
    rows: list[dict[str, Any]] = []
    found = find(roots)
    kept = collected.read_results(found)
    for run in found:
        try:
            own = kept[run.path] if run.path in kept else run_files.result_rows(run)
        except run_files.READ_ERRORS as error:
            errors[run.id] = str(error)
            continue
        rows += [{"run_id": run.id, **row} for row in _newest(own)]
    run_files.warn_of(errors)
    frame = results_frame(rows)
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


def find(roots: Roots) -> list[RunFiles]:
    """The runs in some places; those of a folder of collected files alone, too.

    Raises:
      FileNotFoundError: a root does not exist, or there are no runs.
    """
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


def split_configs(
    configs: Sequence[Mapping[str, Any]],
) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    """Flat configs as the keys that vary (a value per config) and those that do not.

    A config that cannot be read, and so is empty, has no say.

    Example:
      >>> split_configs([{"seed": 0, "width": 8}, {"seed": 1, "width": 8}, {}])[1]
      {'width': 8}
    """
    known = [config for config in configs if config]
    varying, constant = {}, {}
    for key in dict.fromkeys(key for config in known for key in config):
        first = known[0].get(key, _ABSENT)
        if all(config.get(key, _ABSENT) == first for config in known):
            constant[key] = first
        else:
            varying[key] = [config.get(key) for config in configs]
    return varying, constant


# --- Columns --------------------------------------------------------------------------


def _plan(facts: Mapping[str, Any]) -> Mapping[str, Any]:
    return facts.get("plan") or {}


def _descriptions(facts: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    return {
        "sweep": [_plan(f).get("sweep") or "" for f in facts],
        "tags": [tuple(_plan(f).get("tags") or ()) for f in facts],
        "name": [_plan(f).get("label") or f["config"].get("name") or "" for f in facts],
        "seed": [f["config"].get("seed") for f in facts],
        "objective": [_objective(f["config"]) for f in facts],
    }


def _objective(config: Mapping[str, Any]) -> str | None:
    name = config.get("objective.name")
    if name != "consistency":
        return name
    return {"data": "sct", "teacher": "scd"}.get(
        str(config.get("objective.dx_dt")), name
    )


def _accounts(facts: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    rows = [_account(f, f.get("summary") or {}, _plan(f)) for f in facts]
    return {name: [row[name] for row in rows] for name in rows[0]}


def _account(
    facts: Mapping[str, Any], summary: Mapping[str, Any], plan: Mapping[str, Any]
) -> dict[str, Any]:
    images = (
        summary.get("images")
        or plan.get("images")
        or facts["config"].get("train.duration_images")
    )
    macs = summary.get("total_train_macs")
    flops = 2 * macs if macs else plan.get("train_flops") or None
    per_image = summary.get("train_macs_per_image")
    if per_image:
        per_image = 2 * per_image
    elif flops and images:
        per_image = flops / images
    seconds = facts.get("device_seconds")
    commit = summary.get("commit")
    return {
        "parameters": summary.get("parameters") or plan.get("parameters") or None,
        "images": images,
        "flops": None if flops is None else float(flops),
        "flops_per_image": None if per_image is None else float(per_image),
        "device": facts.get("device"),
        "device_hours": None if seconds is None else seconds / 3600,
        "commit": commit and f"{commit}{'+dirty' if summary.get('dirty') else ''}",
        "teacher_id": plan.get("teacher_id"),
    }


def _results(facts: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    names = dict.fromkeys(name for f in facts for name in f["results"])
    return {name: [f["results"].get(name, _LOST) for f in facts] for name in names}


def _protocols(facts: Mapping[str, Any]) -> dict[str, Any]:
    known = facts.get("protocols") or ()
    places = facts.get("measured_by") or {}
    return {column: known[place] for column, place in places.items()}


def _duplicates(
    ids: Sequence[str],
    configs: Sequence[Mapping[str, Any]],
    varying: Mapping[str, Sequence[Any]],
) -> list[str | None]:
    """For each run, the first one with the same ``config_hash``.

    Keys whose values do not vary cannot tell two runs apart, so only the others are
    compared; hashing whole configs would take longer than reading them.
    """
    keys = dict.fromkeys(key for config in configs for key in config)
    mixed = {
        key
        for key in keys
        if key not in varying and not is_neutral(key) and _is_mixed(configs, key)
    }
    telling = [key for key in varying if not is_neutral(key)] + sorted(mixed)
    first: dict[str, str] = {}
    found: list[str | None] = []
    for run_id, config in zip(ids, configs, strict=True):
        if not config:
            found.append(None)
            continue
        text = "\n".join(_text(config, key) for key in telling)
        owner = first.setdefault(text, run_id)
        found.append(None if owner == run_id else owner)
    return found


def _is_mixed(configs: Sequence[Mapping[str, Any]], key: str) -> bool:
    """Whether equal values have several texts: 1 and 1.0 are two in a hash."""
    values = [config[key] for config in configs if config]
    if isinstance(values[0], list):
        return len(set(map(json.dumps, values))) > 1
    return len(set(map(type, values))) > 1


def _text(config: Mapping[str, Any], key: str) -> str:
    value = config.get(key, _ABSENT)
    return "" if value is _ABSENT else json.dumps(value)


def _newest(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows in order; of those with the same key the last."""
    found: dict[Any, dict[str, Any]] = {}
    for number, row in enumerate(rows):
        lost = dict.fromkeys(row.get("nonfinite") or (), _LOST)
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
    if kinds <= {int, float}:
        whole = kinds == {int} and None not in values
        small = whole and all(abs(value) < 2**63 for value in values)
        if name not in _TEXTS or kinds:
            return pandas.Series(values, dtype="int64" if small else "float64")
    if kinds <= {str}:
        return pandas.Series(values, dtype="str")
    if kinds == {bool} and None not in values:
        return pandas.Series(values, dtype="bool")
    return pandas.Series(values, dtype="object")


# Columns that are texts also where no run has one.
_TEXTS = (
    *("state", "sweep", "name", "objective", "device", "commit", "teacher_id"),
    *("error", "path", "duplicate_of", "run_id", "ema"),
)


def is_missing(value: Any) -> bool:
    """Whether a cell of a table is a gap."""
    return value is None or (isinstance(value, float) and math.isnan(value))
