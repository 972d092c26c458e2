"""Measuring runs: combinations of sampler settings, one row of results each."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from scm_jax import config as config_lib
from scm_jax import (
    evaluation,
    objectives,
    records,
    reference_stats,
    runs,
    sampling,
    scaling,
    trigflow,
)
from scm_jax import experiment as experiment_lib
from scm_jax.evaluation.extraction import FeatureNet
from scm_jax.evaluation.subject import Evaluator, Subject
from scm_jax.experiment import Experiment, Teacher
from scm_jax.generation import Generator, load_generate
from scm_jax.training import manifest
from scm_jax.types import Cond, lookup
from scm_jax.weight_files import file_sha256


@dataclasses.dataclass(frozen=True)
class SamplingPoint:
    """How samples are drawn.

    Attributes:
      steps: steps of the sampler.
      times: intermediate times of consistency sampling, ``steps - 1`` of them in
        ``(0, pi/2)``, decreasing; None for the default.
      guidance: guidance scale; None for the run's.
    """

    steps: int
    times: tuple[float, ...] | None = None
    guidance: float | None = None


def sampling_points(
    steps: Sequence[int],
    times: Sequence[tuple[float, ...]] = (),
    guidance: Sequence[float] = (),
) -> list[SamplingPoint]:
    """All combinations. ``times`` of k entries go with ``k + 1`` steps.

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
    points = []
    for n in steps:
        fitting = [t for t in times if len(t) == n - 1 and n > 1] or [None]
        for chosen, scale in itertools.product(fitting, guidance or [None]):
            points.append(SamplingPoint(n, chosen, scale))
    return points


# --- One set of parameters ------------------------------------------------------------


def evaluate(
    experiment: Experiment,
    net_params: Any,
    *,
    points: Sequence[SamplingPoint] | None = None,
    evaluators: dict[str, Evaluator] | None = None,
    generate: Generator | None = None,
) -> list[dict[str, Any]]:
    """One row of metrics per point.

    Args:
      experiment: what was trained.
      net_params: the parameters to measure.
      points: how to sample; default is ``eval.steps``.
      evaluators: what to measure, by name; default is ``configured_evaluators``.
      generate: sampler that is compiled already.
    """
    if evaluators is None:
        evaluators = configured_evaluators(experiment.config)
    if points is None:
        points = sampling_points(experiment.config.eval.steps)
    if not evaluators:
        return []
    subject = make_subject(experiment, net_params, generate)
    rows = Rows(experiment, subject, experiment.sampling_ema)
    return [rows.measure(point, evaluators) for point in points]


def configured_evaluators(
    config: ConfigDict, names: Sequence[str] | None = None, **settings: Any
) -> dict[str, Evaluator]:
    """Evaluators with the settings of a config.

    Args:
      config: gives ``eval.*``; the proposal is the objective's.
      names: keys of ``EVALUATORS``; default is ``eval.evaluators``.
      **settings: take precedence; None and what an evaluator does not have is left out.
    """
    asked = {
        "num_seeds": config.eval.num_seeds,
        "reference": config.eval.reference,
        "P_mean": config.objective.P_mean,
        "P_std": config.objective.P_std,
        **{name: value for name, value in settings.items() if value is not None},
    }
    built = {}
    for name in config.eval.evaluators if names is None else names:
        lookup(evaluation.EVALUATORS, name, "eval.evaluators")
        known = {f.name for f in dataclasses.fields(evaluation.EVALUATORS[name])}
        chosen = {key: value for key, value in asked.items() if key in known}
        if config.eval.num_samples and "num_samples" in known:
            chosen.setdefault("num_samples", config.eval.num_samples)
        built[name] = evaluation.build(name, **chosen)
    return built


