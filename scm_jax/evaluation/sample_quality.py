"""Distance, precision and recall of samples in the features of a small network.

How to add features for another dataset: write a function ``(subject) -> Extractor``,
add it to ``FEATURES``, and enter ``SampleQuality(features="its name")`` in
``EVALUATORS``.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np

from scm_jax.evaluation.features import digits_classifier, shapes_classifier
from scm_jax.evaluation.metrics import frechet, neighbours
from scm_jax.evaluation.protocol import Measured, protocol_of
from scm_jax.evaluation.subject import Subject, require_positive, require_seeds
from scm_jax.types import lookup

_BLOCK = 512  # data whose features are extracted at a time


@dataclasses.dataclass(frozen=True)
class Extractor:
    """A feature space and, where it comes from a classifier, its decision.

    Attributes:
      features: float32 data ``(n, *sample_shape)`` -> ``(n, d)``.
      classify: ``(n, d)`` features -> ``(n,)`` int classes, or None.
      sha256: of the weights, ``none`` where there are none.
    """

    features: Callable[[np.ndarray], np.ndarray]
    classify: Callable[[np.ndarray], np.ndarray] | None = None
    sha256: str = "none"

    def extract(self, x: np.ndarray) -> np.ndarray:
        """``features`` over blocks of ``x``, float64."""
        starts = range(0, len(x), _BLOCK)
        blocks = (self.features(x[i : i + _BLOCK]) for i in starts)
        return np.concatenate([np.asarray(block, np.float64) for block in blocks])


def frozen(name: str, network: Any) -> Callable[[Subject], Extractor]:
    """The features of a frozen classifier that is package data, on quantized pixels."""

    def extractor(subject: Subject) -> Extractor:
        to_pixels = subject.need("to_pixels", f"features {name!r}")
        weights = network.load_weights()
        return Extractor(
            features=lambda x: network.features(weights, to_pixels(x)),
            classify=lambda h: network.logits(weights, h).argmax(-1),
            sha256=network.WEIGHTS_SHA256,
        )

    return extractor


FEATURES: dict[str, Callable[[Subject], Extractor]] = {
    "digits_classifier": frozen("digits_classifier", digits_classifier),
    "shapes_classifier": frozen("shapes_classifier", shapes_classifier),
    # The values themselves: for vectors, and a baseline without a classifier.
    "raw": lambda subject: Extractor(features=lambda x: x.reshape(len(x), -1)),
}


@dataclasses.dataclass(frozen=True)
class SampleQuality:
    """Distance, precision and recall of samples against all real data.

    Labels are requested in the reference's proportions. Samples and real data pass
    through the same ``to_pixels``. With several seeds every number is the mean over
    them, never the best.

    Attributes:
      features: a key of ``FEATURES``.
      steps: steps of the sampler.
      seed: of the first set of samples; the further ones use the integers after it.
      num_seeds: sets of samples.
      num_samples: size of a set; 0 takes as many as there are real data, the only size
        at which the distance compares with the floor.
      num_neighbours: k of precision and recall.
      floor_splits: random splits behind the floor.
    """

    features: str = "digits_classifier"
    steps: int = 2
    seed: int = 0
    num_seeds: int = 1
    num_samples: int = 0
    num_neighbours: int = 3
    floor_splits: int = 10

    def __post_init__(self):
        lookup(FEATURES, self.features, "evaluator setting features")
        positive = ("steps", "num_seeds", "num_neighbours", "floor_splits")
        require_positive(self, *positive)
        require_positive(self, "num_samples", least=0)
        require_seeds(self)

    def __call__(self, subject: Subject) -> dict[str, Any]:
        """Metrics of ``subject``, which needs ``generate`` and ``reference``.

        Returns:
          ``frechet_distance``, with two seeds or more ``frechet_distance_std``;
          ``frechet_floor`` and ``frechet_floor_std`` (``frechet.halves_floor``);
          ``precision``, ``recall``; with labels and a classifier ``class_accuracy``,
          the share of samples classified as the label they were asked for;
          ``num_samples``, ``num_seeds``, ``seed``, ``steps``; ``protocol`` if the
          subject says how it is sampled.

        Raises:
          ValueError: a missing part, or samples of another shape or not finite.
        """
        x, labels = subject.need("reference", "sample quality")()
        extractor = FEATURES[self.features](subject)
        real = extractor.extract(x)
        shape = (self.num_samples or len(x), *x.shape[1:])
        if labels is not None:
            labels = labels_in_proportion(labels, shape[0])
        rows = []
        for seed in range(self.seed, self.seed + self.num_seeds):
            samples = draw(subject, shape, self.steps, seed, labels)
            fake = extractor.extract(samples)
            shares = neighbours.precision_recall(real, fake, self.num_neighbours)
            distance = frechet.feature_distance(real, fake)
            rows.append({"frechet_distance": distance, **shares._asdict()})
            if labels is not None and extractor.classify is not None:
                right = extractor.classify(fake) == labels
                rows[-1]["class_accuracy"] = float(right.mean())
        measured = {k: Measured(tuple(row[k] for row in rows)) for k in rows[0]}
        metrics: dict[str, Any] = {name: m.value for name, m in measured.items()}
        if self.num_seeds > 1:
            metrics["frechet_distance_std"] = measured["frechet_distance"].std
        if subject.sampling:
            rule = "none"
            if extractor.sha256 != "none":
                rule = subject.need("quantization", "a protocol")()
            metrics["protocol"] = protocol_of(
                self,
                subject.sampling,
                metric=f"frechet_distance, prdc(k={self.num_neighbours})",
                extractor=self.features,
                extractor_sha256=extractor.sha256,
                resize="none",
                quantization=rule,
                reference=subject.dataset,
                reference_sha256=hashlib.sha256(x.tobytes()).hexdigest(),
                reference_count=len(x),
                num_samples=shape[0],
            )
        floor, floor_std = frechet.halves_floor(real, self.floor_splits)
        return metrics | {
            "frechet_floor": floor,
            "frechet_floor_std": floor_std,
            "num_samples": shape[0],
            "num_seeds": self.num_seeds,
            "seed": self.seed,
            "steps": self.steps,
        }


def draw(
    subject: Subject,
    shape: tuple[int, ...],
    steps: int,
    seed: int,
    labels: np.ndarray | None,
    **asked: Any,
) -> np.ndarray:
    """Samples of ``subject``, of exactly ``shape`` and finite, or a ValueError."""
    generate = subject.need("generate", "sample quality")
    samples = np.asarray(generate(shape[0], steps, seed, labels, **asked))
    if samples.shape != shape:
        raise ValueError(f"generate returned {samples.shape}: expected {shape}")
    # Converting to pixels would turn a NaN into some grey value.
    bad = ~np.isfinite(samples.reshape(len(samples), -1)).all(axis=1)
    if bad.any():
        raise ValueError(
            f"{bad.sum()} of {len(samples)} samples are not finite"
            f" (steps {steps}, seed {seed}, the first is sample {bad.argmax()})"
        )
    return samples


def labels_in_proportion(labels: np.ndarray, num: int) -> np.ndarray:
    """``num`` labels, each as often as in ``labels`` to within one; ``(num,)`` int32.

    These are evenly spaced quantiles of the sorted labels.

    Example:
      >>> labels_in_proportion(np.array([1, 0, 1, 1]), 8).tolist()
      [0, 0, 1, 1, 1, 1, 1, 1]
    """
    position = (2 * np.arange(num) + 1) * len(labels) // (2 * num)
    return np.sort(labels)[position].astype(np.int32)
