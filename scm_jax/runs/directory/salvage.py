"""What can be read of a run whose files may be damaged, and what is wrong with them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scm_jax.files.jsonl import flatten, merge_steps, read_rows, to_frame
from scm_jax.runs.directory.reading import Run

if TYPE_CHECKING:
    import pandas as pd


@dataclasses.dataclass(frozen=True)
class Salvaged:
    """A run as far as it can be read.

    Attributes:
      run: the run.
      config: its flat config, empty if that cannot be read.
      metrics: as ``Run.metrics``, without damaged lines.
      results: the rows of ``results.jsonl``, without damaged lines.
      summary: as ``Run.summary``, empty if that cannot be read.
      problems: what was left out, each with its file and line.
    """

    run: Run
    config: dict[str, Any]
    metrics: pd.DataFrame
    results: list[dict[str, Any]]
    summary: dict[str, Any]
    problems: list[str]


def salvage(run: Run) -> Salvaged:
    """Reads whatever there is of ``run``; never fails for what it finds in files."""
    problems: list[str] = []
    files = run.dir
    rows = [
        row
        for row in read_rows(files.metrics_path, problems)
        if any(isinstance(row.get(key), int) for key in ("step", "resume_step"))
    ]
    return Salvaged(
        run,
        flatten(_read_object(files.config_path, problems)),
        to_frame(merge_steps(rows)),
        read_rows(files.results_path, problems),
        _read_object(files.summary_path, problems),
        problems,
    )


def _read_object(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
        if not isinstance(found, dict):
            raise ValueError(f"it holds a {type(found).__name__}, not an object")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        problems.append(f"{path}: {error}")
        return {}
    return found
