"""What a switch changes, by pairs of runs of a seed, and whether it is beyond noise."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from scm_jax.analysis import columns
from scm_jax.analysis.ablation import cells as by_place
from scm_jax.analysis.ablation import statistics
from scm_jax.analysis.ablation.text_table import Table
from scm_jax.analysis.tables.settings import varying_keys

if TYPE_CHECKING:
    import pandas as pd


@dataclasses.dataclass(frozen=True)
class Arm:
    """One setting against the baseline, by pairs of the same seed and shared config.

    ``exceeds_*`` is whether the difference is more than training seeds alone explain,
    or the sets of samples that a metric draws; None where that is not known.
    """

    name: str  # such as tangent_normalization = none
    values: Mapping[str, Any]  # of the factors
    mean: float  # of the metric over its runs with a value
    num_pairs: int
    difference: statistics.Estimate  # arm less baseline
    ratio: (
        statistics.Estimate
    )  # arm over baseline, geometric mean; NaN unless all are positive
    missing: tuple[str, ...]  # pairs that should be there: "seed 2: failed"
    exceeds_seed_noise: bool | None
    exceeds_metric_noise: bool | None

    @property
    def verdict(self) -> str:
        """Whether the difference is larger than noise, in a few words."""
        if self.num_pairs < 2:
            return "unknown: one pair" if self.num_pairs else "no pairs"
        known = {"seed": self.exceeds_seed_noise, "metric": self.exceeds_metric_noise}
        within = [name for name, exceeds in known.items() if exceeds is False]
        unknown = [name for name, exceeds in known.items() if exceeds is None]
        if within:
            return f"no: within {' and '.join(within)} noise"
        low, high = self.difference.interval
        if low <= 0 <= high:
            return "no: interval contains 0"
        return f"yes ({' and '.join(unknown)} noise not known)" if unknown else "yes"


@dataclasses.dataclass(frozen=True)
class Ablation:
    """Arms against a baseline.

    ``seed_noise`` is the standard deviation of the baseline over training seeds of the
    same shared config, NaN with fewer than two. ``metric_noise`` is that of a value
    over sets of samples: root mean square of ``METRIC_std`` over the square root of the
    number of sets; NaN where evaluations drew one set.
    """

    metric: str  # a column of ``load_runs``
    baseline: Mapping[str, Any]  # values of the factors there
    mean: float  # of the baseline
    num_runs: int  # of the baseline, those with a value
    arms: tuple[Arm, ...]  # all other settings
    seed_noise: float
    metric_noise: float
    confidence: float  # of the intervals
    notes: tuple[str, ...] = ()  # on runs that were left out

    def to_frame(self) -> pd.DataFrame:
        """All numbers, a row an arm."""
        import pandas

        rows = []
        for arm in self.arms:
            row = {"arm": arm.name, "mean": arm.mean, "num_pairs": arm.num_pairs}
            for name, found in (("difference", arm.difference), ("ratio", arm.ratio)):
                row[name] = found.value
                row[f"{name}_low"], row[f"{name}_high"] = found.interval
                boot = f"{name}_bootstrap"
                row[f"{boot}_low"], row[f"{boot}_high"] = found.bootstrap
            rows.append(row | {"verdict": arm.verdict, "missing": arm.missing})
        return pandas.DataFrame(rows).set_index("arm")

    def table(self) -> Table:
        """What is shown: texts, with notes on how to read them."""
        head = ("arm", self.metric, "difference", "ratio", "pairs", "more than noise?")
        mean, count = statistics.number_text(self.mean), str(self.num_runs)
        rows = [("baseline", mean, "", "", count, "", "")]
        for arm in self.arms:
            pairs = str(arm.num_pairs)
            if arm.missing:
                pairs += f" of {arm.num_pairs + len(arm.missing)}"
            texts = (
                statistics.number_text(arm.mean),
                arm.difference.text("+"),
                arm.ratio.text(),
            )
            missing = "; ".join(arm.missing)
            rows.append((arm.name, *texts, pairs, arm.verdict, missing))
        notes = (*self._reading(), *self.notes)
        if any(arm.missing for arm in self.arms):
            return Table((*head, "missing"), tuple(rows), notes)
        return Table(head, tuple(row[:-1] for row in rows), notes)

    def to_markdown(self) -> str:
        """The table in Markdown."""
        return self.table().to_markdown()

    def to_latex(self) -> str:
        """The table in LaTeX, with ``booktabs``."""
        return self.table().to_latex()

    def _repr_html_(self) -> str:
        return self.table().to_html()

    def _reading(self) -> list[str]:
        counts = sorted({arm.num_pairs for arm in self.arms if arm.num_pairs > 1})
        kind = f"{100 * self.confidence:g} % intervals of Student's t over pairs"
        note = f"In brackets: {kind} of a seed"
        if counts:
            degrees, s = counts[0] - 1, "s" * (counts[0] > 2)
            reach = statistics.t_quantile(degrees, self.confidence)
            note += (
                f"; with {counts[0]} pairs it has {degrees} degree{s} of freedom and "
                f"reaches {reach:.2f} standard errors to each side"
            )
        notes = [f"{note}."]
        if len(self.arms) > 1:
            notes.append(f"They are not adjusted for {len(self.arms)} comparisons.")
        for name, noise, about in (
            ("Seed", self.seed_noise, "the baseline over training seeds"),
            ("Metric", self.metric_noise, "a value over sets of samples"),
        ):
            known = statistics.number_text(noise) or "not known"
            notes.append(f"{name} noise, standard deviation of {about}: {known}.")
        return notes


def compare(
    runs: pd.DataFrame,
    metric: str,
    factors: Sequence[str] | None = None,
    *,
    shared: Sequence[str] | None = None,
    baseline: Mapping[str, Any] | None = None,
    confidence: float = 0.95,
) -> Ablation:
    """Pairs every setting with the baseline, by seed and shared config.

    A pair with a run that failed, is not done or has no value is listed as missing.

    Args:
      runs: as ``load_runs`` gives them.
      metric: column, such as ``2_steps/frechet_distance``; ``METRIC_std`` beside it is
        the spread over sets of samples.
      factors: columns that were switched; default is every config key that varies but
        the seed, the teacher's directory and keys that cannot change the result.
      shared: columns in which a pair agrees, beside the seed; default is every other
        config key that varies.
      baseline: values of the factors there; default is those of the runs tagged
        ``baseline``, or each factor's most frequent value.
      confidence: of the intervals.

    Raises:
      ValueError: no such column, nothing was switched, no clear baseline, two runs for
        one arm and seed, or rows measured in different ways (see ``comparable``).

    Example:
      >>> runs = scm_jax.load_runs("runs/ablate")  # doctest: +SKIP
      >>> compare(runs, "2_steps/frechet_distance")  # doctest: +SKIP
    """
    runs = columns.numeric(runs, metric)
    whole, notes = by_place.usable_runs(runs)
    switched = varying_keys(whole)
    factors = switched if factors is None else list(factors)
    if not factors:
        raise ValueError("nothing was switched: no config key varies; name factors")
    if shared is None:
        shared = [key for key in switched if key not in factors]
    if unknown := [key for key in (*factors, *shared) if key not in runs.columns]:
        raise ValueError(
            f"factors and shared: there is no column {unknown[0]!r}; keys that vary "
            f"are {switched}"
        )
    by_place.check_protocols(whole, metric)
    cells = by_place.cells_of(whole, metric, factors, shared)
    base = by_place.baseline_of(whole, factors, baseline)
    if base not in cells:
        named = dict(zip(factors, base, strict=True))
        raise ValueError(
            f"no run has the values of the baseline, {named}: give baseline="
        )
    return _compared(metric, cells, base, factors, shared, confidence, notes)


def _compared(
    metric: str,
    cells: by_place.Cells,
    base: tuple,
    factors: Sequence[str],
    shared: Sequence[str],
    confidence: float,
    notes: tuple[str, ...],
) -> Ablation:
    seed_noise, degrees = statistics.pooled_seed_noise(cells[base])
    metric_noise = statistics.mean_metric_noise(cells)
    limits = (
        statistics.t_quantile(degrees, confidence) * seed_noise
        if degrees
        else math.nan,
        statistics.t_quantile(math.inf, confidence) * metric_noise,
    )

    def values_and_mean(arm: tuple) -> tuple[dict[str, Any], float]:
        found = [cell.value for cell in cells[arm].values() if not cell.missing]
        mean = float(np.mean(found)) if found else math.nan
        return dict(zip(factors, arm, strict=True)), mean

    def compared(arm: tuple) -> Arm:
        pairs, missing = [], []
        for place in sorted(cells[arm].keys() | cells[base].keys(), key=repr):
            two = cells[arm].get(place), cells[base].get(place)
            if reason := by_place.why_missing(*two):
                missing.append(f"{by_place.place_name(place, shared)}: {reason}")
            else:
                pairs.append([cell.value for cell in two if cell])
        a, b = np.array(pairs, np.float64).reshape(-1, 2).T
        difference = statistics.estimate(a - b, confidence)
        positive = len(a) and min(a.min(), b.min()) > 0
        ratio = (
            statistics.estimate(np.log(a / b), confidence).map(statistics.exp)
            if positive
            else statistics.NOTHING
        )
        # A difference of means of n runs each has sqrt(2 / n) of the noise of a run.
        scale = math.sqrt(2 / len(a)) if len(a) else math.nan
        exceeds = [
            None if math.isnan(limit * scale) else abs(difference.value) > limit * scale
            for limit in limits
        ]
        name, facts = by_place.arm_name(arm, base, factors), values_and_mean(arm)
        return Arm(name, *facts, len(a), difference, ratio, tuple(missing), *exceeds)

    places = cells[base].items()
    absent = {by_place.place_name(p, shared): c.missing for p, c in places if c.missing}
    if absent:
        said = "; ".join(f"{name}: {why}" for name, why in absent.items())
        notes += (f"Missing in the baseline: {said}.",)
    arms = tuple(compared(arm) for arm in sorted(cells, key=repr) if arm != base)
    count, noise = len(places) - len(absent), (seed_noise, metric_noise)
    return Ablation(
        metric, *values_and_mean(base), count, arms, *noise, confidence, notes
    )
