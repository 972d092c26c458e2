"""The logged steps of runs as columns of one frame."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from scm_jax.analysis.tables import collected, run_files
from scm_jax.analysis.tables.run_files import RunFiles
from scm_jax.files.jsonl import merge_steps, read_rows
from scm_jax.files.optional import require

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

_RESERVED = (*run_files.ROW_COLUMNS, "resume_step", "run_id", "run")


def read_tables(
    runs: Sequence[RunFiles], wanted: set[str] | None
) -> tuple[pa.Table, dict[str, list[str]], dict[str, str], set[str]]:
    """The rows of many runs, collected or not, in one table.

    Returns:
      The table, as of ``collected.read_metrics``, by run; by run id, the names of all
      its columns; by run id, why it is missing; the ids of those whose files were read.
    """
    pa = require("pyarrow", "a table of metrics", "scm_jax[analysis]")
    tables, columns = collected.read_metrics(runs, wanted)
    errors, read = {}, set()
    for code, run in enumerate(runs):
        if run.id in columns:
            continue
        try:
            table = read_table(run)
        except run_files.READ_ERRORS as error:
            errors[run.id] = str(error)
            continue
        columns[run.id] = table.column_names
        if run_files.METRICS_FILE in run.files:
            read.add(run.id)
        if wanted is not None:
            named = {*run_files.ROW_COLUMNS, *wanted}
            table = table.select([n for n in table.column_names if n in named])
        tables.append(_with_run(table, code))
    tables = tables or [_with_run(_as_table([]), 0)]
    whole = pa.concat_tables(tables, promote_options="default")
    if (np.diff(whole["run"].to_numpy()) < 0).any():
        whole = whole.sort_by("run")  # stable: steps of a run stay in order
    return whole, columns, errors, read


def read_table(run: RunFiles) -> pa.Table:
    """The metrics of a run, a row per logged step.

    ``step`` is int64, ``nonfinite`` text, numbers are float64 with null for what was
    not logged or not finite. Lists are flat, in a column ``NAME[]``. Whatever else is
    no number is left out.

    Raises:
      ValueError: a line in the middle of the file is not JSON.
    """
    if run_files.METRICS_FILE not in run.files:
        return _as_table([])
    rows = read_rows(os.path.join(run.path, run_files.METRICS_FILE))
    return _as_table(merge_steps([row for row in rows if _is_row(row)]))


def frame(runs: Sequence[RunFiles], names: list[str] | None) -> pd.DataFrame:
    """The frame of ``load_metrics``."""
    pandas = require("pandas", "a table of metrics", "scm_jax[analysis]")
    wanted = None if names is None else {*names, *(f"{name}[]" for name in names)}
    table, columns, errors, _ = read_tables(runs, wanted)
    run_files.warn_of(errors)
    known = {name.removesuffix("[]") for own in columns.values() for name in own}
    legal = sorted(known - set(_RESERVED))
    if unknown := sorted(set(names or ()) - set(legal)):
        raise ValueError(f"no run has logged {unknown}; there are {legal}")
    found = table.to_pandas(split_blocks=True, self_destruct=True)
    codes = found.pop("run").to_numpy()
    ids = pandas.Categorical.from_codes(codes, [run.id for run in runs])
    found.insert(0, "run_id", ids)
    found = _one_column_a_name(found, names)
    if names is not None:
        found = found[_has_any(found, names)].reset_index(drop=True)
    found.attrs["errors"] = errors
    return found


def _one_column_a_name(found: pd.DataFrame, names: list[str] | None) -> pd.DataFrame:
    """``NAME`` and ``NAME[]`` as one column; missing lists are NaN, as numbers are."""
    for column in [name for name in found.columns if name.endswith("[]")]:
        name = column.removesuffix("[]")
        lists = found.pop(column)
        other = found[name].astype(object) if name in found else np.nan
        found[name] = lists.where(lists.notna(), other)
    if names is None:
        names = sorted(set(found.columns) - {"run_id", *run_files.ROW_COLUMNS})
    return found[["run_id", *run_files.ROW_COLUMNS, *dict.fromkeys(names)]]


def _has_any(found: pd.DataFrame, names: list[str]) -> np.ndarray:
    """Steps with one of some metrics, finite or not."""
    logged = found[names].notna().any(axis=1).to_numpy(copy=True)
    lost = np.flatnonzero((found["nonfinite"] != "").to_numpy() & ~logged)
    for row in lost:
        logged[row] = not set(names).isdisjoint(found["nonfinite"].iat[row].split(" "))
    return logged


def _with_run(table: pa.Table, code: int) -> pa.Table:
    import pyarrow as pa

    return table.append_column(
        "run", pa.repeat(pa.scalar(code, pa.int32()), len(table))
    )


def _as_table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    pa = require("pyarrow", "a table of metrics", "scm_jax[analysis]")
    rows = [row for row in rows if any(_is_metric(*item, row) for item in row.items())]

    def numbers(name: str) -> Any:
        values = [row.get(name) for row in rows]
        found = [float(v) if isinstance(v, int | float) else None for v in values]
        return pa.array(found, pa.float64(), from_pandas=True)

    columns = {
        "step": pa.array([int(row["step"]) for row in rows], pa.int64()),
        "images": numbers("images"),
        "wall_time": numbers("wall_time"),
        "nonfinite": pa.array([" ".join(_lost(row)) for row in rows], pa.string()),
    }
    for name in dict.fromkeys(name for row in rows for name in row):
        if name in _RESERVED:
            continue
        lists = [_array(row.get(name)) for row in rows]
        if any(found is not None for found in lists):
            columns[f"{name}[]"] = pa.array(lists, pa.list_(pa.float64()))
        logged = numbers(name)
        lost = any(row.get(name) is None and name in _lost(row) for row in rows)
        if logged.null_count < len(logged) or lost:
            columns[name] = logged
    return pa.table(columns)


def _is_row(row: Any) -> bool:
    return isinstance(row, dict) and any(
        isinstance(row.get(name), int | float) for name in ("step", "resume_step")
    )


def _is_metric(name: str, value: Any, row: Mapping[str, Any]) -> bool:
    if name in _RESERVED:
        return False
    if value is None:
        return name in _lost(row)
    return isinstance(value, int | float) or _array(value) is not None


def _lost(row: Mapping[str, Any]) -> list[str]:
    """Names of the values that were not finite, each once."""
    return [str(name) for name in dict.fromkeys(row.get("nonfinite") or ())]


def _array(value: Any) -> np.ndarray | None:
    """A list of numbers and nulls, flat; None for anything else."""
    if not isinstance(value, list):
        return None
    try:
        return np.ravel(np.array(value, np.float64))
    except (TypeError, ValueError):
        return None
