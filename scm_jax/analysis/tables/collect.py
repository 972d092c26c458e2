"""``scm sweep collect``: the small files of many runs as three Parquet files.

See ``collected`` for what they hold. Only runs whose files have changed are read again;
the rows of the others are copied from the old files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scm_jax.analysis.tables import collected, metric_rows, run_files
from scm_jax.analysis.tables import frames as tables
from scm_jax.analysis.tables.run_files import READ_ERRORS, RunFiles
from scm_jax.files.optional import require

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

# So many rows are held in memory; more wait in files of their own until the columns of
# all are known.
_GROUP_ROWS = 200_000


@dataclasses.dataclass(frozen=True)
class Collected:
    """What ``collect`` did.

    Attributes:
      runs: how many there are.
      read: of these, whose files were read because they were new or had changed.
      errors: run id -> why it is left out.
    """

    runs: int
    read: int
    errors: dict[str, str]

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
      OSError: the disk is full, for example; the files are as they were before.

    Example:
      >>> print(collect("runs/isoflop_digits"))  # doctest: +SKIP
      40 runs, 3 of them new or changed
    """
    root = os.path.normpath(root)
    runs = [run for run in run_files.find_runs(root) if run.path != root]
    if not runs:
        raise FileNotFoundError(f"nothing to collect: no run directories in {root}")
    errors: dict[str, str] = {}
    read: set[str] = set()
    writers = {
        collected.METRICS: _write_metrics,
        collected.RESULTS: _write_results,
        collected.RUNS: _write_runs,
    }
    with contextlib.ExitStack() as cleanup:
        unfinished = {name: _unfinished(root, name) for name in writers}
        for name, write in writers.items():
            cleanup.callback(unfinished[name].unlink, missing_ok=True)
            with _explained(Path(root) / name):
                read |= write(unfinished[name], runs, errors)
                _sync(unfinished[name])
        for name, path in unfinished.items():
            os.replace(path, Path(root) / name)
    return Collected(len(runs), len(read), errors)


def _unfinished(root: str, name: str) -> Path:
    return Path(root) / f".{name}.{os.getpid()}.tmp"


