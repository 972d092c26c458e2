"""The runs of a comparison, by arm, shared config and seed."""

from __future__ import annotations

import collections
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from scm_jax.analysis.ablation.statistics import (
    Cell,
    Cells,
)
from scm_jax.analysis.tables.settings import (
    cell_key,
    is_config_key,
)
from scm_jax.evaluation.comparable import require_comparable

if TYPE_CHECKING:
    import pandas as pd

# A tag of the runs that the others are compared with.
BASELINE_TAG = "baseline"


def usable_runs(runs: pd.DataFrame) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Runs whose place in the comparison is known, each config once."""
    notes = []
    unreadable = runs["state"] == "unreadable"
    if unreadable.any():
        names = ", ".join(map(str, runs.index[unreadable]))
        notes.append(f"Left out, as they cannot be read: {names}.")
    runs = runs[~unreadable]
    if "duplicate_of" in runs.columns:
        again = runs["duplicate_of"].isin(runs.index)
        if again.any():
            names = ", ".join(map(str, runs.index[again]))
            notes.append(f"Left out, as their config is there already: {names}.")
        runs = runs[~again]
    if runs.empty:
        raise ValueError("there are no runs to compare")
    return runs, tuple(notes)


def check_protocols(runs: pd.DataFrame, metric: str) -> None:
    """Refuses numbers that were measured in different ways."""
    if "protocols" not in runs.columns:
        return
    rows = [
        {"run": run, metric: value, "protocol": {"": known[metric]}}
        for run, value, known in zip(
            runs.index, runs[metric], runs["protocols"], strict=True
        )
        if isinstance(known, Mapping) and metric in known and math.isfinite(value)
    ]
    require_comparable(rows, metric)


def cells_of(
    runs: pd.DataFrame, metric: str, factors: Sequence[str], shared: Sequence[str]
) -> Cells:
    """The runs by arm, shared config and seed.

    Raises:
      ValueError: two runs for one place; the message says in what they differ.
    """
    cells: Cells = collections.defaultdict(dict)
    nothing = [math.nan] * len(runs)
    deviations = runs.get(f"{metric}_std", nothing)
    protocols = runs.get("protocols", [None] * len(runs))
    columns = [[cell_key(value) for value in runs[key]] for key in (*factors, *shared)]
    rows = zip(
        runs.index,
        runs["state"],
        runs[metric],
        deviations,
        protocols,
        [cell_key(seed) for seed in runs["seed"]],
        *columns,
        strict=True,
    )
    for run, state, value, deviation, known, seed, *keys in rows:
        arm, block = tuple(keys[: len(factors)]), tuple(keys[len(factors) :])
        cell = Cell(run, state, float(value), float(deviation), _sets(known, metric))
        other = cells[arm].setdefault((*block, seed), cell)
        if other is not cell:
            differing = [
                key
                for key in runs.columns
                if is_config_key(key)
                and cell_key(runs[key][run]) != cell_key(runs[key][other.run])
            ]
            raise ValueError(
                f"runs {other.run!r} and {run!r} have the same factors and seed; they "
                f"differ in {differing}: name these in factors or shared, or leave one "
                "run out"
            )
    return dict(cells)


def _sets(protocols: Any, metric: str) -> int:
    """Sets of samples behind a value."""
    if not isinstance(protocols, Mapping):
        return 1
    return max(1, len((protocols.get(metric) or {}).get("seeds") or ()))


def baseline_of(
    runs: pd.DataFrame, factors: Sequence[str], given: Mapping[str, Any] | None
) -> tuple:
    """The values of the factors in the baseline, see ``compare``."""
    if given is not None:
        if set(given) != set(factors):
            raise ValueError(
                f"baseline has values of {sorted(given)}: it needs one of each factor, "
                f"{list(factors)}"
            )
        return tuple(cell_key(given[key]) for key in factors)
    tagged = runs
    if "tags" in runs.columns:
        tagged = runs[[BASELINE_TAG in tags for tags in runs["tags"]]]
    if len(tagged) and len(tagged) < len(runs):
        arms = {tuple(map(cell_key, row)) for row in tagged[list(factors)].to_numpy()}
        if len(arms) > 1:
            raise ValueError(
                f"runs tagged {BASELINE_TAG!r} differ in {list(factors)}: {arms}"
            )
        return arms.pop()
    return tuple(_most_frequent(key, runs[key]) for key in factors)


def _most_frequent(key: str, values: Any) -> Hashable:
    counts = collections.Counter(cell_key(value) for value in values).most_common(2)
    if len(counts) > 1 and counts[0][1] == counts[1][1]:
        raise ValueError(
            f"which runs are the baseline? {key} is {counts[0][0]!r} as often as "
            f"{counts[1][0]!r}: give baseline=, or tag its runs {BASELINE_TAG!r}"
        )
    return counts[0][0]
