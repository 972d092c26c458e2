"""Reads what ``scm sweep collect`` has compacted, as far as it is still true.

    ROOT/runs.parquet     a row a run; ``facts`` is what its files say, as JSON
    ROOT/metrics.parquet  a row a logged step, see ``metric_rows``
    ROOT/results.parquet  a row a measurement; ``row`` is the line of ``results.jsonl``

By the name of a run's directory, the metadata have size and time of change of the files
that its rows come from. Rows of a run whose files have changed since are not used.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from scm_jax.analysis.tables import run_files
from scm_jax.analysis.tables.run_files import RunFiles
from scm_jax.files.optional import require

if TYPE_CHECKING:
    import pyarrow as pa

RUNS, METRICS, RESULTS = "runs.parquet", "metrics.parquet", "results.parquet"
SOURCES = {
    RUNS: run_files.FACT_FILES,
    METRICS: (run_files.METRICS_FILE,),
    RESULTS: (run_files.RESULTS_FILE,),
}

# Version of the files' format. Files of another format are not used.
FORMAT = "1"
_KEY = b"scm_jax"


def read_facts(runs: Sequence[RunFiles]) -> dict[str, dict[str, Any]]:
    """``run_files.read_facts`` by path of run, as far as it is collected."""
    return {path: facts for path, (facts,) in _read_json(runs, RUNS, "facts").items()}


def read_results(
    runs: Sequence[RunFiles],
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, str], set[str]]:
    """By run id, the rows of ``results.jsonl``, collected or not.

    And, by run id, why a run is missing; and the ids of those whose own file was read.
    """
    kept = _read_json(runs, RESULTS, "row")
    rows, errors, read = {}, {}, set()
    for run in runs:
        try:
            rows[run.id] = (
                kept[run.path] if run.path in kept else run_files.result_rows(run)
            )
        except run_files.READ_ERRORS as error:
            errors[run.id] = str(error)
            continue
        if run.path not in kept and run_files.RESULTS_FILE in run.files:
            read.add(run.id)
    return rows, errors, read


def _read_json(
    runs: Sequence[RunFiles], name: str, column: str
) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for own, file in _by_root(runs, name):
        found |= {run.path: [] for run in own.values()}
        table = file.read(columns=["run_id", column])
        texts = table[column].to_pylist()
        for directory, text in zip(table["run_id"].to_pylist(), texts, strict=True):
            if directory in own:
                found[own[directory].path].append(json.loads(text))
    return found


def read_metrics(
    runs: Sequence[RunFiles], wanted: set[str] | None
) -> tuple[list[pa.Table], dict[str, list[str]]]:
    """``metric_rows.read_table`` of those runs that are collected.

    Returns tables with a further column ``run``, the index into ``runs``, and the
    names of all columns that a run has, by its id. ``wanted`` are columns to read
    beside those of every row; None for all.
    """
    tables: list[pa.Table] = []
    columns: dict[str, list[str]] = {}
    codes = {run.path: code for code, run in enumerate(runs)}
    for own, file in _by_root(runs, METRICS):
        has = _metadata(file)["columns"]
        names = {name for directory in own for name in has[directory]}
        if wanted is not None:
            names &= {*run_files.ROW_COLUMNS, *wanted}
        table = file.read(columns=["run_id", *names])
        own_codes = {directory: codes[run.path] for directory, run in own.items()}
        tables.append(_only(table, own_codes))
        columns |= {run.id: has[directory] for directory, run in own.items()}
    return tables, columns


def runs_without_directories(root: str) -> list[RunFiles]:
    """The runs of a folder that holds collected files and no run directories."""
    files: dict[str, dict[str, tuple[int, int]]] = {}
    collected: list[str] = []
    for name in SOURCES:
        opened = _open(os.path.join(root, name))
        signatures = _metadata(opened)["signatures"] if opened else {}
        for run, text in signatures.items():
            files.setdefault(run, {}).update(_parse(text))
        collected = sorted(signatures) if name == RUNS else collected
    return [RunFiles(n, os.path.join(root, n), files[n], root) for n in collected]


def metadata(
    name: str, runs: Sequence[RunFiles], columns: dict[str, list[str]] | None = None
) -> dict[bytes, bytes]:
    """The metadata of a file; ``columns`` are those of each run's metrics, by id."""
    signatures = {run.id: run.signature(SOURCES[name]) for run in runs}
    found = {"format": FORMAT, "signatures": signatures, "columns": columns or {}}
    return {_KEY: json.dumps(found).encode()}


def _metadata(file: Any) -> dict[str, Any]:
    found = json.loads((file.schema_arrow.metadata or {}).get(_KEY, b"{}"))
    known = found.get("format") == FORMAT
    return found if known else {"signatures": {}, "columns": {}}


def _by_root(
    runs: Sequence[RunFiles], name: str
) -> Iterator[tuple[dict[str, RunFiles], Any]]:
    """For each root with a collected file: directory -> run whose rows hold; file."""
    roots: dict[str, list[RunFiles]] = {}
    for run in runs:
        roots.setdefault(os.path.dirname(run.path), []).append(run)
    for root, below in roots.items():
        if (file := _open(os.path.join(root, name))) is None:
            continue
        kept = _metadata(file)["signatures"]
        named = {os.path.basename(run.path): run for run in below}
        own = {
            directory: run
            for directory, run in named.items()
            if kept.get(directory) == run.signature(SOURCES[name])
        }
        if own:
            yield own, file


def _open(path: str) -> Any:
    """A Parquet file; None where there is none that can be read."""
    if not os.path.isfile(path):
        return None
    parquet = require("pyarrow.parquet", f"reading {path}", "scm_jax[analysis]")
    try:
        return parquet.ParquetFile(path, read_dictionary=["run_id"])
    except (OSError, ValueError, KeyError) as error:
        warnings.warn(
            f"{path} cannot be read and is not used ({error}): collect it again",
            stacklevel=4,
        )
        return None


def _only(table: pa.Table, codes: dict[str, int]) -> pa.Table:
    """The rows of some runs, with the runs' numbers in place of their names."""
    import numpy as np
    import pyarrow as pa

    names = table["run_id"].unify_dictionaries().to_pandas()
    run = names.map(lambda name: codes.get(name, -1)).to_numpy(np.int32)
    table = table.drop_columns(["run_id"]).append_column("run", pa.array(run))
    return table if (run >= 0).all() else table.filter(pa.array(run >= 0))


def _parse(signature: str) -> dict[str, tuple[int, int]]:
    parts = (part.split(":") for part in signature.split(";") if part)
    return {name: (int(size), int(time)) for name, size, time in parts}
