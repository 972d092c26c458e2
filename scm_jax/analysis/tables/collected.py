"""Reads what ``scm sweep collect`` has compacted, as far as it is still true.

    ROOT/runs.parquet     a row a run; ``facts`` is what its files say, as JSON
    ROOT/metrics.parquet  a row a logged step, see ``metric_rows``
    ROOT/results.parquet  a row a measurement; ``row`` is the line of ``results.jsonl``

Each file has in its metadata, by the name of the run's directory, size and time of
change of the files that its rows come from. Rows of a run whose files have changed
since are not used.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from scm_jax.analysis.tables.run_files import (
    FACT_FILES,
    METRICS_FILE,
    RESULTS_FILE,
    ROW_COLUMNS,
    RunFiles,
)
from scm_jax.files.optional import require

if TYPE_CHECKING:
    import pyarrow as pa

RUNS, METRICS, RESULTS = "runs.parquet", "metrics.parquet", "results.parquet"
SOURCES = {RUNS: FACT_FILES, METRICS: (METRICS_FILE,), RESULTS: (RESULTS_FILE,)}

# Version of the files' format. Files of another format are not used.
FORMAT = "1"
_KEY = b"scm_jax"


def read_facts(runs: Sequence[RunFiles]) -> dict[str, dict[str, Any]]:
    """``run_files.read_facts`` by path of run, as far as it is collected."""
    found = {}
    for own, file in _by_root(runs, RUNS):
        table = file.read(columns=["run_id", "facts"])
        for name, text in zip(*table.to_pydict().values(), strict=True):
            if name in own:
                found[own[name].path] = json.loads(text)
    return found


def read_results(runs: Sequence[RunFiles]) -> dict[str, list[dict[str, Any]]]:
    """``run_files.result_rows`` by path of run, as far as they are collected."""
    found: dict[str, list[dict[str, Any]]] = {}
    for own, file in _by_root(runs, RESULTS):
        found |= {run.path: [] for run in own.values()}
        table = file.read(columns=["run_id", "row"])
        for name, text in zip(*table.to_pydict().values(), strict=True):
            if name in own:
                found[own[name].path].append(json.loads(text))
    return found


def read_metrics(
    runs: Sequence[RunFiles], wanted: set[str] | None
) -> tuple[list[pa.Table], set[str], set[str]]:
    """``metric_rows.read_table`` of the collected runs.

    Args:
      runs: which; those that are not collected are left out.
      wanted: columns to read beside those of every row; None for all.

    Returns:
      Tables with a further column ``run``, the index into ``runs``; the paths of their
      runs; and the names of all columns that these runs have.
    """
    tables, paths, known = [], set(), set()
    codes = {run.path: code for code, run in enumerate(runs)}
    for own, file in _by_root(runs, METRICS):
        has = _metadata(file)["columns"]
        names = {name for directory in own for name in has[directory]}
        columns = [
            n for n in names if wanted is None or n in ROW_COLUMNS or n in wanted
        ]
        table = file.read(columns=["run_id", *columns])
        own_codes = {directory: codes[run.path] for directory, run in own.items()}
        tables.append(_only(table, own_codes))
        paths |= {run.path for run in own.values()}
        known |= names
    return tables, paths, known


def metric_groups(
    runs: Sequence[RunFiles],
) -> tuple[set[str], dict[str, list[str]], Iterator[pa.Table]]:
    """What of one root's collected metrics can be copied.

    Returns:
      Paths of the runs; their columns by directory; tables with their rows.
    """
    found = list(_by_root(runs, METRICS))
    if not found:
        return set(), {}, iter(())
    ((own, file),) = found
    has = _metadata(file)["columns"]
    columns = {directory: has[directory] for directory in own}
    return {run.path for run in own.values()}, columns, _groups(file, own)


def _groups(file: Any, own: dict[str, RunFiles]) -> Iterator[pa.Table]:
    import pyarrow as pa
    import pyarrow.compute

    kept = pa.array(list(own))
    for number in range(file.num_row_groups):
        table = file.read_row_group(number)
        yield table.filter(pyarrow.compute.is_in(table["run_id"].cast("string"), kept))


def with_code(table: pa.Table, code: int) -> pa.Table:
    """A table with the number of its run."""
    import pyarrow as pa

    codes = pa.repeat(pa.scalar(code, pa.int32()), len(table))
    return table.append_column("run", codes)


def in_order(table: pa.Table) -> pa.Table:
    """Rows by run; those of one run, which lie together, stay in order."""
    import numpy as np
    import pyarrow as pa

    codes = table["run"].to_numpy()
    if not (np.diff(codes) < 0).any():
        return table
    starts = np.flatnonzero(np.diff(codes, prepend=-1))
    lengths = np.diff(starts, append=len(codes))
    order = np.argsort(codes[starts], kind="stable")
    return pa.concat_tables(
        [table.slice(starts[place], lengths[place]) for place in order]
    )


def runs_without_directories(root: str) -> list[RunFiles]:
    """The runs of a folder that holds collected files and no run directories."""
    files: dict[str, dict[str, tuple[int, int]]] = {}
    for name in SOURCES:
        opened = _open(os.path.join(root, name))
        kept = _metadata(opened)["signatures"] if opened else {}
        for run, text in kept.items():
            files.setdefault(run, {}).update(_parse(text))
    known = _open(os.path.join(root, RUNS))
    return [
        RunFiles(name, os.path.join(root, name), files[name], root)
        for name in sorted(_metadata(known)["signatures"] if known else ())
    ]


def metadata(
    name: str, runs: Sequence[RunFiles], columns: dict[str, list[str]] | None = None
) -> dict[bytes, bytes]:
    """The metadata of a file with the rows of some runs.

    ``columns`` are those of each run in ``metrics.parquet``, by directory.
    """
    signatures = {run.id: run.signature(SOURCES[name]) for run in runs}
    found = {"format": FORMAT, "signatures": signatures, "columns": columns or {}}
    return {_KEY: json.dumps(found).encode()}


def _metadata(file: Any) -> dict[str, Any]:
    text = (file.schema_arrow.metadata or {}).get(_KEY, b"{}")
    found = json.loads(text)
    if found.get("format") != FORMAT:
        return {"signatures": {}, "columns": {}}
    return found


def _by_root(
    runs: Sequence[RunFiles], name: str
) -> Iterator[tuple[dict[str, RunFiles], Any]]:
    """For each root with a collected file: directory -> run whose rows hold; file."""
    roots: dict[str, list[RunFiles]] = {}
    for run in runs:
        roots.setdefault(os.path.dirname(run.path), []).append(run)
    for root, below in roots.items():
        file = _open(os.path.join(root, name))
        if file is None:
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
    """The rows of some runs, numbered, without their names."""
    import numpy as np
    import pyarrow as pa

    names = table["run_id"].unify_dictionaries().combine_chunks()
    if isinstance(names, pa.ChunkedArray):
        names = names.chunk(0)
    of_name = np.array(
        [codes.get(n, -1) for n in names.dictionary.to_pylist()], np.int32
    )
    run = of_name[names.indices.to_numpy()]
    table = table.drop_columns(["run_id"]).append_column("run", pa.array(run))
    return table if (run >= 0).all() else table.filter(pa.array(run >= 0))


def _parse(signature: str) -> dict[str, tuple[int, int]]:
    parts = (part.split(":") for part in signature.split(";") if part)
    return {name: (int(size), int(time)) for name, size, time in parts}
