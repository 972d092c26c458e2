"""Ablations: what a switch changes, by pairs of runs with the same seed, and whether
that is more than noise."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from scm_jax.analysis import columns
from scm_jax.analysis.ablation.text_table import Table
from scm_jax.analysis.tables.frames import is_missing
from scm_jax.evaluation.comparable import require_comparable
from scm_jax.runs.directory.run_configs import is_neutral

if TYPE_CHECKING:
    import pandas as pd

# A tag of the runs that the others are compared with.
BASELINE_TAG = "baseline"

# Config keys that are no switch: each seed may have its own teacher.
_NO_FACTORS = ("seed", "name", "teacher.run", "init.run")

_BOOTSTRAPS = 10_000


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over pairs.

    Attributes:
      value: the mean; NaN without pairs.
      interval: of Student's t with n - 1 degrees of freedom; infinite for one pair.
      bootstrap: percentiles of the mean over resampled pairs. Of few pairs it is too
        narrow: it cannot reach beyond the least and the greatest of them.
    """

    value: float
    interval: tuple[float, float]
    bootstrap: tuple[float, float]

    def map(self, fn: Any) -> Estimate:
        """The estimate of an increasing function of the mean."""
        pairs = [tuple(map(fn, pair)) for pair in (self.interval, self.bootstrap)]
        return Estimate(fn(self.value), *pairs)


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
      missing: pairs that should be there, each with the reason, such as
        ``seed 2: failed``.
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
        if not self.num_pairs:
            return "no pairs"
        if self.num_pairs < 2:
            return "unknown: one pair"
        noise = [
            name
            for name, exceeds in (
                ("seed", self.exceeds_seed_noise),
                ("metric", self.exceeds_metric_noise),
            )
            if exceeds is False
        ]
        if noise:
            return f"no: within {' and '.join(noise)} noise"
        low, high = self.difference.interval
        if low <= 0 <= high:
            return "no: interval contains 0"
        unknown = [
            name
            for name, known in [
                ("seed", self.exceeds_seed_noise),
                ("metric", self.exceeds_metric_noise),
            ]
            if known is None
        ]
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
            for name in ("difference", "ratio"):
                found = getattr(arm, name)
                row[name] = found.value
                row[f"{name}_low"], row[f"{name}_high"] = found.interval
                low, high = found.bootstrap
                row[f"{name}_bootstrap_low"], row[f"{name}_bootstrap_high"] = low, high
            row["verdict"], row["missing"] = arm.verdict, arm.missing
            rows.append(row)
        return pandas.DataFrame(rows).set_index("arm")

    def table(self) -> Table:
        """What is shown: texts, with notes on how to read them."""
        head = ("arm", self.metric, "difference", "ratio", "pairs", "more than noise?")
        show_missing = any(arm.missing for arm in self.arms)
        rows = [("baseline", _number(self.mean), "", "", str(self.num_runs), "")]
        for arm in self.arms:
            count = arm.num_pairs + len(arm.missing)
            pairs = f"{arm.num_pairs} of {count}" if arm.missing else str(count)
            texts = (_number(arm.mean), _text(arm.difference, "+"), _text(arm.ratio))
            rows.append((arm.name, *texts, pairs, arm.verdict))
        if show_missing:
            head += ("missing",)
            missing = ["", *("; ".join(arm.missing) for arm in self.arms)]
            rows = [(*row, text) for row, text in zip(rows, missing, strict=True)]
        return Table(head, tuple(rows), (*self._reading(), *self.notes))

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
        percent = f"{100 * self.confidence:g} %"
        notes = [
            f"In brackets: {percent} intervals of Student's t over pairs of a seed."
        ]
        if counts:
            factor = _t_quantile(counts[0] - 1, self.confidence)
            notes[0] = notes[0][:-1] + (
                f"; with {counts[0]} pairs it has {counts[0] - 1} "
                f"degree{'s' * (counts[0] > 2)} of freedom and reaches "
                f"{factor:.2f} standard errors to each side."
            )
        if len(self.arms) > 1:
            notes.append(f"They are not adjusted for {len(self.arms)} comparisons.")
        for name, noise, about in (
            ("Seed", self.seed_noise, "the baseline over training seeds"),
            ("Metric", self.metric_noise, "a value over sets of samples"),
        ):
            known = _number(noise) or "not known"
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
    whole, notes = _usable(runs)
    switched = varying_keys(whole)
    factors = switched if factors is None else list(factors)
    if not factors:
        raise ValueError("nothing was switched: no config key varies; name factors")
    if shared is None:
        shared = [key for key in switched if key not in factors]
    for key in (*factors, *shared):
        if key not in runs.columns:
            raise ValueError(
                f"factors and shared: there is no column {key!r}; keys that vary are "
                f"{switched}"
            )
    _check_protocols(whole, metric)
    cells = _cells(whole, metric, factors, shared)
    base = _baseline(whole, factors, baseline)
    if base not in cells:
        named = dict(zip(factors, base, strict=True))
        raise ValueError(
            f"no run has the values of the baseline, {named}: give baseline="
        )
    return _compared(metric, cells, base, factors, shared, confidence, notes)


