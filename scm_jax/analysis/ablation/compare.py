"""Ablations: what a switch changes, by pairs of runs with the same seed, and whether
that is more than noise."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from scm_jax.analysis import columns
from scm_jax.analysis.ablation.cells import (
    Cell,
    Cells,
    arm_name,
    baseline_of,
    cells_of,
    check_protocols,
    place_name,
    usable_runs,
    why_missing,
)
from scm_jax.analysis.ablation.statistics import (
    NOTHING,
    Estimate,
    estimate,
    exp,
    mean_metric_noise,
    number_text,
    pooled_seed_noise,
    t_quantile,
)
from scm_jax.analysis.ablation.text_table import Table
from scm_jax.analysis.tables.settings import varying_keys

if TYPE_CHECKING:
    import pandas as pd


@dataclasses.dataclass(frozen=True)
class Arm:
    """One setting against the baseline.

    Attributes:
      name: such as ``tangent_normalization = none``.
      values: of the factors.
      mean: of the metric over its runs with a value.
      num_pairs: runs with a partner of the same seed and shared config in the baseline.
      difference: arm less baseline, by pairs.
      ratio: arm over baseline, geometric mean over pairs; NaN where a value is not
        positive.
      missing: pairs that should be there, with the reason: ``seed 2: failed``.
      exceeds_seed_noise: whether the difference is more than training seeds alone
        explain; None where that is not known.
      exceeds_metric_noise: the same for the sets of samples that a metric draws.
    """

    name: str
    values: Mapping[str, Any]
    mean: float
    num_pairs: int
    difference: Estimate
    ratio: Estimate
    missing: tuple[str, ...]
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

    Attributes:
      metric: a column of ``load_runs``.
      baseline: values of the factors there.
      mean: of the baseline.
      num_runs: of the baseline, those with a value.
      arms: all other settings.
      seed_noise: standard deviation of the baseline over training seeds (of the same
        shared config); NaN with fewer than two.
      metric_noise: standard deviation of a value over sets of samples: root mean square
        of ``METRIC_std`` over the square root of the number of sets; NaN where
        evaluations drew one set.
      confidence: of the intervals.
      notes: what a reader must know: runs that were left out.
    """

    metric: str
    baseline: Mapping[str, Any]
    mean: float
    num_runs: int
    arms: tuple[Arm, ...]
    seed_noise: float
    metric_noise: float
    confidence: float
    notes: tuple[str, ...] = ()

    def to_frame(self) -> pd.DataFrame:
        """All numbers, a row an arm."""
        import pandas

        rows = []
        for arm in self.arms:
            row = {"arm": arm.name, "mean": arm.mean, "num_pairs": arm.num_pairs}
            for name, found in (("difference", arm.difference), ("ratio", arm.ratio)):
                row[name] = found.value
                for kind, ends in (
                    ("", found.interval),
                    ("_bootstrap", found.bootstrap),
                ):
                    row[f"{name}{kind}_low"], row[f"{name}{kind}_high"] = ends
            rows.append(row | {"verdict": arm.verdict, "missing": arm.missing})
        return pandas.DataFrame(rows).set_index("arm")

    def table(self) -> Table:
        """What is shown: texts, with notes on how to read them."""
        head = ("arm", self.metric, "difference", "ratio", "pairs", "more than noise?")
        mean, count = number_text(self.mean), str(self.num_runs)
        rows = [("baseline", mean, "", "", count, "", "")]
        for arm in self.arms:
            pairs = str(arm.num_pairs)
            if arm.missing:
                pairs += f" of {arm.num_pairs + len(arm.missing)}"
            texts = (number_text(arm.mean), arm.difference.text("+"), arm.ratio.text())
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
            degrees = counts[0] - 1
            note += (
                f"; with {counts[0]} pairs it has {degrees} degree{'s' * (degrees > 1)} "
                f"of freedom and reaches {t_quantile(degrees, self.confidence):.2f} "
                "standard errors to each side"
            )
        notes = [f"{note}."]
        if len(self.arms) > 1:
            notes.append(f"They are not adjusted for {len(self.arms)} comparisons.")
        for name, noise, about in (
            ("Seed", self.seed_noise, "the baseline over training seeds"),
            ("Metric", self.metric_noise, "a value over sets of samples"),
        ):
            known = number_text(noise) or "not known"
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
      ValueError: no such column, nothing was switched, the baseline is not clear or has
        no runs, two runs for one arm and seed, or rows that were measured in different
        ways (see ``comparable``).

    Example:
      >>> runs = scm_jax.load_runs("runs/ablate")  # doctest: +SKIP
      >>> compare(runs, "2_steps/frechet_distance")  # doctest: +SKIP
    """
    runs = columns.numeric(runs, metric)
    whole, notes = usable_runs(runs)
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
    check_protocols(whole, metric)
    cells = cells_of(whole, metric, factors, shared)
    base = baseline_of(whole, factors, baseline)
    if base not in cells:
        named = dict(zip(factors, base, strict=True))
        raise ValueError(
            f"no run has the values of the baseline, {named}: give baseline="
        )
    return _compared(metric, cells, base, factors, shared, confidence, notes)


def _compared(
    metric: str,
    cells: Cells,
    base: tuple,
    factors: Sequence[str],
    shared: Sequence[str],
    confidence: float,
    notes: tuple[str, ...],
) -> Ablation:
    seed_noise, degrees = pooled_seed_noise(cells[base])
    metric_noise = mean_metric_noise(cells)
    limits = (
        t_quantile(degrees, confidence) * seed_noise if degrees else math.nan,
        t_quantile(math.inf, confidence) * metric_noise,
    )
    arms = [
        _arm(arm, cells[arm], cells[base], base, factors, shared, limits, confidence)
        for arm in sorted(cells, key=repr)
        if arm != base
    ]
    values = [cell.value for cell in cells[base].values() if not cell.missing]
    absent = [
        f"{place_name(place, shared)}: {cell.missing}"
        for place, cell in cells[base].items()
        if cell.missing
    ]
    if absent:
        notes += (f"Missing in the baseline: {'; '.join(absent)}.",)
    return Ablation(
        metric,
        dict(zip(factors, base, strict=True)),
        float(np.mean(values)) if values else math.nan,
        len(values),
        tuple(arms),
        *(seed_noise, metric_noise, confidence, notes),
    )


def _arm(
    arm: tuple,
    own: Mapping[tuple, Cell],
    base: Mapping[tuple, Cell],
    base_arm: tuple,
    factors: Sequence[str],
    shared: Sequence[str],
    limits: tuple[float, float],
    confidence: float,
) -> Arm:
    pairs, missing = [], []
    for place in sorted(own.keys() | base.keys(), key=repr):
        reason = why_missing(own.get(place), base.get(place))
        if reason:
            missing.append(f"{place_name(place, shared)}: {reason}")
        else:
            pairs.append((own[place].value, base[place].value))
    values = [cell.value for cell in own.values() if not cell.missing]
    a, b = np.array(pairs, np.float64).reshape(-1, 2).T
    difference = estimate(a - b, confidence)
    positive = len(a) and min(a.min(), b.min()) > 0
    ratio = estimate(np.log(a / b), confidence).map(exp) if positive else NOTHING
    # A difference of two means of n runs each has sqrt(2 / n) of the noise of one run.
    scale = math.sqrt(2 / len(a)) if len(a) else math.nan
    least = [limit * scale for limit in limits]
    exceeds = [
        None if math.isnan(x) else bool(abs(difference.value) > x) for x in least
    ]
    return Arm(
        arm_name(arm, base_arm, factors),
        dict(zip(factors, arm, strict=True)),
        float(np.mean(values)) if values else math.nan,
        len(pairs),
        difference,
        ratio,
        tuple(missing),
        *exceeds,
    )