@dataclasses.dataclass
class Rows:
    """Measures points of one set of parameters; what no sampler changes, only once."""

    experiment: Experiment
    subject: Subject
    average: str
    fixed: dict[Evaluator, dict[str, Any]] = dataclasses.field(default_factory=dict)

    def measure(
        self, point: SamplingPoint, evaluators: dict[str, Evaluator]
    ) -> dict[str, Any]:
        """The row of a point: how it was sampled, then the numbers.

        Under ``protocol`` stands by each evaluator's name how its numbers came to be,
        under ``measured_by`` by each number's name which evaluator gave it.
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
        generate = self.subject.generate
        if generate is None:
            return self.subject
        options = {"times": point.times, "guidance": point.guidance}

        def pixels(
            num: int, steps: int, seed: int, part: tuple[int, int]
        ) -> Iterator[np.ndarray]:
            asked = {"pixels": True, "part": part, **options}
            for _, batch in generate.batches(num, steps, seed, **asked):
                if batch is None:
                    raise ValueError("the samples are no pictures")
                yield batch

        return dataclasses.replace(
            self.subject,
            generate=functools.partial(generate, **options),
            pixels=pixels,
            sampling={
                "sampler": facts["sampler"],
                "times": point.times or (),
                "guidance": facts["guidance"],
                "ema": self.average,
            },
        )


def sampling_facts(experiment: Experiment, point: SamplingPoint) -> dict[str, Any]:
    """How a row was sampled, and what a sample cost.

    ``nfe`` counts evaluations of the network: two for each step's evaluation under
    classifier-free guidance. ``sampling_compute`` is the paper's effective sampling
    compute, billions of parameters times ``nfe``.
    """
    config = experiment.config
    sampler = config.sampling.sampler
    guidance = config.sampling.guidance if point.guidance is None else point.guidance
    doubled = guidance != 1.0 and "guidance" not in experiment.network.consumes
    nfe = sampling.nfe(sampler, point.steps) * (2 if doubled else 1)
    params = scaling.parameter_count(experiment.abstract_params()["net"])
    return {
        "method": config.name,
        "sampler": sampler,
        "steps": point.steps,
        "times": None if point.times is None else list(point.times),
        "guidance": guidance,
        "nfe": nfe,
        "sampling_compute": scaling.effective_sampling_compute(params, nfe),
    }


def make_subject(
    experiment: Experiment,
    net_params: Any,
    generate: Generator | None = None,
    config: ConfigDict | None = None,
) -> Subject:
    """What evaluators are handed: callables and the real data.

    ``config`` is the run's own where ``experiment`` was built without its teacher.
    """
    dataset, info = experiment.dataset, experiment.dataset.info
    network, sigma_data = experiment.network, info.sigma_data

    @jax.jit
    def f(x_t: jax.Array, t: jax.Array, label: jax.Array | None) -> jax.Array:
        cond = _condition(experiment, label, t)
        F = network.apply(net_params, x_t / sigma_data, cond)
        return trigflow.f_from_F(x_t, F, t, sigma_data)

    generator = generate or Generator(experiment, net_params)
    return Subject(
        sigma_data=sigma_data,
        generate=generator,
        f=f,
        reference=functools.cache(dataset.arrays) if info.num_items else None,
        to_pixels=info.to_pixels,
        closed_form=dataset.closed_form,
        batch=functools.partial(held_out_batch, experiment),
        validation_error=_validation_error(experiment, net_params, config),
        teacher_paths=_teacher_paths(experiment),
        quantization=lambda: generator.quantization,
        dataset=info.name,
        reference_file=functools.partial(_reference_file, experiment),
    )


def _reference_file(experiment: Experiment, net: FeatureNet) -> Path:
    """The statistics of the training data, measured where they are not kept yet."""
    dataset, root = experiment.dataset, experiment.config.dataset.root
    path = reference_stats.default_path(dataset, net, root)
    reference_stats.measure(dataset, net, path)
    return path


def _condition(experiment: Experiment, label: jax.Array | None, t: jax.Array) -> Cond:
    """Labels, and the run's guidance scale where the network takes one."""
    guidance = None
    if "guidance" in experiment.network.consumes:
        guidance = jnp.full_like(t, experiment.config.sampling.guidance)
    return Cond(t=t, label=label, guidance=guidance)


