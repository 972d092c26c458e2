"""The runs of a comparison, by arm, shared config and seed."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from scm_jax.analysis.tables.settings import cell_key, is_config_key, setting_text
from scm_jax.evaluation.comparable import require_comparable

if TYPE_CHECKING:
    import pandas as pd

# A tag of the runs that the others are compared with.
BASELINE_TAG = "baseline"


@dataclasses.dataclass(frozen=True)
class Cell:
    """A run as a comparison needs it."""

    run: str
    state: str
    value: float
    deviation: float
    sets: int  # of samples behind the value

    @property
    def missing(self) -> str:
        """Why there is no value; empty where there is one."""
        if math.isfinite(self.value):
            return ""
        return self.state if self.state != "done" else "no finite value"


# Arm -> (shared config, seed) -> run.
Cells = dict[tuple, dict[tuple, Cell]]


def usable_runs(runs: pd.DataFrame) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Runs that can be compared, each config once, and notes on the others."""
    notes: list[str] = []

    def leave_out(runs: pd.DataFrame, mask: pd.Series, why: str) -> pd.DataFrame:
        if mask.any():
            names = ", ".join(map(str, runs.index[mask]))
            notes.append(f"Left out, as {why}: {names}.")
        return runs[~mask]

    runs = leave_out(runs, runs["state"] == "unreadable", "they cannot be read")
    if "duplicate_of" in runs.columns:
        again = runs["duplicate_of"].isin(runs.index)
        runs = leave_out(runs, again, "their config is there already")
    if runs.empty:
        raise ValueError("there are no runs to compare")
    return runs, tuple(notes)


def check_protocols(runs: pd.DataFrame, metric: str) -> None:
    """Refuses numbers that were measured in different ways."""
    if "protocols" not in runs.columns:
        return
    triples = zip(runs.index, runs[metric], runs["protocols"], strict=True)
    rows = [
        {"run": run, metric: value, "protocol": {"": known[metric]}}
        for run, value, known in triples
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
    for run, row in zip(runs.index, runs.to_dict("records"), strict=True):
        protocols = row.get("protocols")
        known = protocols.get(metric) if isinstance(protocols, Mapping) else None
        sets = max(1, len((known or {}).get("seeds") or ()))
        deviation = float(row.get(f"{metric}_std", math.nan))
        cell = Cell(run, row["state"], float(row[metric]), deviation, sets)
        place = tuple(cell_key(row[key]) for key in (*shared, "seed"))
        arm = tuple(cell_key(row[key]) for key in factors)
        other = cells[arm].setdefault(place, cell)
        if other is not cell:
            differing = [
                key
                for key in filter(is_config_key, runs.columns)
                if cell_key(row[key]) != cell_key(runs[key][other.run])
            ]
            raise ValueError(
                f"runs {other.run!r} and {run!r} have the same factors and seed; they "
                f"differ in {differing}: name these in factors or shared, or leave one "
                "run out"
            )
    return dict(cells)


def baseline_of(
    runs: pd.DataFrame, factors: Sequence[str], given: Mapping[str, Any] | None
) -> tuple:
    """The values of the factors in the baseline (``compare``)."""
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


def why_missing(own: Cell | None, base: Cell | None) -> str:
    """Why two runs are no pair; empty where they are one."""
    if own is None:
        return "no run"
    if base is None:
        return "no run in the baseline"
    if own.missing:
        return own.missing
    return f"{base.missing} in the baseline" if base.missing else ""


def place_name(place: tuple, shared: Sequence[str]) -> str:
    """``width = 32, seed 1``."""
    pairs = zip(shared, place[:-1], strict=True)
    names = [setting_text(key, value, shared) for key, value in pairs]
    return ", ".join([*names, f"seed {place[-1]}"])


def arm_name(arm: tuple, base: tuple, factors: Sequence[str]) -> str:
    """What is other than in the baseline."""
    triples = zip(factors, arm, base, strict=True)
    changed = [(key, value) for key, value, usual in triples if value != usual]
    return ", ".join(setting_text(key, value, factors) for key, value in changed)
