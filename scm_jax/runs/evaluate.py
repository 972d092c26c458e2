"""Evaluates runs: combinations of sampler settings, one row of results each."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from scm_jax import config as config_lib
from scm_jax import evaluation, sampling
from scm_jax.cost import counts
from scm_jax.datasets.identity import Identity
from scm_jax.evaluation.subject import Evaluator, Subject
from scm_jax.files import jsonl
from scm_jax.files.atomic import file_sha256
from scm_jax.runs import subject as subjects
from scm_jax.runs import training_data
from scm_jax.runs.directory import layout
from scm_jax.runs.directory.run_configs import sampling_ema
from scm_jax.runs.sample import load_generate
from scm_jax.runs.setup import parts
from scm_jax.runs.setup.evaluators import configured_evaluators
from scm_jax.runs.setup.experiment import Experiment
from scm_jax.training import seal
from scm_jax.types import Prompts


@dataclasses.dataclass(frozen=True)
class SamplingPoint:
    """How samples are drawn.

    Attributes:
      steps: steps of the sampler.
      times: ``steps - 1`` decreasing intermediate times of consistency or map sampling
        in ``(0, pi/2)``; None for the default.
      guidance: guidance scale; None for the run's.
      sampler: a key of ``SAMPLERS``; None for the run's.
      gamma: share of new noise in map sampling; None for the run's.
    """

    steps: int
    times: tuple[float, ...] | None = None
    guidance: float | None = None
    sampler: str | None = None
    gamma: float | None = None


def sampling_points(
    steps: Sequence[int],
    times: Sequence[tuple[float, ...]] = (),
    guidance: Sequence[float] = (),
    samplers: Sequence[str] = (),
    gamma: float | None = None,
) -> list[SamplingPoint]:
    """All combinations. ``times`` of k entries go with ``k + 1`` steps.

    Example:
      >>> [(p.steps, p.times) for p in sampling_points((1, 2), [(1.1,), (0.8,)])]
      [(1, None), (2, (1.1,)), (2, (0.8,))]

    Raises:
      ValueError: some ``times`` go with none of ``steps``.
    """
    for chosen in times:
        if len(chosen) + 1 not in steps:
            raise ValueError(
                f"times {'/'.join(map(str, chosen))} go with {len(chosen) + 1} steps, "
                f"which are not among --steps={','.join(map(str, steps))}"
            )
    points: list[SamplingPoint] = []
    for n in steps:
        if n < 1:
            raise ValueError(f"steps {n}: must be at least 1")
        fitting: list[Any] = [t for t in times if len(t) == n - 1 and n > 1] or [None]
        others: list[Any] = [fitting, guidance or [None], samplers or [None]]
        for chosen, scale, sampler in itertools.product(*others):
            points.append(SamplingPoint(n, chosen, scale, sampler, gamma))
    return points


def configured_points(config: ConfigDict) -> list[SamplingPoint]:
    """The points of a run's end: ``eval.steps`` by themselves, and ``eval.times``."""
    own = [SamplingPoint(len(times) + 1, tuple(times)) for times in config.eval.times]
    return [*sampling_points(config.eval.steps), *own]


# --- One set of parameters ------------------------------------------------------------


def evaluate(
    experiment: Experiment,
    net_params: Any,
    *,
    points: Sequence[SamplingPoint] | None = None,
) -> list[dict[str, Any]]:
    """One row of the configured metrics per point.

    Args:
      experiment: what was trained.
      net_params: the parameters to evaluate.
      points: how to sample; default is ``configured_points``.
    """
    evaluators = configured_evaluators(experiment.config)
    if points is None:
        points = configured_points(experiment.config)
    if not evaluators:
        return []
    subject = subjects.make_subject(experiment, net_params)
    rows = Rows(experiment, subject, experiment.sampling_ema)
    return [rows.measure(point, evaluators) for point in points]