def held_out_batch(
    experiment: Experiment, num: int, seed: int
) -> tuple[jax.Array, jax.Array | None]:
    """``num`` items of ``eval.split``, of the training split where there is none."""
    config = experiment.config
    dataset = experiment.dataset
    if config.eval.split:
        dataset = experiment_lib.build_dataset(config, config.eval.split)
    batch = jax.jit(dataset.to_batch)(next(dataset.iterator(num, seed)))
    return batch.x, batch.label


def _validation_error(
    experiment: Experiment, net_params: Any, config: ConfigDict | None
) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """Errors of the run's own objective, and of ``f`` against the data."""
    config = experiment.config if config is None else config
    sigma_data = experiment.dataset.info.sigma_data
    objective = objectives.build(
        config.objective.name,
        sigma_data=sigma_data,
        **config_lib.objective_settings(config),
    )

    @functools.cache
    def teacher() -> Any:
        return load_teacher(experiment) if objective.needs_teacher else None

    @jax.jit
    def errors(params: Any, weights: Any, x0: Any, z: Any, time: Any, label: Any):
        net = functools.partial(experiment.network.apply, params, dtype="float32")
        cond = _condition(experiment, label, time.t)
        teacher_fn = None
        if objective.needs_teacher:
            teacher_fn = functools.partial(teacher()[0].fn, weights)
        error = objective.validation_error(net, x0, z, time, cond, teacher_fn)
        x_t = trigflow.interpolate(x0, z, time)
        f = trigflow.f_from_F(x_t, net(x_t / sigma_data, cond), time, sigma_data)
        squares = jnp.square(f - x0).reshape(len(x0), -1)
        return error, squares.mean(axis=-1)

    def call(x0: Any, z: Any, time: Any, label: Any) -> tuple[jax.Array, jax.Array]:
        weights = teacher()[1] if objective.needs_teacher else None
        return errors(net_params, weights, x0, z, time, label)

    return call


# --- The teacher of a run that is measured --------------------------------------------


def load_teacher(experiment: Experiment) -> tuple[Teacher, Any]:
    """The teacher that a run names, with its parameters on this machine.

    That is ``teacher.run``; without one the run that it started from; else the exact
    velocity of data in closed form.

    Raises:
      ValueError: there is none of these.
      FileNotFoundError: its directory is gone.
    """
    config, dataset = experiment.config, experiment.dataset
    scale = config.teacher.guidance
    if "guidance" in experiment.network.consumes:
        scale = config.sampling.guidance
    source = config.teacher if config.teacher.run else config.init
    if source.run:
        network, name = experiment_lib.saved_network(source.run, source.ema, dataset)
        abstract = experiment_lib.abstract_init(network)
        params = experiment_lib.load_average(source.run, name, abstract)
        return Teacher(network, source.run, name, scale), params
    if dataset.closed_form is None:
        raise ValueError(
            "this measurement needs a teacher: the run's config has neither "
            "teacher.run nor init.run, and its data no closed form"
        )
    return experiment_lib.exact_teacher(dataset), None


def _teacher_paths(
    experiment: Experiment,
) -> Callable[[int, int, int], tuple[np.ndarray, jax.Array, jax.Array | None]]:
    """Heun paths of the teacher from the noise of ``generate``'s samples."""
    info = experiment.dataset.info

    def paths(num: int, steps: int, seed: int) -> tuple[Any, Any, Any]:
        teacher, params = load_teacher(experiment)
        grid = sampling.make_grid("heun", steps, info.sigma_data)
        label = None
        if info.num_classes:
            label = jnp.arange(num, dtype=jnp.int32) % info.num_classes
        cond = _condition(experiment, label, jnp.zeros((num,)))

        @jax.jit
        def run(params: Any, keys: jax.Array, cond: Cond) -> jax.Array:
            fn = functools.partial(teacher.fn, params)
            shape = info.sample_shape
            return sampling.heun_path(fn, keys, cond, grid, shape, info.sigma_data)

        keys = sampling.sample_keys(seed, np.arange(num))
        return grid, run(params, keys, cond), label

    return paths


