"""Evaluators: frozen settings, called with what a run hands in, returning numbers.

An evaluator knows no network and no objective: ``Subject`` carries the callables.
Known-good settings are the entries of ``EVALUATORS`` in ``scm_jax.evaluation``.

How to add features for another dataset: write a function ``(subject) -> Extractor``,
add it to ``FEATURES``, and enter ``SampleQuality(features="its name")`` in
``EVALUATORS``.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import ndtri

from scm_jax import trigflow
from scm_jax.evaluation import classifier, frechet, neighbours
from scm_jax.trigflow import Time
from scm_jax.types import lookup


class Generate(Protocol):
    """Samples with everything already chosen but these four."""

    def __call__(
        self, num: int, steps: int, seed: int, labels: np.ndarray | None
    ) -> np.ndarray:
        """``(num, *sample_shape)`` float32; sample i depends on ``seed`` and i only."""
        ...


class ClosedForm(Protocol):
    """Data with a known consistency function, as in ``scm_jax.datasets.synthetic``.

    Hashable, so that evaluations during training share one compiled function.
    """

    def sample(self, rng: np.random.Generator, num: int) -> np.ndarray:
        """``(num, *sample_shape)`` float32 data."""
        ...

    def consistency(self, x: Any, t: Time, sigma_data: float) -> Any:
        """The exact ``f(x_t, t)``, in the shape of ``x``; traced by JAX."""
        ...


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is evaluated. A field may be None where no chosen evaluator needs it.

    Attributes:
      sigma_data: standard deviation of the data, and of the noise.
      generate: the sampler of the run.
      f: ``(x_t (b, ...), t (b,)) -> (b, ...)``, the consistency function of a student.
      reference: real data, float32 ``(n, *sample_shape)``, and int labels ``(n,)`` or
        None for unlabelled data.
      to_pixels: float data -> uint8 pixels ``(n, h, w, c)``, of the dataset.
      closed_form: the distribution of the data where it is known.
    """

    sigma_data: float
    generate: Generate | None = None
    f: Callable[[Any, Any], Any] | None = None
    reference: tuple[np.ndarray, np.ndarray | None] | None = None
    to_pixels: Callable[[np.ndarray], np.ndarray] | None = None
    closed_form: ClosedForm | None = None

    def need(self, field: str, by: str) -> Any:
        """The value of ``field``, or an error that says who needs it."""
        value = getattr(self, field)
        if value is None:
            raise ValueError(f"{by} needs Subject.{field}, which this run has not")
        return value


class Evaluator(Protocol):
    """``metrics = evaluator(subject)``: numbers by name, ready for JSON."""

    def __call__(self, subject: Subject) -> dict[str, float]: ...


# --- Sample quality -------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Extractor:
    """A feature space and, where it comes from a classifier, its decision.

    Attributes:
      features: float32 data ``(n, *sample_shape)`` -> ``(n, d)``.
      classify: ``(n, d)`` features -> ``(n,)`` int classes, or None.
    """

    features: Callable[[np.ndarray], np.ndarray]
    classify: Callable[[np.ndarray], np.ndarray] | None = None


def digits_classifier(subject: Subject) -> Extractor:
    """The frozen digits classifier on quantized pixels, in float64."""
    to_pixels = subject.need("to_pixels", "features 'digits_classifier'")
    weights = classifier.load_weights()
    return Extractor(
        features=lambda x: classifier.features(weights, to_pixels(x)),
        classify=lambda h: classifier.logits(weights, h).argmax(-1),
    )


def raw(subject: Subject) -> Extractor:
    """The values themselves: for vectors, and a baseline that needs no classifier."""
    del subject
    return Extractor(features=lambda x: x.reshape(len(x), -1))


FEATURES: dict[str, Callable[[Subject], Extractor]] = {
    "digits_classifier": digits_classifier,
    "raw": raw,
}


