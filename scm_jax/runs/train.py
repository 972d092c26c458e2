"""One run from config to measured samples: training, evaluation, the run directory."""

from __future__ import annotations

import contextlib
import os
import time
from typing import Any

import jax
from ml_collections import ConfigDict

from scm_jax import config as config_lib
from scm_jax.cost import counts
from scm_jax.runs import conditions, evaluate, training_data
from scm_jax.runs.directory import layout, locks, run_configs, writers
from scm_jax.runs.estimate import work
from scm_jax.runs.sample import Generator
from scm_jax.runs.setup import evaluators, start
from scm_jax.runs.setup import experiment as experiment_lib
from scm_jax.runs.setup.experiment import Experiment
from scm_jax.training import loop, sharding
from scm_jax.training.ahead import make_place
from scm_jax.training.checkpoint import Checkpointer
from scm_jax.training.processes import multihost
from scm_jax.training.progress import NoProgress, Progress


def train_and_evaluate(
    config: ConfigDict,
    workdir: str | os.PathLike,
    *,
    label: str = "",
    progress: Any = None,
) -> str:
    """Trains ``config`` in ``workdir``; the same call again goes on where it stopped.

    With several processes, all must make this call with the same arguments; the first
    writes the files of the run directory, and all write the checkpoints.

    Args:
      config: a complete config, see ``scm_jax/config.py``.
      workdir: the run directory.
      label: name in the progress line; default is the config's.
      progress: reports the steps of the first process; default is a
        ``training.progress.Progress`` with this label.

    Returns:
      ``done``, or ``preempted`` after a signal, when everything is saved.

    Raises:
      ValueError: bad settings, or a directory of another config.
      FileNotFoundError: an evaluator's weights or reference are missing.
      locks.HeldError: another process trains in ``workdir``.
      loop.NonFiniteError: the training diverged; the last finite state is saved.
    """
    run_dir = layout.RunDir(workdir)
    config = experiment_lib.with_moved_runs(config, workdir)
    mesh = sharding.make_mesh(
        sharding.MeshSpec(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    )
    experiment = experiment_lib.build(config)
    config = experiment.config
    sharding.check_batch_size(config.train.batch_size, mesh)
    run_dir.check_config(config_lib.to_dict(config))
    evaluators.check(config)
    with contextlib.ExitStack() as held:
        if jax.process_index() == 0:
            run_dir.path.mkdir(parents=True, exist_ok=True)
            held.enter_context(locks.hold(run_dir.path))
        checkpointer = held.enter_context(
            Checkpointer(
                run_dir.checkpoints_dir,
                max_to_keep=config.checkpoint.max_to_keep,
                snapshots_directory=run_dir.ema_snapshots_dir,
            )
        )
        return _train(config, run_dir, experiment, mesh, checkpointer, label, progress)


def _train(
    config: ConfigDict,
    run_dir: layout.RunDir,
    experiment: Experiment,
    mesh: Any,
    checkpointer: Checkpointer,
    label: str,
    progress: Any,
) -> str:
    started = time.monotonic()
    # Before the training: later a faster process may have written the summary.
    measured = run_dir.is_done
    index, count = sharding.data_shard(mesh)
    data = experiment.dataset.iterator(
        config.train.batch_size, config.seed, process_index=index, process_count=count
    )
    state, restored_step = _place_state(experiment, mesh, checkpointer, data)
    entries = []  # a run that is done reads no data
    if not measured:
        entries = training_data.check(
            config, run_dir.path, experiment.dataset, restored_step
        )
    teacher = start.load_teacher(experiment, mesh)
    macs = work.macs_per_image(experiment)
    # From here on the directory is this config's: every refusal comes before.
    if jax.process_index() == 0:
        run_dir.write_config(config_lib.to_dict(config))
        training_data.write(run_dir.path, entries)
        conditions.write_text(run_dir, experiment.dataset.info.text)
    first, writer = jax.process_index() == 0, writers.MultiWriter(())
    if first:
        writer = writers.make_writer(
            config.log.writers, run_dir.path, resume_step=restored_step
        )
    settings = loop.LoopSettings(
        duration_images=config.train.duration_images,
        batch_size=config.train.batch_size,
        log_every_images=config.log.every_images,
        checkpoint_every_images=config.checkpoint.every_images,
        snapshot_every_images=config.ema.snapshot_images,
        directory=run_dir.path,
    )
    if not first:
        progress = NoProgress()
    elif progress is None:
        name = label or config.name or "train"
        progress = Progress(settings.num_steps, settings.batch_size, label=name)
    if restored_step is None:
        _write_overview(writer, state.params, config)
    result = loop.train(
        settings,
        state=state,
        train_step=experiment.place(mesh).train_step(),
        data=data,
        place_batch=make_place(experiment.dataset.to_batch, mesh),
        checkpointer=checkpointer,
        writer=writer,
        hooks=_hooks(experiment, config),
        step_args=(teacher,),
        metadata={"config_hash": run_configs.config_hash(config_lib.to_dict(config))},
        progress=progress,
    )
    if result.status == loop.DONE and not measured:
        images = settings.num_steps * settings.batch_size
        summary = {
            "parameters": counts.parameter_count(result.state.params["net"]),
            "resumed_at_step": restored_step,
            "images": images,
            **macs,
            "total_train_macs": macs["train_macs_per_image"] * images,
        }
        _measure(experiment, result.state, run_dir, writer, summary, started)
    writer.close()
    return result.status


def _measure(
    experiment: Experiment,
    state: Any,
    run_dir: layout.RunDir,
    writer: Any,
    summary: dict[str, Any],
    started: float,
) -> None:
    """The end of a run: results, a grid of samples, and the summary."""
    # Every process samples for itself, so that none waits for another; one writes.
    name, step = experiment.sampling_ema, int(state.step)
    average = multihost.local_copy(state.ema[name])
    rows = evaluate.evaluate(experiment, average)
    first = jax.process_index() == 0
    for row in rows if first else ():
        run_dir.append_result(evaluate.labelled(row, experiment, step, name, run_dir))
    if experiment.dataset.info.to_pixels is not None:
        num = min(64, experiment.config.sampling.batch_size)
        _, pixels = Generator(experiment, average)(num, pixels=True)
        writer.write_images(step, {"samples": pixels})
    if not first:
        return
    run_dir.write_summary(
        {
            **summary,
            "seconds": time.monotonic() - started,
            "results": rows,
            "seed": experiment.config.seed,
            "data": training_data.describe(run_dir.path),
            "environment": layout.environment(),
        }
    )


def _place_state(
    experiment: Experiment, mesh: Any, checkpointer: Checkpointer, data: Any
) -> tuple[Any, int | None]:
    """The state to train from and its step; moves ``data`` to its position."""
    abstract = start.abstract_state(experiment, mesh)

    def init() -> Any:
        given = start.load_init(experiment, mesh), start.load_critic(experiment, mesh)
        shardings = jax.tree.map(lambda a: a.sharding, abstract)
        return jax.jit(experiment.init_state, out_shardings=shardings)(*given)

    return loop.restore_or_init(checkpointer, abstract, init, data)


def _write_overview(writer: Any, params: Any, config: ConfigDict) -> None:
    from clu import parameter_overview

    # No one of several processes has all parameters: they compute statistics together.
    stats: bool | str = True if jax.process_count() == 1 else "global"
    overview = parameter_overview.get_parameter_overview
    table = overview(params["net"], include_stats=stats)
    writer.write_texts(0, {"parameters": table})
    writer.write_hparams(config_lib.to_dict(config))


def _hooks(experiment: Experiment, config: ConfigDict) -> list[loop.Hook]:
    """Evaluation during training, every ``eval.every_images``; the end is separate."""
    if not (config.eval.every_images and config.eval.evaluators):
        return []

    def call(state: Any, images: int) -> dict[str, float]:
        if images >= config.train.duration_images:
            return {}  # measured for the summary, right after the loop
        average = multihost.local_copy(state.ema[experiment.sampling_ema])
        points = evaluate.sampling_points(config.eval.steps)
        rows = evaluate.evaluate(experiment, average, points=points)
        return {
            f"{row['steps']}_steps/{name}": value
            for row in rows
            for name, value in row.items()
            if isinstance(value, float)
        }

    return [loop.Hook(config.eval.every_images, "eval", call)]
