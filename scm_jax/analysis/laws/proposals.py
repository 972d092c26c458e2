"""Which runs to make next with a budget of FLOPs, written as a sweep file.

The rule, in two halves of the budget:

1. *optimum*: the largest new budget C that three sizes fit into (at most ``horizon``
   times the largest one measured), run at the candidate next to the predicted
   ``N_opt(C)``, the one below and the one above. Their valley tests the prediction.
2. *uncertain*: of all candidates at all budgets (the measured ones and C), the run that
   takes most variance from the predicted ``log N_opt(C)`` per FLOP, by the covariance
   of its loss and the optimum over replicates of the law; then the next one given the
   first, until the FLOPs are spent. Repeats with other seeds compete like all others.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import pprint
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scm_jax.analysis.laws.fit import ScalingFit
from scm_jax.files.atomic import write_atomically

_SET_HERE = ("train.flops", "seed", "tags")
_NEIGHBOURS = 3  # the nearest size, one below, one above


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A size that can be trained."""

    parameters: float  # its N
    overrides: Mapping[str, Any]  # config keys that make it: {"network.width": 48}


@dataclasses.dataclass(frozen=True)
class Proposal:
    """A run to make."""

    candidate: Candidate
    flops: float  # of its training
    images: float  # D that they buy, by the fit's FLOPs per image
    seed: int  # counts on from the runs of this size and budget that were fitted
    reason: str  # "optimum" or "uncertain"
    expected_loss: float  # by the law


def propose(
    fit: ScalingFit,
    candidates: Sequence[Candidate],
    total_flops: float,
    *,
    horizon: float = 10.0,
    max_seeds: int = 2,
) -> list[Proposal]:
    """The next runs by the rule of this module; together at most ``total_flops``.

    Args:
      fit: a study with intervals.
      candidates: three sizes at least.
      total_flops: training FLOPs of all runs together.
      horizon: how far beyond the largest measured budget the new one may lie.
      max_seeds: how often the second half may propose one size at one budget.

    Raises:
      ValueError: too few candidates, a fit without intervals or without an optimum, or
        a budget below what the cheapest measured runs cost.
    """
    if (found := len(candidates)) < _NEIGHBOURS:
        raise ValueError(f"{found} candidates: {_NEIGHBOURS} sizes are needed")
    if fit.replicates is None:
        raise ValueError("the fit has no intervals, so nothing tells what is uncertain")
    candidates = sorted(candidates, key=lambda c: c.parameters)
    log_c = np.log(fit.flops)
    kinds = np.unique(fit.budgets)
    measured = [float(np.exp(np.mean(log_c[fit.budgets == b]))) for b in kinds]
    new = min(total_flops / 2 / _NEIGHBOURS, horizon * max(measured))
    if new < min(measured):
        raise ValueError(
            f"total_flops = {total_flops:.3g} is too little: half of it buys "
            f"{_NEIGHBOURS} runs of {new:.3g} FLOPs, below the smallest budget of the "
            f"fit, {min(measured):.3g}"
        )
    best = float(fit.law.optimum(new, fit.flops_per_image).parameters)
    if not np.isfinite(best):
        raise ValueError("the law has no optimum: one of its terms is missing")
    gaps = [abs(np.log(c.parameters / best)) for c in candidates]
    middle = int(np.clip(np.argmin(gaps), 1, len(candidates) - 2))
    first = [(c, new) for c in candidates[middle - 1 : middle + 2]]
    pool = [(c, flops) for c in candidates for flops in {*measured, new}]
    rest = _spend(fit, pool, first, total_flops - _NEIGHBOURS * new, max_seeds)
    pairs = zip(fit.parameters, fit.budgets, strict=True)
    runs = collections.Counter((float(n), measured[b]) for n, b in pairs)
    proposals: list[Proposal] = []
    for candidate, flops in first + rest:
        key = (float(candidate.parameters), flops)
        seed = runs[key]
        runs[key] += 1
        images = flops / float(fit.flops_per_image(candidate.parameters))
        loss = float(fit.law(candidate.parameters, images))
        reason = "optimum" if len(proposals) < len(first) else "uncertain"
        proposals.append(Proposal(candidate, flops, images, seed, reason, loss))
    return proposals


