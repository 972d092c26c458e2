"""The interface of evaluators: ``numbers = evaluator(subject)``."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Protocol

import jax
import numpy as np

from scm_jax.trigflow.exact import Gaussian, GaussianMixture
from scm_jax.types import Cond, Questions, check_seed


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is evaluated. A field may be None where no chosen evaluator needs it.

    Attributes:
      sigma_data: standard deviation of the data, and of the noise.
      generate: ``(num, steps, seed, labels or None)`` -> float32
        ``(num, *sample_shape)`` by the sampler of the run; sample i depends on ``seed``
        and i only.
      f: ``(x_t (b, ...), t (b,), cond or None) -> (b, ...)``, the consistency function
        of a student, or the denoiser of a diffusion model; ``cond.t`` is not read.
      flow_map: ``(x_t, t, s, cond or None) -> X_{t->s}``; None without a second time.
      map_residuals: ``(x0, z, t, s, cond) -> {name: (b,)}``, the errors of
        ``objectives.two_times.residuals``; None without a second time.
      reference: reads all real data: float32 ``(n, *sample_shape)``, and int labels
        ``(n,)`` or None for unlabelled data.
      to_pixels: float data -> uint8 pixels ``(n, h, w, c)``.
      closed_form: the distribution of the data where it is known; hashable, so that
        evaluations during training share one compilation.
      batch: ``(num, seed) -> (x0, cond)``, held-out data if there are any.
      validation_error: ``(x0, z, time, cond) -> (validation, denoising)`` errors,
        ``(b,)`` each, see ``validation.Validation``.
      teacher_paths: ``(num, steps, seed) -> (times, x_t, cond)``: times ``(k,)`` from
        noise to data, and the teacher's states there, ``(k, num, *sample_shape)``.
      pixels: ``(num, steps, seed, part, prompts=None) -> batches``, uint8
        ``(n, h, w, c)`` each, of samples of all classes or prompts in turn;
        ``part = (index, count)`` selects every ``count``-th batch, from ``index`` on.
      quantization: returns the rule by which samples became uint8.
      dataset: name of the real data.
      sampling: how samples are drawn, as in ``protocol.Protocol``: ``sampler``,
        ``times``, ``guidance``, ``ema``.
      to_sound: see ``DatasetInfo``, as ``sample_rate`` and ``sample_shape``.
      spectrograms: sound -> what frozen networks read, ``front_ends.spectrograms``.
      questions: see ``DatasetInfo.questions``.
      reference_file: ``FeatureNet`` -> the file with the statistics of the training
        data, which are measured if there is none.
    """

    sigma_data: float
    generate: Callable[..., np.ndarray] | None = None
    f: Callable[[Any, Any, Any], Any] | None = None
    flow_map: Callable[[Any, Any, Any, Any], Any] | None = None
    map_residuals: Callable[..., dict[str, jax.Array]] | None = None
    reference: Callable[[], tuple[np.ndarray, np.ndarray | None]] | None = None
    to_pixels: Callable[[np.ndarray], np.ndarray] | None = None
    closed_form: Gaussian | GaussianMixture | None = None
    batch: Callable[[int, int], tuple[jax.Array, Cond]] | None = None
    validation_error: Callable[..., tuple[jax.Array, jax.Array]] | None = None
    teacher_paths: Callable[[int, int, int], tuple[Any, Any, Any]] | None = None
    pixels: Callable[..., Iterator[np.ndarray]] | None = None
    quantization: Callable[[], str] | None = None
    dataset: str = ""
    sampling: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    to_sound: Callable[[np.ndarray], np.ndarray] | None = None
    sample_rate: int = 0
    sample_shape: tuple[int, ...] = ()
    spectrograms: Callable[[np.ndarray], np.ndarray] | None = None
    questions: Callable[[int, str], Questions] | None = None
    reference_file: Callable[[Any], os.PathLike] | None = None

    def need(self, field: str, by: str) -> Any:
        """The value of ``field``, or an error that says who needs it."""
        value = getattr(self, field)
        if value is None:
            raise ValueError(
                f"{by} needs Subject.{field}, which this run does not have"
            )
        return value


class Evaluator(Protocol):
    """``metrics = evaluator(subject)``: numbers by name, ready for JSON."""

    def __call__(self, subject: Subject) -> dict[str, Any]: ...


def require_positive(evaluator: Any, *settings: str, least: int = 1) -> None:
    """Raises ValueError for a setting of an evaluator that is below ``least``."""
    for name in settings:
        given = getattr(evaluator, name)
        if given < least:
            raise ValueError(
                f"evaluator setting {name} = {given}: must be at least {least}"
            )


def require_seeds(evaluator: Any) -> None:
    """Raises ValueError if a set of samples would have an illegal seed."""
    check_seed(evaluator.seed, "evaluator setting seed")
    last = evaluator.seed + getattr(evaluator, "num_seeds", 1) - 1
    check_seed(last, "last seed of the evaluator, seed + num_seeds - 1,")


@dataclasses.dataclass(frozen=True)
class OneSet:
    """An evaluator of one set of samples.

    Attributes:
      steps: steps of the sampler.
      seed: of the noise, and of which real items are taken, of ``eval.split``.
      num_samples: samples; where a subject asks questions, of each kind of them.
    """

    steps: int = 2
    seed: int = 0
    num_samples: int = 1000
    num_seeds: ClassVar[int] = 1

    def __post_init__(self):
        require_positive(self, "steps", "num_samples")
        require_seeds(self)