@dataclasses.dataclass(frozen=True)
class SampleQuality:
    """Distance, precision and recall of samples against all real data.

    Labels are requested in the reference's proportions. Samples and real data pass
    through the same ``to_pixels``. Next to the distance stands ``frechet_floor``, that
    of two random halves of the real data: a perfect sampler scores half of it or less,
    see ``frechet.halves_floor``. With several seeds every number is the mean over them,
    never the best, and ``frechet_distance_std`` is their standard deviation.

    Attributes:
      features: a key of ``FEATURES``.
      steps: steps of the sampler.
      seed: of the first set of samples; the further ones use the integers after it.
      num_seeds: sets of samples.
      num_samples: size of a set; 0 is as many as there are real data, the only size at
        which the distance stands beside the floor.
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
        smallest = {"steps": 1, "num_seeds": 1, "num_samples": 0, "num_neighbours": 1}
        for name, least in {**smallest, "floor_splits": 1}.items():
            if getattr(self, name) < least:
                raise ValueError(
                    f"evaluator setting {name} = {getattr(self, name)}:"
                    f" must be at least {least}"
                )

    def __call__(self, subject: Subject) -> dict[str, float]:
        """Metrics of ``subject``, which needs ``generate`` and ``reference``.

        Returns:
          ``frechet_distance``, ``frechet_floor``, ``frechet_floor_std``, ``precision``,
          ``recall``, ``num_samples``, ``num_seeds``, ``seed``, ``steps``;
          ``class_accuracy`` (the share of samples that are classified as the label they
          were asked for) with labels and a classifier; ``frechet_distance_std`` with
          two seeds or more.

        Raises:
          ValueError: a missing part, or samples of another shape or not finite.
        """
        x, labels = subject.need("reference", "sample quality")
        extractor = FEATURES[self.features](subject)
        real = frechet.extract(extractor.features, x)
        shape = (self.num_samples or len(x), *x.shape[1:])
        if labels is not None:
            labels = labels_in_proportion(labels, shape[0])
        rows = []
        for seed in range(self.seed, self.seed + self.num_seeds):
            samples = draw(subject, shape, self.steps, seed, labels)
            rows.append(self._compare(real, samples, labels, extractor))
        metrics = {
            name: float(np.mean([row[name] for row in rows])) for name in rows[0]
        }
        if self.num_seeds > 1:
            distances = [row["frechet_distance"] for row in rows]
            metrics["frechet_distance_std"] = frechet.sample_std(distances)
        floor, floor_std = frechet.halves_floor(real, self.floor_splits)
        return metrics | {
            "frechet_floor": floor,
            "frechet_floor_std": floor_std,
            "num_samples": shape[0],
            "num_seeds": self.num_seeds,
            "seed": self.seed,
            "steps": self.steps,
        }

    def _compare(
        self,
        real: np.ndarray,
        samples: np.ndarray,
        labels: np.ndarray | None,
        extractor: Extractor,
    ) -> dict[str, float]:
        """Metrics of one set of samples against the features of all real data."""
        fake = frechet.extract(extractor.features, samples)
        stats = frechet.feature_stats(real), frechet.feature_stats(fake)
        precision, recall = neighbours.precision_recall(real, fake, self.num_neighbours)
        metrics = {
            "frechet_distance": frechet.frechet_distance(*stats),
            "precision": precision,
            "recall": recall,
        }
        if labels is not None and extractor.classify is not None:
            metrics["class_accuracy"] = float(
                (extractor.classify(fake) == labels).mean()
            )
        return metrics


def draw(
    subject: Subject,
    shape: tuple[int, ...],
    steps: int,
    seed: int,
    labels: np.ndarray | None,
) -> np.ndarray:
    """Samples of ``subject``, of exactly ``shape`` and finite, or an error.

    Converting to pixels would turn a NaN into some grey value, so it is caught here.
    """
    generate = subject.need("generate", "sample quality")
    samples = np.asarray(generate(shape[0], steps, seed, labels))
    if samples.shape != shape:
        raise ValueError(f"generate returned {samples.shape}: expected {shape}")
    bad = ~np.isfinite(samples.reshape(len(samples), -1)).all(axis=1)
    if bad.any():
        raise ValueError(
            f"{bad.sum()} of {len(samples)} samples are not finite"
            f" (steps {steps}, seed {seed}, the first is sample {bad.argmax()})"
        )
    return samples


def labels_in_proportion(labels: np.ndarray, num: int) -> np.ndarray:
    """``num`` labels, each as often as in ``labels`` to within one; ``(num,)`` int32.

    These are evenly spaced quantiles of the sorted labels; with ``num = len(labels)``
    they are the labels themselves.

    >>> labels_in_proportion(np.array([1, 0, 1, 1]), 8).tolist()
    [0, 0, 1, 1, 1, 1, 1, 1]
    """
    position = (2 * np.arange(num) + 1) * len(labels) // (2 * num)
    return np.sort(labels)[position].astype(np.int32)


# --- Error against the exact consistency function -------------------------------------


@dataclasses.dataclass(frozen=True)
class MixtureConsistency:
    """Distance of a student's ``f`` from the exact map, the only one with ground truth.

    ``consistency_rmse`` is the root mean square, per element, of ``f - f*`` over the
    proposal of Alg. 1: quantiles of ``tau ~ N(P_mean, P_std^2)``, at each of them fixed
    draws of ``x_t = cos(t) x0 + sin(t) z``. ``one_step_rmse`` is the same at the only
    points that one-step sampling sees, ``x_t = z`` at ``t_max``.

    Attributes:
      P_mean: mean of the log noise level; that of the objective.
      P_std: its standard deviation.
      num_times: quantiles of ``tau``.
      num_points: draws of ``x_t`` at each.
      seed: of the draws, which are the same at every call.
    """

    P_mean: float = -1.0
    P_std: float = 1.4
    num_times: int = 64
    num_points: int = 256
    seed: int = 0

    def __post_init__(self):
        for name in ("num_times", "num_points"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"evaluator setting {name} = {getattr(self, name)}:"
                    " must be at least 1"
                )

    def __call__(self, subject: Subject) -> dict[str, float]:
        """``consistency_rmse`` and ``one_step_rmse`` of ``f``; see the class."""
        f = subject.need("f", "consistency error")
        closed_form = subject.need("closed_form", "consistency error")
        squares = []
        for x_t, time in self.points(closed_form, subject.sigma_data):
            exact = exact_consistency(closed_form, x_t, time, subject.sigma_data)
            difference = np.asarray(f(x_t, time.t)) - np.asarray(exact)
            squares.append(np.mean(difference.astype(np.float64) ** 2))
        return {
            "consistency_rmse": float(np.sqrt(np.mean(squares[:-1]))),
            "one_step_rmse": float(np.sqrt(squares[-1])),
            "num_samples": self.num_times * self.num_points,
            "seed": self.seed,
        }

    def points(
        self, closed_form: ClosedForm, sigma_data: float
    ) -> Iterator[tuple[jax.Array, Time]]:
        """``num_times`` batches ``(x_t, t)`` of the proposal, then one at ``t_max``.

        All have the same shapes, so that ``f`` is compiled once.
        """
        rng = np.random.default_rng(self.seed)
        levels = (np.arange(self.num_times) + 0.5) / self.num_times
        for tau in self.P_mean + self.P_std * ndtri(levels):
            time = self._time(np.exp(tau), sigma_data)
            x0 = closed_form.sample(rng, self.num_points)
            z = self._noise(rng, x0.shape, sigma_data)
            yield trigflow.interpolate(jnp.asarray(x0), z, time), time
        z = self._noise(rng, x0.shape, sigma_data)
        yield z, self._time(trigflow.SIGMA_MAX, sigma_data)

    def _time(self, sigma: float, sigma_data: float) -> Time:
        batch = np.full((self.num_points,), sigma, np.float32)
        return trigflow.time_from_sigma(batch, sigma_data)

    def _noise(
        self, rng: np.random.Generator, shape: tuple[int, ...], sigma_data: float
    ) -> jax.Array:
        return sigma_data * jnp.asarray(rng.standard_normal(shape, np.float32))


@functools.partial(jax.jit, static_argnames=("closed_form", "sigma_data"))
def exact_consistency(
    closed_form: ClosedForm, x_t: jax.Array, time: Time, sigma_data: float
) -> jax.Array:
    """``closed_form.consistency``, compiled once per distribution and shape."""
    return closed_form.consistency(x_t, time, sigma_data)
