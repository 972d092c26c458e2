"""Scaling laws of a measured quality: what they say, and how they are fitted.

A fit returns a law; a bootstrap returns a law whose fields are arrays with one entry
per replicate: all formulas take both. Training compute is not 6 N D: FLOPs per image
are counted for each size, and ``FlopsPerImage`` says how they grow with N.
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from scm_jax.analysis import columns
from scm_jax.analysis.laws import power_sums
from scm_jax.analysis.laws.power_sums import HUBER_DELTA

# A number, or an array with one entry per replicate of a bootstrap.
Number = float | np.ndarray
Law = TypeVar("Law", "PowerLaw", "ChinchillaLaw")


@dataclasses.dataclass(frozen=True)
class FlopsPerImage:
    """Training FLOPs of one image against parameters: ``coefficient N^exponent``.

    ``FlopsPerImage(6.0)`` is the rule of language models, 6 N per token. A network that
    grows in width alone comes near exponent 1.
    """

    coefficient: float
    exponent: float = 1.0

    def __call__(self, parameters: ArrayLike) -> np.ndarray:
        """FLOPs of loss and gradient per image."""
        return self.coefficient * np.asarray(parameters, float) ** self.exponent


@dataclasses.dataclass(frozen=True)
class Optimum:
    """The compute-optimal run of a budget."""

    parameters: np.ndarray  # N with the smallest loss
    images: np.ndarray  # D that the budget then leaves
    loss: np.ndarray  # that the law expects


@dataclasses.dataclass(frozen=True)
class PowerLaw:
    """``y = E + A x^-a``; E, A and a are not negative."""

    E: Number
    A: Number
    a: Number

    def __call__(self, x: ArrayLike) -> np.ndarray:
        """Expected y; fields that are arrays broadcast against ``x``."""
        return self.E + self.A * np.asarray(x, float) ** -np.asarray(self.a)


@dataclasses.dataclass(frozen=True)
class ChinchillaLaw:
    """``L(N, D) = E + A / N^a + B / D^b``; nothing in it is negative.

    The third approach of arXiv 2203.15556 for N parameters and D training images. L is
    a quality measured after training (a Frechet distance, a fixed validation error):
    training losses of consistency models do not compare between settings.

    Example:
      >>> law = ChinchillaLaw(E=1.8172, A=477.8, B=2143.0, a=0.3473, b=0.3672)
      >>> round(law.parameters_exponent(), 3)
      0.514
      >>> best = law.optimum(5.76e23, FlopsPerImage(6.0))  # Chinchilla's budget
      >>> round(best.parameters / 1e9), round(best.images / 1e9)
      (73, 1310)
    """

    E: Number
    A: Number
    B: Number
    a: Number
    b: Number

    def __call__(self, parameters: ArrayLike, images: ArrayLike) -> np.ndarray:
        """Expected loss of N parameters trained on D images."""
        size = self.A * np.asarray(parameters, float) ** -np.asarray(self.a)
        data = self.B * np.asarray(images, float) ** -np.asarray(self.b)
        return self.E + size + data

    def parameters_exponent(self, cost_exponent: float = 1.0) -> Number:
        """p of ``N_opt ~ C^p`` where an image costs ``~ N^cost_exponent``.

        It is ``b / (a + cost_exponent b)``; ``b / (a + b)`` where cost grows as N.
        """
        return _ratio(self.b, self.a + cost_exponent * np.asarray(self.b))

    def images_exponent(self, cost_exponent: float = 1.0) -> Number:
        """q of ``D_opt ~ C^q``: ``a / (a + cost_exponent b)``."""
        return _ratio(self.a, self.a + cost_exponent * np.asarray(self.b))

    def optimum(self, flops: ArrayLike, flops_per_image: FlopsPerImage) -> Optimum:
        """The best run of a training budget, where ``flops = D flops_per_image(N)``.

        The derivative of ``L(N, C / (c N^g))`` by N is 0 at
        ``N^(a + g b) = a A / (g b B) (C / c)^b``. A law without one of its two terms
        has no optimum: N and D are NaN.
        """
        c, growth = flops_per_image.coefficient, flops_per_image.exponent
        a, b = np.asarray(self.a, float), np.asarray(self.b, float)
        with np.errstate(divide="ignore", invalid="ignore"):
            log_n = np.log(a * self.A / (growth * b * self.B))
            log_n = log_n + b * np.log(np.asarray(flops, float) / c)
            log_n = log_n / (a + growth * b)
        log_n = np.where(np.isfinite(log_n), log_n, np.nan)
        parameters = np.exp(log_n)
        images = np.asarray(flops, float) / flops_per_image(parameters)
        return Optimum(parameters, images, self(parameters, images))


def fit_power_law(x: ArrayLike, y: ArrayLike, delta: float = HUBER_DELTA) -> PowerLaw:
    """``y = E + A x^-a`` by the sum of Huber losses of ``log y``.

    Arguments and errors are as in ``fit_chinchilla``; three different x are needed.

    Example:
      >>> x = np.geomspace(1e6, 1e9, 8)
      >>> law = fit_power_law(x, 0.5 + 30.0 * x**-0.25)
      >>> [round(float(v), 3) for v in (law.E, law.A, law.a)]
      [0.5, 30.0, 0.25]
    """
    points = Points.of(PowerLaw, y, x)
    return points.law(power_sums.fit(points.log_x, points.log_y, delta))


def fit_chinchilla(
    parameters: ArrayLike,
    images: ArrayLike,
    loss: ArrayLike,
    delta: float = HUBER_DELTA,
) -> ChinchillaLaw:
    """``L = E + A / N^a + B / D^b`` by the sum of Huber losses of ``log L``.

    Variable projection over a grid of exponents, then L-BFGS on all five parameters
    (``power_sums.fit``).

    Args:
      parameters, images: N and D of each run, ``(n,)``; at least 3 different ones.
      loss: L of each run, positive, ``(n,)``; at least 5.
      delta: where the loss turns linear; infinity fits ``log L`` by least squares.

    Raises:
      ValueError: values that are not positive and finite, or too few of them.

    Example:
      >>> n, d = np.meshgrid(np.geomspace(1e6, 1e8, 5), np.geomspace(1e6, 1e8, 5))
      >>> n, d = n.ravel(), d.ravel()
      >>> law = fit_chinchilla(n, d, 0.4 + 20.0 * n**-0.3 + 300.0 * d**-0.45)
      >>> [round(float(v), 3) for v in (law.E, law.a, law.b)]
      [0.4, 0.3, 0.45]
    """
    points = Points.of(ChinchillaLaw, loss, parameters, images)
    return points.law(power_sums.fit(points.log_x, points.log_y, delta))


def fit_flops_per_image(
    parameters: ArrayLike, flops_per_image: ArrayLike
) -> FlopsPerImage:
    """The power law through exact counts of several sizes, by least squares of logs.

    One size alone gives the exponent 1.

    Raises:
      ValueError: values that are not positive and finite.
    """
    log_n = np.log(columns.positive(parameters, "parameters"))
    log_c = np.log(columns.positive(flops_per_image, "flops_per_image"))
    if np.ptp(log_n) == 0:
        return FlopsPerImage(float(np.exp(np.mean(log_c - log_n))), 1.0)
    slope, constant = np.polyfit(log_n, log_c, 1)
    return FlopsPerImage(float(np.exp(constant)), float(slope))


def flops_per_image_error(
    relation: FlopsPerImage, parameters: ArrayLike, flops_per_image: ArrayLike
) -> float:
    """The largest relative error of the relation on measured sizes."""
    measured = np.asarray(flops_per_image, float)
    return float(np.max(np.abs(relation(parameters) / measured - 1)))


@dataclasses.dataclass(frozen=True)
class Points:
    """Measurements in the coordinates of ``power_sums``."""

    kind: type[PowerLaw] | type[ChinchillaLaw]
    log_x: np.ndarray  # centred, (n, K)
    log_y: np.ndarray  # (n,)
    center: np.ndarray  # what was subtracted, (K,)

    @classmethod
    def of(cls, kind: type[Law], y: ArrayLike, *inputs: ArrayLike) -> Points:
        """Checks and centres measurements.

        Raises:
          ValueError: see ``fit_chinchilla``.
        """
        names = ("x",) if kind is PowerLaw else ("parameters", "images")
        log_y = np.log(columns.positive(y, "y" if kind is PowerLaw else "loss"))
        given = list(zip(inputs, names, strict=True))
        log_inputs = [np.log(columns.positive(x, name)) for x, name in given]
        for column, name in zip(log_inputs, names, strict=True):
            found = log_y.size
            if column.shape != log_y.shape:
                raise ValueError(f"{name} has {column.size} values for {found} losses")
            if (count := len(np.unique(column))) < 3:
                raise ValueError(
                    f"a law with an offset needs 3 different values of {name}; "
                    f"there are {count}"
                )
        if found < (needed := 1 + 2 * len(log_inputs)):
            raise ValueError(f"{needed} parameters need {needed} points; not {found}")
        log_x = np.stack(log_inputs, axis=1)
        center = log_x.mean(0)
        return cls(kind, log_x - center, log_y, center)

    def law(self, theta: np.ndarray) -> Any:
        """The law of ``theta``, ``(..., 1 + 2K)``; an offset at its bound is 0."""
        count = len(self.center)
        exponents = theta[..., count + 1 :]
        least = np.exp(self.log_y.min() - power_sums.OFFSET_DECADES)
        with np.errstate(over="ignore"):
            scales = np.exp(theta[..., 1 : count + 1] + exponents * self.center)
        offset = np.exp(theta[..., 0])
        offset = np.where(offset <= 2 * least, 0.0, offset)
        fields = [offset, *np.moveaxis(scales, -1, 0), *np.moveaxis(exponents, -1, 0)]
        if theta.ndim == 1:
            return self.kind(*map(float, fields))
        return self.kind(*fields)


def _ratio(part: Number, whole: Number) -> Number:
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.divide(part, whole)
    return ratio if np.ndim(ratio) else float(ratio)
