"""All metrics over features in one call, by name.

How to add one: write ``(real, fake, **settings) -> numbers`` over ``(n, d)`` features,
and add a line to ``SETTINGS`` and one to ``OF_FEATURES``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from scm_jax.evaluation.metrics import frechet, kernel, neighbours
from scm_jax.evaluation.metrics.inception_score import inception_score
from scm_jax.types import lookup

# Metric -> what changes its number and is the field's habit; see the functions.
SETTINGS: dict[str, dict[str, Any]] = {
    "fid": {},
    "sfid": {},
    "kid": {"num_subsets": 100, "subset_size": 1000, "seed": 0},
    "prdc": {"k_precision_recall": 3, "k_density_coverage": 5},
    "is": {"split_size": 5000},
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
      ``inception_score_std``.

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


# Metrics that need the features of both sets, and not only their moments.
OF_FEATURES: dict[str, Callable[..., dict[str, float]]] = {"kid": _kid, "prdc": _prdc}
