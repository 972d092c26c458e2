"""Rows and configs as text: what JSON carries, how it is appended, and read again."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scm_jax.files.atomic import write_atomically

if TYPE_CHECKING:
    import pandas as pd


logger = logging.getLogger(__name__)

# Asked before the slow question whether something is a Mapping.
_LEAVES = (str, int, float, list, tuple)


def encode_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as JSON can carry it: plain values, null for NaN and infinity.

    Arrays of any library become numbers and lists, a float32 the shortest number that
    identifies it. Keys of values that are not all finite are listed in ``nonfinite``.

    Raises:
      ValueError: a value is none of these; the message names its key.

    Example:
      >>> encode_row({"loss": np.float32(0.1), "rate": float("nan")})
      {'loss': 0.1, 'rate': None, 'nonfinite': ['rate']}
    """
    nonfinite: dict[str, None] = {}
    encoded = {key: _encode(value, key, nonfinite) for key, value in row.items()}
    return {**encoded, "nonfinite": list(nonfinite)} if nonfinite else encoded


def canonical_json(config: Mapping[str, Any]) -> str:
    """The one text of a config: sorted keys, tuples as lists, plain values only.

    Raises:
      ValueError: a value has no unique text (numpy scalars and arrays, functions, NaN);
        the message names its key.

    Example:
      >>> canonical_json({"b": (1, 2), "a": None}).split()
      ['{', '"a":', 'null,', '"b":', '[', '1,', '2', ']', '}']
    """
    return json.dumps(_canonical(config, ""), sort_keys=True, indent=1) + "\n"


def flatten(
    tree: Mapping[str, Any],
    prefix: str = "",
    *,
    leaf: Callable[[Any], Any] = lambda value: value,
) -> dict[str, Any]:
    """Nested mappings as one level with dotted keys; an empty mapping is a leaf.

    Example:
      >>> flatten({"net": {"width": 64}, "seed": 0})
      {'net.width': 64, 'seed': 0}
    """
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if value and not isinstance(value, _LEAVES) and isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}.", leaf=leaf))
        else:
            flat[f"{prefix}{key}"] = leaf(value)
    return flat


def write_json(path: str | os.PathLike, value: Mapping[str, Any]) -> None:
    """Writes a JSON object whole or not at all; NaN becomes null (``encode_row``)."""
    text = json.dumps(encode_row(value), indent=1, allow_nan=False) + "\n"
    write_atomically(Path(path), text)


def mend_tail(path: str | os.PathLike) -> None:
    """Makes a file of JSON lines end with a whole line, so that appending is safe."""
    path = Path(path)
    if not path.exists():
        return
    with path.open("rb+") as file:
        content = file.read()
        start = content.rfind(b"\n") + 1
        try:
            if content[start:]:
                json.loads(content[start:])
                file.write(b"\n")
        except ValueError:  # part of a line, left by a process killed while it wrote
            file.truncate(start)


def append_row(path: str | os.PathLike, row: Mapping[str, Any]) -> None:
    """Appends one JSON line (``encode_row``), on disk when this returns."""
    line = json.dumps(encode_row(row), allow_nan=False) + "\n"
    mend_tail(path)
    with open(path, "ab", buffering=0) as file:
        file.write(line.encode())
        os.fsync(file.fileno())


def read_rows(
    path: str | os.PathLike, damaged: list[str] | None = None
) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines; none if it does not exist.

    Args:
      path: the file; a last line that was cut off while it was written is dropped.
      damaged: takes a sentence on each line that is no JSON object, instead of an
        error, and on a file that cannot be read.

    Raises:
      ValueError: another line is not JSON.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            lines = file.readall().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        if damaged is None:
            raise
        damaged.append(f"{path}: {error}")
        return []
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                continue
            if damaged is None:
                raise ValueError(f"{path}, line {number}: {error}") from error
            damaged.append(f"{path}, line {number}: {error}")
            continue
        if damaged is not None and not isinstance(row, dict):
            damaged.append(f"{path}, line {number}: not an object")
            continue
        rows.append(row)
    return rows


def read_whole_rows(path: str | os.PathLike) -> list[dict[str, Any]]:
    """``read_rows`` with a warning in the log for each damaged line."""
    damaged: list[str] = []
    rows = read_rows(path, damaged)
    for problem in damaged:
        logger.warning("left out, as it is damaged: %s", problem)
    return rows


def merge_steps(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per step, in order; what a resume went back behind is dropped."""
    steps: dict[int, dict[str, Any]] = {}
    for row in rows:
        if "resume_step" in row:
            last = row["resume_step"]
            steps = {step: kept for step, kept in steps.items() if step <= last}
        else:
            merged = steps.setdefault(row["step"], {})
            lost = [*merged.get("nonfinite", ()), *row.get("nonfinite", ())]
            merged.update(row, **({"nonfinite": lost} if lost else {}))
    return [steps[step] for step in sorted(steps)]


def to_frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """A table with a row per row; null is NaN, lists of numbers are numpy arrays."""
    from scm_jax.files.optional import require

    pandas = require("pandas", "a table of metrics", "scm_jax[analysis]")
    decoded = [
        {key: _decode(value) for key, value in row.items() if key != "nonfinite"}
        for row in rows
    ]
    return pandas.DataFrame(decoded)


def _encode(value: Any, key: str, nonfinite: dict[str, None]) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return float(value)
        nonfinite[key] = None
        return None
    if isinstance(value, Mapping):
        return {str(k): _encode(v, f"{key}.{k}", nonfinite) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_encode(v, key, nonfinite) for v in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "__array__"):
        return _encode_array(np.asarray(value), key, nonfinite)
    raise ValueError(f"{key!r} holds a {type(value).__name__}, which JSON cannot carry")


def _encode_array(array: np.ndarray, key: str, nonfinite: dict[str, None]) -> Any:
    if array.dtype.kind == "O":
        raise ValueError(f"{key!r} holds an array of objects, which JSON cannot carry")
    if array.ndim:
        return [_encode_array(a, key, nonfinite) for a in array]
    if array.dtype.kind in "biuU":
        return array.item()
    if array.dtype == np.float64:
        return _encode(array.item(), key, nonfinite)
    # float32 and below, also bfloat16: the shortest text that reads back the same
    return _encode(float(str(np.float32(array))), key, nonfinite)


def _canonical(value: Any, key: str) -> Any:
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float and np.isfinite(value):
        return value
    if isinstance(value, Mapping):
        if wrong := [k for k in value if type(k) is not str]:
            raise ValueError(f"config key {wrong[0]!r} under {key!r} is not a string")
        return {k: _canonical(v, f"{key}.{k}" if key else k) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(v, f"{key}[{i}]") for i, v in enumerate(value)]
    raise ValueError(
        f"config {key} = {value!r} ({type(value).__module__}.{type(value).__name__}) "
        "has no unique text: legal are None, bool, int, finite float, str, list, dict"
    )


def _decode(value: Any) -> Any:
    if isinstance(value, list) and not any(isinstance(v, str) for v in value):
        return np.array(value, np.float64)  # null is NaN
    return float("nan") if value is None else value
