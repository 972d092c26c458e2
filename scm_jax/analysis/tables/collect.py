"""``scm sweep collect``: the small files of many runs as three Parquet files.

See ``collected`` for what they hold. Only runs whose files have changed are read again;
the rows of the others are copied from the old files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scm_jax.analysis.tables import collected, frames, metric_rows, run_files
from scm_jax.analysis.tables.run_files import RunFiles
from scm_jax.files.atomic import replacing
from scm_jax.files.optional import require

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


@dataclasses.dataclass(frozen=True)
class Collected:
    """What ``collect`` did."""

    runs: int  # how many there are
    read: int  # of these, whose files were read because they were new or had changed
    errors: dict[str, str]  # run id -> why it is left out

    def __str__(self) -> str:
        text = f"{self.runs} runs, {self.read} of them new or changed"
        if self.errors:
            text += f"; {len(self.errors)} cannot be read and are left out:"
        lines = [f"  {run}: {error}" for run, error in self.errors.items()]
        return "\n".join([text, *lines])


def collect(root: str | os.PathLike) -> Collected:
    """Compacts the runs directly below ``root`` into ``ROOT/*.parquet``.

    ``load_runs``, ``load_metrics`` and ``load_results`` then read those, as long as the
    runs' own files do not change. It can be called at any time, also while runs are
    training. Every file is replaced whole or not at all.

    Raises:
      FileNotFoundError: there are no run directories.
      OSError: a file cannot be written, as on a full disk; all are as they were before.

    Example:
      >>> print(collect("runs/isoflop_digits"))  # doctest: +SKIP
      40 runs, 3 of them new or changed
    """
    root = os.path.normpath(root)
    runs = [run for run in run_files.find_runs(root) if run.path != root]
    if not runs:
        raise FileNotFoundError(f"nothing to collect: no run directories in {root}")
    parquet = require("pyarrow.parquet", "scm sweep collect", "scm_jax[analysis]")
    makers = {
        collected.METRICS: _metrics_table,
        collected.RESULTS: _results_table,
        collected.RUNS: _runs_table,
    }
    errors: dict[str, str] = {}
    read: set[str] = set()
    target = Path(root)
    try:
        with contextlib.ExitStack() as stack:
            for name, make in makers.items():
                table, new = make(runs, errors)
                read |= new
                target = Path(root) / name
                parquet.write_table(table, stack.enter_context(replacing(target)))
    except OSError as error:
        raise OSError(
            f"cannot collect into {target}, and nothing has changed there: {error}"
        ) from error
    return Collected(len(runs), len(read), errors)


def _runs_table(
    runs: Sequence[RunFiles], errors: dict[str, str]
) -> tuple[pa.Table, set[str]]:
    """Columns as in ``load_runs``, for other readers, and ``facts`` for this one."""
    kept = collected.read_facts(runs)
    facts = {run.id: kept.get(run.path) or run_files.read_facts(run) for run in runs}
    errors |= {name: found["error"] for name, found in facts.items() if found["error"]}
    runs = [run for run in runs if not facts[run.id]["error"]]
    columns = {}
    if runs:
        frame = frames.frame_of(runs, [facts[run.id] for run in runs])
        columns = _plain(frame.drop(columns="protocols"))
    columns["run_id"] = [run.id for run in runs]
    columns["facts"] = [json.dumps(facts[run.id]) for run in runs]
    read = {run.id for run in runs if run.path not in kept}
    return _table(columns, collected.RUNS, runs), read


def _results_table(
    runs: Sequence[RunFiles], errors: dict[str, str]
) -> tuple[pa.Table, set[str]]:
    """Metrics and settings, for other readers, and ``row`` for this one."""
    found, lost, read = collected.read_results(runs)
    errors |= lost
    rows = [(run, row) for run, own in found.items() for row in own]
    shown = [{k: v for k, v in row.items() if k != "protocol"} for _, row in rows]
    columns = _plain(frames.results_frame(shown)) if rows else {}
    columns["run_id"] = [run for run, _ in rows]
    columns["row"] = [json.dumps(row) for _, row in rows]
    whole = [run for run in runs if run.id in found]
    return _table(columns, collected.RESULTS, whole), read


def _metrics_table(
    runs: Sequence[RunFiles], errors: dict[str, str]
) -> tuple[pa.Table, set[str]]:
    """The rows of ``metric_rows``, a column for each name that some run has logged."""
    import pyarrow as pa

    table, columns, lost, read = metric_rows.read_tables(runs, None)
    errors |= lost
    whole = [run for run in runs if run.id in columns]
    ids = pa.array([run.id for run in runs], pa.string()).take(table["run"])
    names = sorted({name for own in columns.values() for name in own})
    table = table.append_column("run_id", ids).select(["run_id", *names])
    known = collected.metadata(collected.METRICS, whole, columns)
    return table.replace_schema_metadata(known), read


def _plain(frame: pd.DataFrame) -> dict[str, Any]:
    """Columns that Parquet has types for: objects such as tuples become JSON."""
    return {
        name: column.to_numpy()
        if column.dtype.kind in "ifb"
        else [
            None
            if frames.is_missing(value)
            else json.dumps(value)
            if column.dtype == object
            else value
            for value in column
        ]
        for name, column in frame.items()
    }


def _table(columns: Mapping[str, Any], name: str, runs: Sequence[RunFiles]) -> pa.Table:
    """Arrays and lists of texts as a table with its metadata."""
    import pyarrow as pa

    arrays = {
        key: pa.array(values, pa.string() if isinstance(values, list) else None)
        for key, values in columns.items()
    }
    return pa.table(arrays).replace_schema_metadata(collected.metadata(name, runs))
