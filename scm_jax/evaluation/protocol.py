"""The protocol that travels with every number, and numbers over seeds.

Two distances can be compared only if they were measured in the same way. ``Protocol``
has two parts: ``MEASURING`` fields must agree, the others are what a study sweeps.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from scm_jax.evaluation.metrics.frechet import sample_std

MEASURING = (
    "metric",
    "extractor",
    "extractor_sha256",
    "resize",
    "quantization",
    "reference_sha256",
    "num_samples",
)


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How a number was measured.

    Attributes:
      metric: name and what else changes the number, such as ``precision(k=3)``.
      extractor: of the features, such as ``inception_2015`` or ``raw``.
      extractor_sha256: of its weights; ``none`` for an extractor that has none.
      resize: rule from samples to the extractor's input, such as ``tf1_bilinear_299``.
      quantization: rule from floats to pixels, such as ``x*127.5+128, truncated``.
      reference: name of the data or statistics compared with.
      reference_sha256: of these; two files of one content may have two names.
      reference_count: items behind the reference; 0 where its file does not say.
      num_samples: samples of each seed.
      seeds: of the sets of samples.
      sampler: name of the sampler.
      steps: of the sampler.
      times: its intermediate times in ``(0, pi/2)``.
      guidance: scale; 1 is none.
      ema: name of the weight average, such as its relative width.
      source: where a published number is from; empty for one measured here.
    """

    metric: str
    extractor: str
    extractor_sha256: str
    resize: str
    quantization: str
    reference: str
    reference_sha256: str
    reference_count: int
    num_samples: int
    seeds: tuple[int, ...]
    sampler: str
    steps: int
    times: tuple[float, ...] = ()
    guidance: float = 1.0
    ema: str = ""
    source: str = ""

    def __post_init__(self):
        for name, kind in {"seeds": int, "times": float}.items():
            values = tuple(kind(value) for value in getattr(self, name))
            object.__setattr__(self, name, values)
        if not self.source:
            _check_measured(self)


def measured_differently(a: Protocol, b: Protocol) -> dict[str, tuple[Any, Any]]:
    """Fields of ``MEASURING`` in which two protocols differ, with both values.

    With any, two numbers do not compare.
    """
    pairs = {name: (getattr(a, name), getattr(b, name)) for name in MEASURING}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def protocol_of(evaluator: Any, sampling: Mapping[str, Any], **fields: Any) -> dict:
    """The protocol of an evaluator's numbers, as JSON carries it.

    Args:
      evaluator: with ``steps``, ``seed`` and ``num_seeds``.
      sampling: how samples were drawn, see ``Subject``.
      **fields: all other fields of ``Protocol``.
    """
    seeds = tuple(range(evaluator.seed, evaluator.seed + evaluator.num_seeds))
    protocol = Protocol(seeds=seeds, steps=evaluator.steps, **sampling, **fields)
    return dataclasses.asdict(protocol)


# --- Numbers over seeds ---------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Measured:
    """A number over seeds: its mean and spread.

    There is no way to the best of the seeds alone: ``row(best=...)`` is the only one,
    and it gives mean, spread and number of seeds with it.

    Attributes:
      values: one per seed.

    Raises:
      ValueError: no values, or values that are not finite.
    """

    values: tuple[float, ...]

    def __post_init__(self):
        values = tuple(float(value) for value in self.values)
        object.__setattr__(self, "values", values)
        if not values or not all(math.isfinite(value) for value in values):
            raise ValueError(f"values over seeds are {values}: expected finite numbers")

    @property
    def value(self) -> float:
        """Mean over the seeds."""
        return float(np.mean(self.values))

    @property
    def std(self) -> float:
        """Unbiased standard deviation over the seeds; 0 for a single one."""
        return sample_std(list(self.values))

    @property
    def num_seeds(self) -> int:
        """How many seeds."""
        return len(self.values)

    def row(self, best: str | None = None) -> dict[str, Any]:
        """``value``, ``std``, ``num_seeds``, ``values``, and on request ``best``.

        Example:
          >>> Measured((2.0, 4.0, 3.0)).row(best="least")["best"]
          2.0

        Args:
          best: ``least`` or ``greatest`` adds that value, which the field reports as
            "minimum of three".

        Raises:
          ValueError: another word, or fewer than two seeds, which have no spread.
        """
        row = {
            "value": self.value,
            "std": self.std,
            "num_seeds": self.num_seeds,
            "values": list(self.values),
        }
        if best is None:
            return row
        choose = {"least": min, "greatest": max}.get(best)
        if choose is None:
            raise ValueError(f"best = {best!r}: must be 'least' or 'greatest'")
        if self.num_seeds < 2:
            raise ValueError("the best of one seed has no spread: use two or more")
        return {**row, "best": choose(self.values)}


def _check_measured(protocol: Protocol) -> None:
    """A number measured here knows all of its protocol."""
    for name in (*MEASURING[:-1], "reference", "sampler"):
        if getattr(protocol, name) in ("", "unknown"):
            raise ValueError(f"protocol.{name} is {getattr(protocol, name)!r}")
    for name in ("extractor_sha256", "reference_sha256"):
        digest = getattr(protocol, name)
        legal = digest == "none" and name == "extractor_sha256"
        if not legal and not re.fullmatch("[0-9a-f]{64}", digest):
            raise ValueError(
                f"protocol.{name} is {digest!r}: expected 64 hexadecimal digits"
            )
    for name in ("num_samples", "steps"):
        if getattr(protocol, name) < 1:
            raise ValueError(
                f"protocol.{name} = {getattr(protocol, name)}: must be at least 1"
            )
    if not protocol.seeds:
        raise ValueError("protocol.seeds is empty")
