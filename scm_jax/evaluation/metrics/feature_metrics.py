"""All metrics over features in one call, by name.

How to add one: write ``(real, fake) -> dict of numbers``, add a line to ``METRICS``,
and its settings to ``SETTINGS``, so that ``protocol_metric`` tells them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from scm_jax.evaluation.metrics import frechet, kernel, neighbours, wasserstein
from scm_jax.evaluation.metrics.inception_score import inception_score
from scm_jax.types import lookup

Gaussian = tuple[np.ndarray, np.ndarray]

# What changes a number and is the field's habit; see the functions.
SETTINGS: dict[str, dict[str, Any]] = {
    "fid": {},
    "sfid": {},
    "kid": {"num_subsets": 100, "subset_size": 1000, "seed": 0},
    "cmmd": {"sigma": 10.0, "biased": True, "scale": 1000.0, "seed": 0},
    "prdc": {"k_precision_recall": 3, "k_density_coverage": 5},
    "is": {"split_size": 5000},
    "sw": {"num_projections": 1000, "seed": 0},
    "mind": {"num_projections": 1000, "seed": 0},
}


@dataclasses.dataclass(frozen=True)
class FeatureSet:
    """What is known of one set of images; a field is None where it is not known.

    Attributes:
      features: ``(n, d)``, such as Inception's pool3 or DINOv2's class token.
      spatial: ``(n, 17, 17, 7)`` or flattened in that order, for sFID.
      logits: ``(n, classes)`` without the bias of the last layer, for the score.
      gaussian: mean and covariance of ``features``, as in a file of statistics.
      spatial_gaussian: the same of ``spatial``.
      name: of the set, for messages.
    """

    features: np.ndarray | None = None
    spatial: np.ndarray | None = None
    logits: np.ndarray | None = None
    gaussian: Gaussian | None = None
    spatial_gaussian: Gaussian | None = None
    name: str = "a set"

    def need(self, field: str, metric: str) -> Any:
        """The value of ``field``, or an error that says which metric needs it."""
        value = getattr(self, field)
        if value is None:
            known = [
                entry.name
                for entry in dataclasses.fields(self)
                if entry.name != "name" and getattr(self, entry.name) is not None
            ]
            raise ValueError(
                f"metric {metric!r} needs {field} of {self.name}, which has"
                f" {', '.join(known) or 'nothing'}"
                " (a mean and a covariance are enough for fid and sfid only)"
            )
        return value

    def moments(self, field: str, metric: str) -> Gaussian:
        """Mean and covariance of ``features`` or ``spatial``, given or computed."""
        given = {"features": self.gaussian, "spatial": self.spatial_gaussian}[field]
        if given is not None:
            return given
        values = np.asarray(self.need(field, metric))
        stats = frechet.feature_stats(values.reshape(len(values), -1))
        return stats.mean, stats.covariance


def compare(
    real: FeatureSet,
    fake: FeatureSet,
    metrics: Sequence[str] = ("fid", "kid", "prdc", "is", "sfid", "sw"),
) -> dict[str, float]:
    """Metrics of ``fake`` against ``real`` with the settings of ``SETTINGS``.

    Example:
      >>> line = np.arange(8.0)[:, None]
      >>> f"{compare(FeatureSet(line), FeatureSet(line + 0.5), ['fid'])['fid']:.3f}"
      '0.250'

    Args:
      real: the reference; its mean and covariance are enough for ``fid`` and ``sfid``,
        and nothing of it is needed for ``is``.
      fake: the samples.
      metrics: keys of ``METRICS``.

    Returns:
      ``fid``, ``sfid``; ``kid``, ``kid_std``, ``kid_low``, ``kid_high``; ``cmmd``,
      ``cmmd_low``, ``cmmd_high``; ``precision``, ``recall``, ``density``, ``coverage``;
      ``inception_score``, ``inception_score_std``; ``sliced_wasserstein``,
      ``sliced_wasserstein_error``; ``mind``, ``mind_error``.

    Raises:
      ValueError: an unknown metric, or a set that lacks what a metric needs.
    """
    row: dict[str, float] = {}
    for metric in metrics:
        row |= lookup(METRICS, metric, "metric")(real, fake)
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


def _fid(real: FeatureSet, fake: FeatureSet) -> dict[str, float]:
    moments = [each.moments("features", "fid") for each in (real, fake)]
    return {"fid": frechet.gaussian_frechet(*moments[0], *moments[1])}


def _sfid(real: FeatureSet, fake: FeatureSet) -> dict[str, float]:
    moments = [each.moments("spatial", "sfid") for each in (real, fake)]
    return {"sfid": frechet.gaussian_frechet(*moments[0], *moments[1])}


def _kid(real: FeatureSet, fake: FeatureSet) -> dict[str, float]:
    found = kernel.kid(*_features(real, fake, "kid"), **SETTINGS["kid"])
    names = {"value": "kid", "std": "kid_std", "low": "kid_low", "high": "kid_high"}
    return {name: getattr(found, field) for field, name in names.items()}


def _cmmd(real: FeatureSet, fake: FeatureSet) -> dict[str, float]:
    units = [
        x / np.linalg.norm(x, axis=1, keepdims=True)
        for x in _features(real, fake, "cmmd")
    ]
    value, low, high = kernel.rbf_mmd(*units, **SETTINGS["cmmd"])
    return {"cmmd": value, "cmmd_low": low, "cmmd_high": high}


def _prdc(real: FeatureSet, fake: FeatureSet) -> dict[str, float]:
    sets, settings = _features(real, fake, "prdc"), SETTINGS["prdc"]
    shares = neighbours.precision_recall(*sets, settings["k_precision_recall"])
    balls = neighbours.density_coverage(*sets, settings["k_density_coverage"])
    return {**shares._asdict(), **balls._asdict()}


def _is(real: FeatureSet, fake: FeatureSet) -> dict[str, float]:
    del real
    mean, std = inception_score(fake.need("logits", "is"), **SETTINGS["is"])
    return {"inception_score": mean, "inception_score_std": std}


def _sw(real: FeatureSet, fake: FeatureSet) -> dict[str, float]:
    value, error = wasserstein.sliced_wasserstein(
        *_features(real, fake, "sw"), **SETTINGS["sw"]
    )
    return {"sliced_wasserstein": value, "sliced_wasserstein_error": error}


def _mind(real: FeatureSet, fake: FeatureSet) -> dict[str, float]:
    value, error = wasserstein.mind(*_features(real, fake, "mind"), **SETTINGS["mind"])
    return {"mind": value, "mind_error": error}


def _features(
    real: FeatureSet, fake: FeatureSet, metric: str
) -> tuple[np.ndarray, np.ndarray]:
    return real.need("features", metric), fake.need("features", metric)


METRICS: dict[str, Callable[[FeatureSet, FeatureSet], dict[str, float]]] = {
    "fid": _fid,
    "sfid": _sfid,
    "kid": _kid,
    "cmmd": _cmmd,
    "prdc": _prdc,
    "is": _is,
    "sw": _sw,
    "mind": _mind,
}