def write_proposals(
    path: str | os.PathLike,
    proposals: Sequence[Proposal],
    base: str,
    *,
    common: Mapping[str, Any] | None = None,
    metrics: Sequence[str] = (),
    about: str = "",
) -> Path:
    """Writes a sweep file that yields the proposals, for ``scm sweep plan``.

    Args:
      path: the file, which is returned.
      proposals: from ``propose``.
      base: config file and argument of all runs: ``experiments/digits.py:sct``.
      common: config keys that all runs share.
      metrics: columns shown by default.
      about: a line of the file's text, such as where the fit came from.

    Raises:
      ValueError: no proposals, or overrides that set what the proposals set.
    """
    if not proposals:
        raise ValueError("there are no proposals to write")
    lines = []
    for proposal in proposals:
        overrides = {**(common or {}), **proposal.candidate.overrides}
        if taken := sorted(set(overrides) & set(_SET_HERE)):
            raise ValueError(f"overrides set {taken}: proposals do that")
        row = overrides | {"train.flops": float(f"{proposal.flops:.6g}")}
        row |= {"seed": proposal.seed, "tags": ("proposed", proposal.reason)}
        lines.append(
            f"    # {proposal.candidate.parameters:.4g} parameters, "
            f"{proposal.images:.4g} images, loss {proposal.expected_loss:.4g} expected"
        )
        text = pprint.pformat(row, width=70, sort_dicts=False)
        lines.append("    yield " + text.replace("\n", "\n          "))
    total = sum(proposal.flops for proposal in proposals)
    head = f'''"""{len(proposals)} proposed runs, {total:.4g} training FLOPs in all.

Tag optimum: sizes around the predicted best one of a new, larger budget.
Tag uncertain: runs that tell most about that size, per FLOP.
{about + chr(10) if about else ""}"""

BASE = {base!r}
METRICS = {tuple(metrics)!r}


def sweep(arg=""):
    """One run per proposal."""
'''
    path = Path(path)
    write_atomically(path, head + "\n".join(lines) + "\n")
    return path


def _spend(
    fit: ScalingFit,
    pool: Sequence[tuple[Candidate, float]],
    first: Sequence[tuple[Candidate, float]],
    money: float,
    max_seeds: int,
) -> list[tuple[Candidate, float]]:
    """Runs by variance of ``log N_opt`` taken per FLOP, as long as they are affordable.

    The optimum is that of the budget of the runs ``first``, which are made in any case.
    """
    laws, new = fit.replicates, first[0][1]
    assert laws is not None
    target = np.log(laws.optimum(new, fit.flops_per_image).parameters)
    kept = np.isfinite(target)
    target = target[kept] - target[kept].mean()
    sizes, costs = np.array([(c.parameters, flops) for c, flops in pool]).T
    images = costs / fit.flops_per_image(sizes)
    pairs = zip(sizes, images, strict=True)
    losses = np.stack([np.log(laws(n, d))[kept] for n, d in pairs])
    losses = losses - losses.mean(1, keepdims=True)
    noise = max(fit.noise, 1e-6) ** 2
    times = np.zeros(len(pool), int)
    for pair in first:  # they tell something already
        target, losses = _given(target, losses, pool.index(pair), noise)
        times[pool.index(pair)] += 1
    chosen: list[tuple[Candidate, float]] = []
    while True:
        variance = (losses**2).mean(1) + noise
        gain = (losses @ target / len(target)) ** 2 / variance / costs
        allowed = (costs <= money) & (times < max_seeds)
        if not allowed.any():
            return chosen
        at = int(np.argmax(np.where(allowed, gain, -1.0)))
        chosen.append(pool[at])
        target, losses = _given(target, losses, at, noise)
        times[at] += 1
        money -= costs[at]


def _given(
    target: np.ndarray, losses: np.ndarray, at: int, noise: float
) -> tuple[np.ndarray, np.ndarray]:
    """Replicates as they would spread once run ``at`` was measured.

    The linear (Kalman) update of an ensemble, with a root that makes its variance right
    and not only its mean.
    """
    seen = losses[at]
    variance = float(np.mean(seen**2))
    whole = variance + noise
    share = 1 / (1 + np.sqrt(noise / whole))
    target = target - share * (target @ seen / len(seen)) / whole * seen
    gains = share * (losses @ seen / len(seen)) / whole
    return target, losses - gains[:, None] * seen