@dataclasses.dataclass
class Rows:
    """Measures points of one set of parameters; what no sampler changes, only once."""

    experiment: Experiment
    subject: Subject
    ema: str
    fixed: dict[Evaluator, dict[str, Any]] = dataclasses.field(default_factory=dict)

    def measure(
        self, point: SamplingPoint, evaluators: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The row of a point: how it was sampled, then the numbers.

        ``protocol`` says for each evaluator how it measured, ``measured_by`` for each
        number which evaluator it is from.
        """
        row = sampling_facts(self.experiment, point)
        subject = self._sampled(point, row)
        protocols: dict[str, Any] = {}
        measured_by: dict[str, str] = {}
        for name, evaluator in evaluators.items():
            if hasattr(evaluator, "steps"):
                found = dataclasses.replace(evaluator, steps=point.steps)(subject)
            else:
                if evaluator not in self.fixed:
                    self.fixed[evaluator] = evaluator(subject)
                found = dict(self.fixed[evaluator])
            protocols[name] = found.pop("protocol", dataclasses.asdict(evaluator))
            numbers = (k for k, value in found.items() if isinstance(value, float))
            measured_by |= dict.fromkeys(numbers, name)
            row |= found
        return row | {"protocol": protocols, "measured_by": measured_by}

    def _sampled(self, point: SamplingPoint, facts: dict[str, Any]) -> Subject:
        """The subject, drawing samples as the point says."""
        generate: Any = self.subject.generate
        if generate is None:
            return self.subject
        names = ("times", "guidance", "sampler", "gamma")
        options = {name: getattr(point, name) for name in names}

        def pixels(
            num: int,
            steps: int,
            seed: int,
            part: tuple[int, int],
            prompts: Prompts | None = None,
        ) -> Iterator[np.ndarray]:
            asked = {"pixels": True, "part": part, "prompts": prompts, **options}
            for x, batch in generate.batches(num, steps, seed, **asked):
                if batch is None:
                    raise ValueError("the samples are not images")
                if not np.isfinite(x).all():
                    raise ValueError(f"samples are not finite ({steps} steps)")
                yield batch

        return dataclasses.replace(
            self.subject,
            generate=functools.partial(generate, **options),
            pixels=pixels,
            sampling={
                "sampler": facts["sampler"],
                "times": point.times or (),
                "guidance": facts["guidance"],
                "ema": self.ema,
            },
        )


def sampling_facts(experiment: Experiment, point: SamplingPoint) -> dict[str, Any]:
    """How a row was sampled, and what a sample cost.

    Classifier-free guidance doubles ``nfe``. ``sampling_compute`` is the paper's
    effective sampling compute, billions of parameters times ``nfe``.
    """
    config = experiment.config
    sampler = config.sampling.sampler if point.sampler is None else point.sampler
    gamma = config.sampling.gamma if point.gamma is None else point.gamma
    shown, shift = sampler, config.sampling.shift
    if shift and sampler not in sampling.TIMED:
        shown = f"{sampler}(shift={shift})"
    elif gamma and sampler == "map":
        shown = f"{sampler}(gamma={gamma})"
    guidance = config.sampling.guidance if point.guidance is None else point.guidance
    nfe = sampling.nfe(sampler, point.steps, guidance, experiment.network.consumes)
    params = counts.parameter_count(experiment.abstract_params()["net"])
    return {
        "method": config.name,
        "sampler": shown,
        "steps": point.steps,
        "times": None if point.times is None else list(point.times),
        "guidance": guidance,
        "nfe": nfe,
        "sampling_compute": counts.effective_sampling_compute(params, nfe),
    }


# --- Runs -----------------------------------------------------------------------------


def evaluate_run(
    directory: str | os.PathLike,
    *,
    averages: Sequence[str] = ("",),
    step: int | None = None,
    steps: Sequence[int] | None = None,
    times: Sequence[tuple[float, ...]] = (),
    guidance: Sequence[float] = (),
    samplers: Sequence[str] = (),
    gamma: float | None = None,
    evaluators: Sequence[str] | None = None,
    rerun: bool = False,
    **settings: Any,
) -> Iterator[dict[str, Any]]:
    """Evaluates a checkpoint of a run, one row per combination.

    Each row is appended to the run's ``results.jsonl`` as soon as it is measured. A row
    of the same checkpoint and settings that is there already is read: the same command
    continues where it was stopped.

    Args:
      directory: the run.
      averages: EMAs, by name or relative width; one that was not kept is reconstructed
        from the run's snapshots. Empty is the run's own choice.
      step: which checkpoint; default is the newest.
      steps: sampler steps; default is ``eval.steps``. Without ``times`` and
        ``guidance`` as well it is all of ``configured_points``.
      times: intermediate times, see ``sampling_points``.
      guidance: guidance scales; default is the run's.
      samplers, gamma: see ``SamplingPoint``; default are the run's.
      evaluators: keys of ``EVALUATORS``; default is ``eval.evaluators``.
      rerun: measure rows again that are there.
      **settings: of the evaluators, such as ``num_seeds``.

    Raises:
      ValueError: no evaluators, or settings that contradict each other.
    """
    run_dir = layout.RunDir(directory)
    config = config_lib.from_dict(run_dir.read_config())
    built = configured_evaluators(config, evaluators, **settings)
    if not built:
        raise ValueError(
            f"nothing to measure: eval.evaluators of {directory} is empty; choose some "
            f"with --metrics among {sorted(evaluation.EVALUATORS)}"
        )
    if steps or times or guidance or samplers or gamma is not None:
        asked = times, guidance, samplers, gamma
        points = sampling_points(tuple(steps or config.eval.steps), *asked)
    else:
        points = configured_points(config)
    if step is None:
        step = seal.newest_whole(run_dir.checkpoints_dir, "ema/")[0]
    changed = training_data.changed_since(
        directory, functools.partial(parts.build_dataset, config)
    )
    done = {
        row["key"]: row
        for row in jsonl.read_whole_rows(run_dir.results_path)
        if "key" in row and not rerun
    }
    for average in averages:
        average = parts.average_name(average)
        name = average or sampling_ema(config.ema)
        rows = None
        for point in points:
            key = _row_key(config, step, name, point, built, changed)
            if key not in done:
                if rows is None:
                    it = load_generate(directory, name, step)
                    drawn = it.experiment, it.params, it.generate
                    subject = subjects.make_subject(*drawn)
                    rows = Rows(it.experiment, subject, it.average)
                row = rows.measure(point, built) | {"key": key}
                row = labelled(row, rows.experiment, step, name, run_dir)
                if changed is not None:
                    row["measured_on"] = str(changed)
                run_dir.append_result(row)
                done[key] = row
            yield done[key]


def _row_key(
    config: ConfigDict,
    step: int,
    average: str,
    point: SamplingPoint,
    evaluators: Mapping[str, Any],
    changed: Identity | None,
) -> str:
    """Ten hexadecimal digits of all that changes the numbers of a row.

    Besides the settings, these are keys of the config that a resumed run may change,
    the files that evaluators read, and data other than those of the training.
    """
    files: dict[str, list[str]] = {
        name: getattr(it, "files", list)() for name, it in evaluators.items()
    }
    asked = {
        "step": step,
        "ema": average,
        # Without what is the run's own and younger than the oldest rows.
        "point": {
            k: v
            for k, v in dataclasses.asdict(point).items()
            if v is not None or k not in ("sampler", "gamma")
        },
        "sampling": [
            *(config.sampling[k] for k in ("sampler", "guidance", "decoder")),
            *([config.sampling.shift] if config.sampling.shift else []),
            *([config.sampling.gamma] if config.sampling.gamma else []),
        ],
        "split": config.eval.split,
        "evaluators": {
            name: [dataclasses.asdict(it), [file_sha256(path) for path in files[name]]]
            for name, it in evaluators.items()
        },
    }
    if changed is not None:
        asked["data"] = changed.sha256
    text = json.dumps(asked, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def labelled(
    row: dict[str, Any],
    experiment: Experiment,
    step: int,
    average: str,
    run_dir: layout.RunDir,
) -> dict[str, Any]:
    """A row with its checkpoint, and the data of the training."""
    images = step * experiment.config.train.batch_size
    row = {**row, "ema": average, "step": step, "images": images}
    data = training_data.describe(run_dir.path)
    return row if data is None else {**row, "data": data}