def _is_config_key(column: str) -> bool:
    """Dotted, but for the one switch that is in no section."""
    return column == "parameterization" or ("." in column and "/" not in column)


def varying_keys(runs: pd.DataFrame) -> list[str]:
    """The config keys of ``load_runs`` that vary and can be switches."""
    keys = (name for name in runs.columns if _is_config_key(name))
    keys = (name for name in keys if name not in _NO_FACTORS and not is_neutral(name))
    return [name for name in keys if len({_key(value) for value in runs[name]}) > 1]


def setting_names(runs: pd.DataFrame, keys: Sequence[str]) -> dict[Hashable, str]:
    """Run -> what tells its setting from others, such as ``width = 32``.

    Of several keys those with the value of most runs are left out; a run with these
    alone is the ``baseline``.
    """
    usual: dict[str, Hashable] = {}
    for key in keys if len(keys) > 1 else ():
        counts = collections.Counter(_key(value) for value in runs[key])
        value, count = counts.most_common(1)[0]
        if 2 * count > len(runs):
            usual[key] = value
    names = {}
    for place, run in enumerate(runs.index):
        values = {key: _key(runs[key].iloc[place]) for key in keys}
        other = [
            f"{_short(key, keys)} = {_value(value)}"
            for key, value in values.items()
            if key not in usual or usual[key] != value
        ]
        names[run] = ", ".join(other) or ("baseline" if usual else "all runs")
    return names


@dataclasses.dataclass(frozen=True)
class _Cell:
    """A run as a comparison needs it."""

    run: str
    state: str
    value: float
    deviation: float
    sets: int

    @property
    def missing(self) -> str:
        """Why there is no value; empty where there is one."""
        if math.isfinite(self.value):
            return ""
        return self.state if self.state != "done" else "no finite value"


# Arm -> (shared config, seed) -> run.
_Cells = dict[tuple, dict[tuple, _Cell]]


def _usable(runs: pd.DataFrame) -> tuple[pd.DataFrame, tuple[str, ...]]:
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


def _check_protocols(runs: pd.DataFrame, metric: str) -> None:
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


