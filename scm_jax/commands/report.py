"""``scm report``: an HTML page on any runs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from scm_jax.evaluation import comparable
from scm_jax.runs import sample
from scm_jax.runs.directory import reading, report

logger = logging.getLogger(__name__)

GRID_SAMPLES = 80


def report_runs(directories: Sequence[str], out: str) -> None:
    """Writes an HTML page on any runs: curves, sample grids, results."""
    loaded = [reading.salvage(sample.load_run(d)) for d in directories]
    grids, rows = {}, []
    for found in loaded:
        run_ = found.run
        rows += [{"run": run_.name, **row} for row in found.results]
        if found.config:
            try:
                steps = int(found.config["sampling.steps"])
                samples = run_.sample(GRID_SAMPLES, steps=steps)
                if samples.pixels is not None:
                    grids[run_.name] = samples.html(10)
            except (OSError, ValueError, RuntimeError, LookupError) as error:
                found.problems.append(f"samples of {run_.path}: {error}")
        for problem in found.problems:
            logger.warning("left out, as it cannot be read: %s", problem)
    report.write_report(
        Path(out),
        title="Runs: " + ", ".join(found.run.name for found in loaded),
        runs=loaded,
        results=comparable.tables(rows),
        grids=grids,
        commands=[
            ("This page", f"python -m scm_jax report --runs={','.join(directories)}")
        ],
    )
