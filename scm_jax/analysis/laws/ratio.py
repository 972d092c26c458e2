"""Students against their teachers: the ratio of a quality, by size of the network.

The paper's claim (arXiv 2410.11081v2, Sec. 5 and Fig. 6) is slope 0 over sizes in
``log(student / teacher) = log r + s log(N / N_0)``, with N_0 their geometric mean.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from scm_jax.analysis import columns
from scm_jax.analysis.laws.bootstrap import LEVEL, Interval

if TYPE_CHECKING:
    import pandas as pd


@dataclasses.dataclass(frozen=True)
class RatioFit:
    """``student / teacher = r (N / N_0)^s``, with 95 % intervals."""

    parameters: np.ndarray  # N of each pair, (n,)
    ratios: np.ndarray  # 1 is as good as the teacher, where small is good
    ratio: Interval  # r
    slope: Interval  # s; an interval that holds 0 is a constant ratio
    center: float  # N_0
    spread: float  # standard deviation of log ratios around the line

    def at(self, parameters: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The line and its 95 % confidence band: estimate, low, high."""
        shift = np.log(np.asarray(parameters, float) / self.center)
        log_n = np.log(self.parameters / self.center)
        count = len(log_n)
        middle = np.log(self.ratio.estimate) + self.slope.estimate * shift
        if count < 3:
            nothing = np.full_like(middle, np.nan)
            return np.exp(middle), nothing, nothing
        error = self.spread * np.sqrt(1 / count + shift**2 / np.sum(log_n**2))
        half = stats.t.ppf((1 + LEVEL) / 2, count - 2) * error
        return np.exp(middle), np.exp(middle - half), np.exp(middle + half)


def fit_ratio(
    parameters: ArrayLike, student: ArrayLike, teacher: ArrayLike
) -> RatioFit:
    """The line through ratios of pairs, by least squares, with Student's intervals.

    Pairs of one teacher share its error: give one pair per size, such as means over
    seeds, where the teacher has a single run.

    Args:
      parameters: N of each pair, ``(n,)``.
      student, teacher: quality of each, positive.

    Raises:
      ValueError: values that are not positive and finite, or fewer than 2 sizes.

    Example:
      >>> fit = fit_ratio([1e8, 2e8, 4e8], [2.2, 1.8, 1.5], [2.0, 1.6, 1.4])
      >>> round(fit.ratio.estimate, 3)
      1.099
    """
    given = {"parameters": parameters, "student": student, "teacher": teacher}
    n, s, t = (columns.positive(values, name) for name, values in given.items())
    if len(np.unique(n)) < 2:
        raise ValueError(f"a slope over sizes needs 2 sizes, there is {np.unique(n)}")
    center = float(np.exp(np.log(n).mean()))
    shift, log_ratio = np.log(n / center), np.log(s / t)
    square = float(np.sum(shift**2))
    level, slope = float(log_ratio.mean()), float(shift @ log_ratio / square)
    ratio, spread = Interval(float(np.exp(level))), float("nan")
    slopes = Interval(slope)
    if free := len(n) - 2:
        rest = log_ratio - level - slope * shift
        spread = float(np.sqrt(np.sum(rest**2) / free))
        quantile = float(stats.t.ppf((1 + LEVEL) / 2, free))
        wide, steep = quantile * spread / len(n) ** 0.5, quantile * spread / square**0.5
        ratio = Interval(*(float(np.exp(level + d)) for d in (0.0, -wide, wide)))
        slopes = Interval(slope, slope - steep, slope + steep)
    return RatioFit(n, s / t, ratio, slopes, center, spread)


def published_ratio(
    dataset: str, metric: str, method: str = "scd", steps: int = 2
) -> RatioFit:
    """The ratio of the paper's own students to its own teachers, size by size.

    Each number is at the guidance that its authors found best for it.

    Args:
      dataset: ``imagenet64`` or ``imagenet512``.
      metric: ``fid`` or ``fd_dinov2``.
      method: ``scd``, ``sct``, ``scd_vsd`` or ``multistep_scd``.
      steps: of the student's sampler.

    Raises:
      ValueError: the table has fewer than 2 sizes of them.

    Example:
      >>> fit = published_ratio("imagenet512", "fid")
      >>> f"{fit.ratio.estimate:.2f}", 0 in fit.slope
      ('1.09', True)
    """
    # Imported here, as the module of the table imports jax to count compute.
    from scm_jax.analysis.laws.published import load_published

    rows = load_published(dataset, metric)
    teachers = {r.size: r for r in rows if r.method == "teacher"}
    students = [
        r for r in rows if (r.method, r.steps) == (method, steps) and r.size in teachers
    ]
    if len(students) < 2:
        known = sorted({(r.method, r.steps) for r in rows})
        raise ValueError(
            f"no sizes of {method} at {steps} steps on {dataset} by {metric}; the "
            f"table has {known}"
        )
    return fit_ratio(
        [r.params for r in students],
        [r.value for r in students],
        [teachers[r.size].value for r in students],
    )


def ratio_by_size(frame: pd.DataFrame, student: str, teacher: str) -> RatioFit:
    """The same of runs: each student beside the run that ``teacher_id`` names.

    Each size counts once, with the geometric mean of its seeds.

    Args:
      frame: one row per run, as ``load_runs`` returns it, teachers among them.
      student, teacher: columns of their quality, such as ``2_steps/frechet_distance``
        and ``18_steps/frechet_distance``.

    Raises:
      ValueError: no student has its teacher and both qualities in the table.
    """
    frame = columns.numeric(frame, student, teacher, "parameters")
    known = frame[frame["teacher_id"].isin(frame.index) & (frame[student] > 0)]
    teachers = frame.loc[known["teacher_id"], teacher].to_numpy(float)
    log_s, log_t = np.log(known[student].to_numpy(float)), np.log(teachers)
    pairs = known[["parameters"]].assign(student=log_s, teacher=log_t).dropna()
    if pairs.empty:
        raise ValueError(
            f"no run has {student!r} and, by its teacher_id, a teacher with {teacher!r}"
        )
    means = pairs.groupby("parameters").mean()
    return fit_ratio(
        means.index.to_numpy(float), np.exp(means["student"]), np.exp(means["teacher"])
    )
