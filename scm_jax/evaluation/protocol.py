"""The protocol that travels with every number, and numbers over seeds."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from scm_jax.evaluation.metrics.frechet import sample_std

# Fields in which two numbers must agree to be compared; studies sweep the others.
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
      extractor: name of the features, such as ``inception_2015`` or ``raw``.
      extractor_sha256: hash of its weights; ``none`` for an extractor that has none.
      resize: rule from samples to the extractor's input, such as ``tf1_bilinear_299``.
      quantization: rule from floats to pixels, such as ``x*127.5+128, truncated``.
      reference: name of the data or statistics compared with.
      reference_sha256: their hash; two files of one content may have two names.
      reference_count: items behind the reference; 0 where its file does not say.
      num_samples: samples of each seed.
      seeds: of the sets of samples.
      sampler: name of the sampler.
      steps: of the sampler.
      times: its intermediate times in ``(0, pi/2)``.
      guidance: scale; 1 is none.
      ema: name of the EMA, such as its relative width.
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
        if self.source:
            return
        # A number that was measured here knows all of its protocol.
        for name in (*MEASURING[:-1], "reference", "sampler"):
            if getattr(self, name) in ("", "unknown"):
                raise ValueError(f"protocol.{name} is {getattr(self, name)!r}")
        for name in ("extractor_sha256", "reference_sha256"):
            digest = getattr(self, name)
            legal = digest == "none" and name == "extractor_sha256"
            if not legal and not re.fullmatch("[0-9a-f]{64}", digest):
                raise ValueError(
                    f"protocol.{name} is {digest!r}: expected 64 hexadecimal digits"
                )
        for name in ("num_samples", "steps"):
            number = getattr(self, name)
            if number < 1:
                raise ValueError(f"protocol.{name} = {number}: must be at least 1")
        if not self.seeds:
            raise ValueError("protocol.seeds is empty")


def measured_differently(a: Protocol, b: Protocol) -> dict[str, tuple[Any, Any]]:
    """Fields of ``MEASURING`` in which two protocols differ, with both values."""
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


def protocol_in(
    evaluator: Any,
    subject: Any,
    metric: str,
    network: tuple[str, str],
    reference_sha256: str,
    reference_count: int,
) -> dict[str, Any]:
    """``protocol`` of numbers that a small frozen network reads off samples.

    Empty if the subject does not say how it is sampled. ``network`` is the name of the
    network and the hash of its weights; ``none`` twice where it reads nothing.
    """
    if not subject.sampling:
        return {}
    found = protocol_of(
        evaluator,
        subject.sampling,
        metric=metric,
        extractor=network[0],
        extractor_sha256=network[1],
        resize="none",
        quantization=subject.need("quantization", "a protocol")(),
        reference=subject.dataset,
        reference_sha256=reference_sha256,
        reference_count=reference_count,
        num_samples=evaluator.num_samples,
    )
    return {"protocol": found}


# --- Numbers over seeds ---------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Measured:
    """A number over seeds: its mean and spread, and never the best alone.

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