def _cells(
    runs: pd.DataFrame, metric: str, factors: Sequence[str], shared: Sequence[str]
) -> _Cells:
    """The runs by arm, shared config and seed.

    Raises:
      ValueError: two runs for one place; the message says in what they differ.
    """
    cells: _Cells = collections.defaultdict(dict)
    nothing = [math.nan] * len(runs)
    deviations = runs.get(f"{metric}_std", nothing)
    protocols = runs.get("protocols", [None] * len(runs))
    columns = [[_key(value) for value in runs[key]] for key in (*factors, *shared)]
    rows = zip(
        runs.index,
        runs["state"],
        runs[metric],
        deviations,
        protocols,
        [_key(seed) for seed in runs["seed"]],
        *columns,
        strict=True,
    )
    for run, state, value, deviation, known, seed, *keys in rows:
        arm, block = tuple(keys[: len(factors)]), tuple(keys[len(factors) :])
        cell = _Cell(run, state, float(value), float(deviation), _sets(known, metric))
        other = cells[arm].setdefault((*block, seed), cell)
        if other is not cell:
            differing = [
                key
                for key in runs.columns
                if _is_config_key(key)
                and _key(runs[key][run]) != _key(runs[key][other.run])
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


def _baseline(
    runs: pd.DataFrame, factors: Sequence[str], given: Mapping[str, Any] | None
) -> tuple:
    if given is not None:
        if set(given) != set(factors):
            raise ValueError(
                f"baseline has values of {sorted(given)}: it needs one of each factor, "
                f"{list(factors)}"
            )
        return tuple(_key(given[key]) for key in factors)
    tagged = runs
    if "tags" in runs.columns:
        tagged = runs[[BASELINE_TAG in tags for tags in runs["tags"]]]
    if len(tagged) and len(tagged) < len(runs):
        arms = {tuple(map(_key, row)) for row in tagged[list(factors)].to_numpy()}
        if len(arms) > 1:
            raise ValueError(
                f"runs tagged {BASELINE_TAG!r} differ in {list(factors)}: {arms}"
            )
        return arms.pop()
    return tuple(_most_frequent(key, runs[key]) for key in factors)


def _most_frequent(key: str, values: Any) -> Hashable:
    counts = collections.Counter(_key(value) for value in values).most_common(2)
    if len(counts) > 1 and counts[0][1] == counts[1][1]:
        raise ValueError(
            f"which runs are the baseline? {key} is {counts[0][0]!r} as often as "
            f"{counts[1][0]!r}: give baseline=, or tag its runs {BASELINE_TAG!r}"
        )
    return counts[0][0]


# --- Numbers --------------------------------------------------------------------------


def _compared(
    metric: str,
    cells: _Cells,
    base: tuple,
    factors: Sequence[str],
    shared: Sequence[str],
    confidence: float,
    notes: tuple[str, ...],
) -> Ablation:
    seed_noise, degrees = _seed_noise(cells[base])
    metric_noise = _metric_noise(cells)
    limits = (
        _t_quantile(degrees, confidence) * seed_noise if degrees else math.nan,
        _t_quantile(math.inf, confidence) * metric_noise,
    )
    arms = [
        _arm(arm, cells[arm], cells[base], base, factors, shared, limits, confidence)
        for arm in sorted(cells, key=repr)
        if arm != base
    ]
    values = [cell.value for cell in cells[base].values() if not cell.missing]
    absent = [
        f"{_place(place, shared)}: {cell.missing}"
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
        seed_noise,
        metric_noise,
        confidence,
        notes,
    )


def _arm(
    arm: tuple,
    own: Mapping[tuple, _Cell],
    base: Mapping[tuple, _Cell],
    base_arm: tuple,
    factors: Sequence[str],
    shared: Sequence[str],
    limits: tuple[float, float],
    confidence: float,
) -> Arm:
    pairs, missing = [], []
    for place in sorted(own.keys() | base.keys(), key=repr):
        reason = _why_missing(own.get(place), base.get(place))
        if reason:
            missing.append(f"{_place(place, shared)}: {reason}")
        else:
            pairs.append((own[place].value, base[place].value))
    values = [cell.value for cell in own.values() if not cell.missing]
    a, b = np.array(pairs, np.float64).reshape(-1, 2).T
    difference = estimate(a - b, confidence)
    ratio = Estimate(math.nan, (math.nan, math.nan), (math.nan, math.nan))
    if len(a) and min(a.min(), b.min()) > 0:
        ratio = estimate(np.log(a / b), confidence).map(_exp)
    # A difference of two means of n runs each has sqrt(2 / n) of the noise of one run.
    scale = math.sqrt(2 / len(a)) if len(a) else math.nan
    exceeds = [
        None
        if math.isnan(limit * scale)
        else bool(abs(difference.value) > limit * scale)
        for limit in limits
    ]
    return Arm(
        _name(arm, base_arm, factors),
        dict(zip(factors, arm, strict=True)),
        float(np.mean(values)) if values else math.nan,
        len(pairs),
        difference,
        ratio,
        tuple(missing),
        *exceeds,
    )


def estimate(
    values: Sequence[float] | np.ndarray, confidence: float = 0.95
) -> Estimate:
    """Mean of independent values with its intervals.

    >>> low, high = estimate([1.0, 2.0, 3.0]).interval
    >>> round(low, 3), round(high, 3)
    (-0.484, 4.484)

    Args:
      values: one per pair.
      confidence: of the intervals.
    """
    values = np.asarray(values, np.float64)
    n = len(values)
    if n == 0:
        return Estimate(math.nan, (math.nan, math.nan), (math.nan, math.nan))
    mean = float(values.mean())
    if n == 1:
        return Estimate(mean, (-math.inf, math.inf), (-math.inf, math.inf))
    half = _t_quantile(n - 1, confidence) * float(values.std(ddof=1)) / math.sqrt(n)
    rng = np.random.default_rng(0)
    means = values[rng.integers(n, size=(_BOOTSTRAPS, n))].mean(axis=1)
    tail = (1 - confidence) / 2
    low, high = map(float, np.quantile(means, [tail, 1 - tail]))
    return Estimate(mean, (mean - half, mean + half), (low, high))


def _seed_noise(cells: Mapping[tuple, _Cell]) -> tuple[float, int]:
    """Standard deviation over seeds, pooled over shared configs; its degrees of
    freedom."""
    blocks = collections.defaultdict(list)
    for (*block, _), cell in cells.items():
        if not cell.missing:
            blocks[tuple(block)].append(cell.value)
    degrees = sum(len(values) - 1 for values in blocks.values())
    if not degrees:
        return math.nan, 0
    squares = sum(float(np.var(values)) * len(values) for values in blocks.values())
    return math.sqrt(squares / degrees), degrees


def _metric_noise(cells: _Cells) -> float:
    """Root mean square of the standard error of values over sets of samples."""
    squares = [
        cell.deviation**2 / cell.sets
        for own in cells.values()
        for cell in own.values()
        if math.isfinite(cell.deviation) and cell.sets > 1
    ]
    return math.sqrt(float(np.mean(squares))) if squares else math.nan


def _t_quantile(degrees: float, confidence: float) -> float:
    """How many standard errors a two-sided interval reaches to each side."""
    from scipy import stats

    return float(stats.t.ppf((1 + confidence) / 2, degrees))


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


# --- Words ----------------------------------------------------------------------------


def _why_missing(own: _Cell | None, base: _Cell | None) -> str:
    if own is None:
        return "no run"
    if base is None:
        return "no run in the baseline"
    if own.missing:
        return own.missing
    return f"{base.missing} in the baseline" if base.missing else ""


def _place(place: tuple, shared: Sequence[str]) -> str:
    """``width = 32, seed 1``."""
    *block, seed = place
    names = [
        f"{_short(key, shared)} = {value}"
        for key, value in zip(shared, block, strict=True)
    ]
    return ", ".join([*names, f"seed {seed}"])


def _name(arm: tuple, base: tuple, factors: Sequence[str]) -> str:
    """What is other than in the baseline."""
    changed = [
        f"{_short(key, factors)} = {_value(value)}"
        for key, value, usual in zip(factors, arm, base, strict=True)
        if value != usual
    ]
    return ", ".join(changed)


def _short(key: str, keys: Sequence[str]) -> str:
    """The last part of a key where no other key has it."""
    last = key.rsplit(".", 1)[-1]
    return last if sum(k.rsplit(".", 1)[-1] == last for k in keys) == 1 else key


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple):
        return "(" + ", ".join(map(_value, value)) + ")"
    return str(value)


def _key(value: Any) -> Hashable:
    """A cell as a key: gaps are None, numbers of numpy plain."""
    if hasattr(value, "item"):
        value = value.item()
    return None if is_missing(value) else value


def _number(value: float, sign: str = "") -> str:
    if math.isnan(value):
        return ""
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:{sign}.3g}".replace("-", "−")


def _text(found: Estimate, sign: str = "") -> str:
    """``+0.5 [−0.1, +1.1]``: two digits of the interval's half width."""
    if math.isnan(found.value):
        return "–"
    low, high = found.interval
    half = (high - low) / 2
    if not 0 < half < math.inf:
        ends = ", ".join(_number(end, sign) for end in (low, high))
        return f"{_number(found.value, sign)} [{ends}]"
    decimals = max(0, 1 - math.floor(math.log10(half)))
    texts = [f"{x:{sign}.{decimals}f}" for x in (found.value, low, high)]
    value, *ends = (text.replace("-", "−") for text in texts)
    return f"{value} [{', '.join(ends)}]"
