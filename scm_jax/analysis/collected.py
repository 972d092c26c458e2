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

from scm_jax.analysis.run_files import (
    FACT_FILES,
    METRICS_FILE,
    RESULTS_FILE,
    RunFiles,
)
from scm_jax.records import require

if TYPE_CHECKING:
    import pyarrow as pa

RUNS, METRICS, RESULTS = "runs.parquet", "metrics.parquet", "results.parquet"
SOURCES = {RUNS: FACT_FILES, METRICS: (METRICS_FILE,), RESULTS: (RESULTS_FILE,)}

# Of the files' contents. Files of another format are not used.
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
) -> tuple[list[pa.Table], set[str]]:
    """``metric_rows.read_table`` of the collected runs, and the paths of these.

    The tables have a further column ``run``, the index into ``runs``; the keys of their
    metadata are the columns that the file has, whether they are wanted or not.
    """
    tables, paths = [], set()
    codes = {run.path: code for code, run in enumerate(runs)}
    for own, file in _by_root(runs, METRICS):
        names = file.schema_arrow.names
        columns = names
        if wanted is not None:
            always = {"run_id", "step", "images", "wall_time", "nonfinite"}
            columns = [name for name in names if name in always | wanted]
        table = _only(
            file.read(columns=columns), {n: codes[r.path] for n, r in own.items()}
        )
        tables.append(table.replace_schema_metadata(dict.fromkeys(names, "")))
        paths |= {run.path for run in own.values()}
    return tables, paths


def with_code(table: pa.Table, code: int) -> pa.Table:
    """A table with the number of its run."""
    import pyarrow as pa

    codes = pa.repeat(pa.scalar(code, pa.int32()), len(table))
    return table.append_column("run", codes)


def in_order(table: pa.Table) -> pa.Table:
    """Rows by run; those of one run stay in order."""
    import numpy as np

    codes = table["run"].to_numpy()
    if (np.diff(codes) < 0).any():
        return table.take(np.argsort(codes, kind="stable"))
    return table


def runs_without_directories(root: str) -> list[RunFiles]:
    """The runs of a folder that holds collected files and no run directories."""
    files: dict[str, dict[str, tuple[int, int]]] = {}
    for name in SOURCES:
        opened = _open(os.path.join(root, name))
        for run, text in (signatures(opened) if opened else {}).items():
            files.setdefault(run, {}).update(_parse(text))
    known = _open(os.path.join(root, RUNS))
    return [
        RunFiles(name, os.path.join(root, name), files[name], root)
        for name in sorted(signatures(known) if known else ())
    ]


def signatures(file: Any) -> dict[str, str]:
    """Directory's name -> ``RunFiles.signature`` of what a file holds."""
    metadata = file.schema_arrow.metadata or {}
    found = json.loads(metadata.get(_KEY, b"{}"))
    return found.get("signatures", {}) if found.get("format") == FORMAT else {}


def metadata(signatures: dict[str, str]) -> dict[bytes, bytes]:
    """The metadata of a file whose rows come from files with these signatures."""
    text = json.dumps({"format": FORMAT, "signatures": signatures})
    return {_KEY: text.encode()}


def _by_root(
    runs: Sequence[RunFiles], name: str
) -> Iterator[tuple[dict[str, RunFiles], Any]]:
    """Of each root with a collected file: directory -> run whose rows hold; file."""
    roots: dict[str, list[RunFiles]] = {}
    for run in runs:
        roots.setdefault(os.path.dirname(run.path), []).append(run)
    for root, below in roots.items():
        file = _open(os.path.join(root, name))
        if file is None:
            continue
        kept = signatures(file)
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
        return parquet.ParquetFile(path, read_dictionary=["run_id", "nonfinite"])
    except (OSError, ValueError) as error:
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