@contextlib.contextmanager
def _explained(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(
            f"cannot collect into {target}, and nothing has changed there: {error}"
        ) from error


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


# --- Runs and results: small, so written anew -----------------------------------------


def _write_runs(
    path: Path, runs: Sequence[RunFiles], errors: dict[str, str]
) -> set[str]:
    """Columns as in ``load_runs``, for other readers, and ``facts`` for this one."""
    kept = collected.read_facts(runs)
    facts = [
        kept[run.path] if run.path in kept else run_files.read_facts(run)
        for run in runs
    ]
    whole = []
    for run, found in zip(runs, facts, strict=True):
        if found["error"]:
            errors[run.id] = found["error"]
        else:
            whole.append((run, found))
    columns = {}
    if whole:
        frame = tables.frame_of([r for r, _ in whole], [f for _, f in whole])
        columns = _plain(frame.drop(columns="protocols"))
    columns["run_id"] = [run.id for run, _ in whole]
    columns["facts"] = [json.dumps(found) for _, found in whole]
    _write_table(path, columns, collected.RUNS, [run for run, _ in whole])
    return {run.id for run, _ in whole if run.path not in kept}


def _write_results(
    path: Path, runs: Sequence[RunFiles], errors: dict[str, str]
) -> set[str]:
    """Metrics and settings, for other readers, and ``row`` for this one."""
    kept = collected.read_results(runs)
    rows: list[tuple[str, dict[str, Any]]] = []
    whole = []
    for run in runs:
        try:
            own = kept[run.path] if run.path in kept else run_files.result_rows(run)
        except READ_ERRORS as error:
            errors[run.id] = str(error)
            continue
        whole.append(run)
        rows += [(run.id, row) for row in own]
    shown = [{k: row[k] for k in row.keys() - {"protocol"}} for _, row in rows]
    columns = _plain(tables.results_frame(shown)) if rows else {}
    columns["run_id"] = [run_id for run_id, _ in rows]
    columns["row"] = [json.dumps(row) for _, row in rows]
    _write_table(path, columns, collected.RESULTS, whole)
    return {
        r.id for r in whole if r.path not in kept and run_files.RESULTS_FILE in r.files
    }


def _plain(frame: pd.DataFrame) -> dict[str, Any]:
    """Columns that Parquet has types for: objects such as tuples become JSON."""
    return {
        name: [_json(value) for value in column]
        if column.dtype == object
        else column.to_numpy()
        if column.dtype.kind in "ifb"
        else [None if tables.is_missing(value) else value for value in column]
        for name, column in frame.items()
    }


def _json(value: Any) -> str | None:
    return None if tables.is_missing(value) else json.dumps(value)


def _write_table(
    path: Path, columns: Mapping[str, Any], name: str, runs: Sequence[RunFiles]
) -> None:
    pa = require("pyarrow", "scm sweep collect", "scm_jax[analysis]")
    parquet = require("pyarrow.parquet", "scm sweep collect", "scm_jax[analysis]")
    arrays = {
        key: pa.array(values, pa.string()) if _is_text(values) else pa.array(values)
        for key, values in columns.items()
    }
    table = pa.table(arrays)
    parquet.write_table(
        table.replace_schema_metadata(collected.metadata(name, runs)), path
    )


def _is_text(values: Any) -> bool:
    return isinstance(values, list)


# --- Metrics: large, so streamed ------------------------------------------------------


def _write_metrics(
    path: Path, runs: Sequence[RunFiles], errors: dict[str, str]
) -> set[str]:
    pa = require("pyarrow", "scm sweep collect", "scm_jax[analysis]")
    kept, columns, old = collected.metric_groups(runs)
    read = [run for run in runs if run.path not in kept]
    with contextlib.ExitStack() as cleanup:
        waiting = []
        for number, batch in enumerate(_batches(read, errors, columns)):
            waiting.append(path.with_name(f"{path.name}.{number}"))
            cleanup.callback(waiting[-1].unlink, missing_ok=True)
            _write_group(waiting[-1], batch)
        whole = [run for run in runs if run.id in columns]
        names = sorted(set(itertools.chain.from_iterable(columns.values())))
        schema = pa.schema(
            [("run_id", pa.string()), *((name, _type(name)) for name in names)],
            metadata=collected.metadata(collected.METRICS, whole, columns),
        )
        groups = itertools.chain(old, (_read_group(file) for file in waiting))
        _write_groups(path, schema, groups)
    return {run.id for run in read if run_files.METRICS_FILE in run.files} - set(errors)


def _batches(
    runs: Sequence[RunFiles], errors: dict[str, str], columns: dict[str, list[str]]
) -> Iterator[pa.Table]:
    """Metrics of some runs in tables of a good size; notes each run's columns."""
    import pyarrow as pa

    tables: list[pa.Table] = []
    for run in runs:
        try:
            table = metric_rows.read_table(run)
        except READ_ERRORS as error:
            errors[run.id] = str(error)
            continue
        columns[run.id] = table.column_names
        ids = pa.repeat(pa.scalar(run.id), len(table))
        tables.append(table.append_column("run_id", ids))
        if sum(map(len, tables)) >= _GROUP_ROWS:
            yield pa.concat_tables(tables, promote_options="default")
            tables = []
    if tables:
        yield pa.concat_tables(tables, promote_options="default")


def _type(name: str) -> pa.DataType:
    import pyarrow as pa

    if name.endswith("[]"):
        return pa.list_(pa.float64())
    return {"step": pa.int64(), "nonfinite": pa.string()}.get(name, pa.float64())


def _write_groups(path: Path, schema: pa.Schema, groups: Iterable[pa.Table]) -> None:
    """Writes tables one after the other; columns that one lacks are null there."""
    import pyarrow as pa
    import pyarrow.parquet

    texts = ["run_id", "nonfinite"]
    with pyarrow.parquet.ParquetWriter(path, schema, use_dictionary=texts) as writer:
        for group in groups:
            columns = [
                group[field.name].cast(field.type)
                if field.name in group.column_names
                else pa.nulls(len(group), field.type)
                for field in schema
            ]
            writer.write_table(pa.table(columns, schema=schema))


def _write_group(path: Path, table: pa.Table) -> None:
    import pyarrow.parquet

    pyarrow.parquet.write_table(table, path)


def _read_group(path: Path) -> pa.Table:
    import pyarrow.parquet

    return pyarrow.parquet.read_table(path)
