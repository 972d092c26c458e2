"""All metrics over features in one call, by name.

How to add one: write ``(real, fake, **settings) -> numbers`` over ``(n, d)`` features,
and add a line to ``SETTINGS`` and one to ``OF_FEATURES``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import log_softmax

from scm_jax.evaluation.metrics import frechet, kernel, neighbours, wasserstein
from scm_jax.evaluation.metrics.frechet import sample_std
from scm_jax.types import lookup

# Metric -> what changes its number and is the field's habit; see the functions.
SETTINGS: dict[str, dict[str, Any]] = {
    "fid": {},
    "sfid": {},
    "kid": {"num_subsets": 100, "subset_size": 1000, "seed": 0},
    "prdc": {"k_precision_recall": 3, "k_density_coverage": 5},
    "is": {"split_size": 5000},
    "mind": {"num_projections": 1000, "seed": 0},
}


@dataclasses.dataclass(frozen=True)
class FeatureSet:
    """What is known of one set of images under a network.

    Attributes:
      name: of the set, for messages.
      moments: mean and covariance of the outputs ``features`` and ``spatial``.
      outputs: the outputs themselves: ``features`` ``(n, d)``, such as Inception's
        pool3 or DINOv2's class token; ``logits`` ``(n, classes)`` without the bias of
        the last layer.
    """

    name: str
    moments: Mapping[str, tuple[np.ndarray, np.ndarray]] = dataclasses.field(
        default_factory=dict
    )
    outputs: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def need(self, kind: str, output: str, metric: str) -> Any:
        """``moments`` or ``outputs`` of an output; ValueError if they are missing."""
        known = getattr(self, kind)
        if output not in known:
            raise ValueError(
                f"metric {metric!r} needs {kind} of {output!r} of {self.name}, which"
                f" has moments of {list(self.moments)} and outputs {list(self.outputs)}"
                " (moments are enough for fid and sfid only)"
            )
        return known[output]


def compare(
    real: FeatureSet, fake: FeatureSet, metrics: Sequence[str]
) -> dict[str, float]:
    """Metrics of ``fake`` against ``real`` with the settings of ``SETTINGS``.

    Example:
      >>> line = np.arange(8.0)[:, None]
      >>> real, fake = (FeatureSet("", outputs={"features": x}) for x in (line, line))
      >>> compare(real, fake, ["prdc"])["recall"]
      1.0

    Args:
      real: the reference; nothing of it is needed for ``is``.
      fake: the samples.
      metrics: keys of ``SETTINGS``.

    Returns:
      ``fid``, ``sfid``; ``kid``, ``kid_std``, ``kid_low``, ``kid_high``; ``precision``,
      ``recall``, ``density``, ``coverage``; ``inception_score``,
      ``inception_score_std``; ``mind``, ``mind_error``.

    Raises:
      ValueError: an unknown metric, or a set that lacks what a metric needs.
    """
    row: dict[str, float] = {}
    for metric in metrics:
        settings = lookup(SETTINGS, metric, "metric")
        if metric in ("fid", "sfid"):
            output = {"fid": "features", "sfid": "spatial"}[metric]
            moments = [s.need("moments", output, metric) for s in (real, fake)]
            row[metric] = frechet.gaussian_frechet(*moments[0], *moments[1])
        elif metric == "is":
            score = inception_score(fake.need("outputs", "logits", metric), **settings)
            row |= {"inception_score": score.mean, "inception_score_std": score.std}
        else:
            sets = [s.need("outputs", "features", metric) for s in (real, fake)]
            row |= OF_FEATURES[metric](*sets, **settings)
    return row


def protocol_metric(metric: str) -> str:
    """``metric`` with the settings that change its number, for ``Protocol.metric``.

    Example:
      >>> protocol_metric("is")
      'is(split_size=5000)'
    """
    settings = lookup(SETTINGS, metric, "metric")
    inside = ",".join(f"{name}={value}" for name, value in settings.items())
    return f"{metric}({inside})" if inside else metric


def _kid(real: np.ndarray, fake: np.ndarray, **settings: Any) -> dict[str, float]:
    found = kernel.kid(real, fake, **settings)
    names = ("kid", "kid_std", "kid_low", "kid_high")
    return dict(zip(names, found, strict=True))


def _prdc(
    real: np.ndarray, fake: np.ndarray, k_precision_recall: int, k_density_coverage: int
) -> dict[str, float]:
    shares = neighbours.precision_recall(real, fake, k_precision_recall)
    balls = neighbours.density_coverage(real, fake, k_density_coverage)
    return {**shares._asdict(), **balls._asdict()}


def _mind(real: np.ndarray, fake: np.ndarray, **settings: Any) -> dict[str, float]:
    found = wasserstein.mind(real, fake, **settings)
    return {"mind": found.value, "mind_error": found.standard_error}


# Metrics that need the features of both sets, and not only their moments.
OF_FEATURES: dict[str, Callable[..., dict[str, float]]] = {
    "kid": _kid,
    "mind": _mind,
    "prdc": _prdc,
}


# --- The Inception Score --------------------------------------------------------------


class InceptionScore(NamedTuple):
    """Mean over the splits, and their unbiased standard deviation (0 for a single one).

    Most published deviations divide by the number of splits instead.
    """

    mean: float
    std: float


def inception_score(logits: np.ndarray, split_size: int = 5000) -> InceptionScore:
    """``exp(mean_x KL(p(y|x) || p(y)))`` of each split, with ``p(y)`` of that split.

    The published ImageNet numbers use the evaluator of arXiv 2105.05233: logits without
    the bias of the last layer, splits of 5,000 in the order of the samples, the last
    one shorter, and the mean over the splits. The score changes with the size of a
    split, and with the order of samples that are sorted by class.

    Example:
      >>> inception_score(np.diag([99.0, 99.0]))
      InceptionScore(mean=2.0, std=0.0)

    Args:
      logits: ``(n, classes)``, for Inception ``logits_unbiased`` with 1008 columns.
      split_size: samples in a split.

    Raises:
      ValueError: no samples, another shape, values that are not finite, or no split.
    """
    logits = np.asarray(logits)
    if logits.ndim != 2 or not logits.size:
        raise ValueError(f"logits have shape {logits.shape}: expected (n, classes)")
    if not np.isfinite(logits).all():
        raise ValueError("logits hold values that are not finite")
    if split_size < 1:
        raise ValueError(f"split_size = {split_size}: must be at least 1")
    splits = range(0, len(logits), split_size)
    scores = [_score(logits[i : i + split_size]) for i in splits]
    return InceptionScore(float(np.mean(scores)), sample_std(scores))


def _score(logits: np.ndarray) -> float:
    log_p = log_softmax(logits.astype(np.float64), axis=1)
    p = np.exp(log_p)
    marginal = p.mean(axis=0)
    # A class of probability 0 in every sample adds 0 log 0 = 0.
    log_marginal = np.log(np.where(marginal > 0, marginal, 1.0))
    divergence = (p * (log_p - log_marginal[None])).sum(axis=1)
    return float(np.exp(divergence.mean()))
