"""The logged steps of runs as columns of one frame."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from scm_jax.analysis.tables import collected
from scm_jax.analysis.tables.run_files import (
    METRICS_FILE,
    READ_ERRORS,
    ROW_COLUMNS,
    RunFiles,
    warn_of,
)
from scm_jax.files.jsonl import merge_steps, read_rows
from scm_jax.files.optional import require

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

_RESERVED = (*ROW_COLUMNS, "resume_step", "run_id", "run")


def read_table(run: RunFiles) -> pa.Table:
    """The metrics of a run, a row per logged step.

    ``step`` is int64, ``nonfinite`` text, numbers are float64 with null for what was
    not logged or not finite. A metric that is a list at some step has these in a column
    ``NAME[]``, flat. Texts and whatever else is no number are left out.

    Raises:
      ValueError: a line in the middle of the file is not JSON.
    """
    if METRICS_FILE not in run.files:
        return as_table([])
    rows = read_rows(os.path.join(run.path, METRICS_FILE))
    return as_table(merge_steps([row for row in rows if _is_row(row)]))


def as_table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Rows as ``read_table`` gives them."""
    pa = require("pyarrow", "a table of metrics", "scm_jax[analysis]")
    rows = [row for row in rows if any(_is_metric(*item, row) for item in row.items())]
    columns = {
        "step": pa.array([int(row["step"]) for row in rows], pa.int64()),
        "images": _numbers(rows, "images"),
        "wall_time": _numbers(rows, "wall_time"),
        "nonfinite": pa.array([" ".join(_lost(row)) for row in rows], pa.string()),
    }
    for name in dict.fromkeys(name for row in rows for name in row):
        if name in _RESERVED:
            continue
        lists = _lists(rows, name)
        if lists.null_count < len(lists):
            columns[f"{name}[]"] = lists
        logged = _numbers(rows, name)
        lost = any(row.get(name) is None and name in _lost(row) for row in rows)
        if logged.null_count < len(logged) or lost:
            columns[name] = logged
    return pa.table(columns)


def frame(runs: Sequence[RunFiles], names: list[str] | None) -> pd.DataFrame:
    """The frame of ``load_metrics``.

    Raises:
      ValueError: no run has logged one of ``names``.
    """
    pa = require("pyarrow", "a table of metrics", "scm_jax[analysis]")
    pandas = require("pandas", "a table of metrics", "scm_jax[analysis]")
    wanted = None if names is None else {*names, *(f"{name}[]" for name in names)}
    tables, kept, known = collected.read_metrics(runs, wanted)
    errors = {}
    for code, run in enumerate(runs):
        if run.path in kept:
            continue
        try:
            table = read_table(run)
        except READ_ERRORS as error:
            errors[run.id] = str(error)
            continue
        known |= set(table.column_names)
        tables.append(collected.with_code(_select(table, wanted), code))
    warn_of(errors)
    _check_names(names, known)
    tables = tables or [collected.with_code(as_table([]), 0)]
    whole = pa.concat_tables(tables, promote_options="default")
    found = collected.in_order(whole).to_pandas(split_blocks=True, self_destruct=True)
    codes = found.pop("run").to_numpy()
    ids = pandas.Categorical.from_codes(codes, [run.id for run in runs])
    found.insert(0, "run_id", ids)
    found = _one_column_a_name(found, names)
    if names is not None:
        found = found[_has_any(found, names)].reset_index(drop=True)
    found.attrs["errors"] = errors
    return found


def _select(table: pa.Table, wanted: set[str] | None) -> pa.Table:
    if wanted is None:
        return table
    return table.select([n for n in table.column_names if n in {*ROW_COLUMNS, *wanted}])


def _check_names(names: list[str] | None, known: set[str]) -> None:
    legal = sorted({name.removesuffix("[]") for name in known} - set(_RESERVED))
    if unknown := sorted(set(names or ()) - set(legal)):
        raise ValueError(f"no run has logged {unknown}; there are {legal}")


def _one_column_a_name(found: pd.DataFrame, names: list[str] | None) -> pd.DataFrame:
    """``NAME`` and ``NAME[]`` as one column; missing lists are NaN, as numbers are."""
    for column in [name for name in found.columns if name.endswith("[]")]:
        name = column.removesuffix("[]")
        lists = found.pop(column)
        other = found[name].astype(object) if name in found else np.nan
        found[name] = lists.where(lists.notna(), other)
    if names is None:
        metrics = sorted(set(found.columns) - {"run_id", *ROW_COLUMNS})
    else:
        metrics = list(dict.fromkeys(names))
    return found[["run_id", *ROW_COLUMNS, *metrics]]


def _has_any(found: pd.DataFrame, names: list[str]) -> np.ndarray:
    """Steps with one of some metrics, finite or not."""
    logged = found[names].notna().any(axis=1).to_numpy(copy=True)
    lost = np.flatnonzero((found["nonfinite"] != "").to_numpy() & ~logged)
    for row in lost:
        logged[row] = not set(names).isdisjoint(found["nonfinite"].iat[row].split(" "))
    return logged


def _is_row(row: Any) -> bool:
    return isinstance(row, dict) and (
        _is_number(row.get("step")) or _is_number(row.get("resume_step"))
    )


def _is_metric(name: str, value: Any, row: Mapping[str, Any]) -> bool:
    if name in _RESERVED:
        return False
    if value is None:
        return name in _lost(row)
    return _is_number(value) or (isinstance(value, list) and _array(value) is not None)


def _lost(row: Mapping[str, Any]) -> list[str]:
    """Names of the values that were not finite, each once."""
    return [str(name) for name in dict.fromkeys(row.get("nonfinite") or ())]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _numbers(rows: Sequence[Mapping[str, Any]], name: str) -> pa.Array:
    import pyarrow as pa

    values = [row.get(name) for row in rows]
    numbers = [float(v) if isinstance(v, int | float) else None for v in values]
    return pa.array(numbers, pa.float64(), from_pandas=True)


def _lists(rows: Sequence[Mapping[str, Any]], name: str) -> pa.Array:
    import pyarrow as pa

    values = [_array(row.get(name)) for row in rows]
    return pa.array(values, pa.list_(pa.float64()))


def _array(value: Any) -> np.ndarray | None:
    """A list of numbers and nulls, flat; None for anything else."""
    if not isinstance(value, list):
        return None
    try:
        return np.ravel(np.array(value, np.float64))
    except (TypeError, ValueError):
        return None