# --- Runs -----------------------------------------------------------------------------


def evaluate_run(
    directory: str | os.PathLike,
    *,
    averages: Sequence[str] = ("",),
    step: int | None = None,
    steps: Sequence[int] | None = None,
    times: Sequence[tuple[float, ...]] = (),
    guidance: Sequence[float] = (),
    evaluators: Sequence[str] | None = None,
    rerun: bool = False,
    **settings: Any,
) -> Iterator[dict[str, Any]]:
    """Measures a checkpoint of a run, one row per combination.

    Each row is appended to the run's ``results.jsonl`` as soon as it is measured. A row
    that is there already, of the same checkpoint and with the same settings, is read
    from there: the same command goes on where it was stopped.

    Args:
      directory: the run.
      averages: names or relative widths; one that was not kept is reconstructed from
        the run's snapshots. Empty is the run's own choice.
      step: which checkpoint; default is the newest.
      steps: sampler steps; default is ``eval.steps``.
      times: intermediate times, see ``sampling_points``.
      guidance: guidance scales; default is the run's.
      evaluators: keys of ``EVALUATORS``; default is ``eval.evaluators``.
      rerun: measure rows again that are there.
      **settings: of the evaluators, such as ``num_seeds``.

    Raises:
      ValueError: nothing to measure, or settings that contradict each other.
    """
    run_dir = runs.RunDir(directory)
    config = config_lib.from_dict(run_dir.read_config())
    built = configured_evaluators(config, evaluators, **settings)
    if not built:
        raise ValueError(
            f"nothing to measure: eval.evaluators of {directory} is empty; name some "
            f"with --metrics, of {sorted(evaluation.EVALUATORS)}"
        )
    points = sampling_points(tuple(steps or config.eval.steps), times, guidance)
    if step is None:
        step = manifest.newest_whole(run_dir.checkpoints_dir, "ema/")[0]
    done = {
        row["key"]: row
        for row in records.read_rows(run_dir.results_path)
        if "key" in row and not rerun
    }
    for average in averages:
        average = experiment_lib.average_name(average)
        name = average or experiment_lib.sampling_average(config)
        rows = None
        for point in points:
            key = _row_key(config, step, name, point, built)
            if key not in done:
                rows = rows or _open_run(directory, config, name, step)
                row = rows.measure(point, built) | {"key": key}
                row = labelled(row, rows.experiment, step, name)
                run_dir.append_result(row)
                done[key] = row
            yield done[key]


def _open_run(
    directory: str | os.PathLike, config: ConfigDict, average: str, step: int
) -> Rows:
    loaded = load_generate(directory, average, step)
    subject = make_subject(loaded.experiment, loaded.params, loaded.generate, config)
    return Rows(loaded.experiment, subject, loaded.average)


def _row_key(
    config: ConfigDict,
    step: int,
    average: str,
    point: SamplingPoint,
    evaluators: dict[str, Evaluator],
) -> str:
    """What a row is the answer to, as ten hexadecimal digits.

    Keys of the config that a resumed run may change are in it where they change a
    number, and so are the files that evaluators read.
    """
    asked = {
        "step": step,
        "ema": average,
        "point": dataclasses.asdict(point),
        "sampling": [config.sampling[k] for k in ("sampler", "guidance", "decoder")],
        "split": config.eval.split,
        "evaluators": {
            name: [dataclasses.asdict(evaluator), _files(evaluator)]
            for name, evaluator in evaluators.items()
        },
    }
    text = json.dumps(asked, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def _files(evaluator: Evaluator) -> list[str]:
    """Hashes of the files that an evaluator reads."""
    return [file_sha256(path) for path in getattr(evaluator, "files", list)()]


def labelled(
    row: dict[str, Any], experiment: Experiment, step: int, average: str
) -> dict[str, Any]:
    """A row with what it was measured on."""
    images = step * experiment.config.train.batch_size
    return {**row, "ema": average, "step": step, "images": images}
