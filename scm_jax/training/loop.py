"""The host loop: dispatch, late metrics, cadences, interruption, non-finite policy.

The host stays a few steps ahead of the device and waits only for results that are
already old. Time is counted in images; every cadence fires at the step that reaches or
passes a multiple of its period.

    1. dispatch the step              4. log: the row of the interval before this one
    2. read and place the next batch  5. hooks, EMA snapshot, checkpoint (these wait for
    3. read the finite flag of the       all flags first)
       step a few steps back
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from scm_jax.files import atomic
from scm_jax.training import sharding
from scm_jax.training.ahead import Ahead, DataIterator
from scm_jax.training.late import Dispatched, Flight, LateMetrics
from scm_jax.training.progress import NoProgress
from scm_jax.types import num_steps

DONE, PREEMPTED = "done", "preempted"


class NonFiniteError(RuntimeError):
    """Data, loss or gradients were not finite; ``path`` holds batch, key and step.

    The batch is written as it was on the host. A ``RawBatch`` has the stored
    ``fields/NAME`` and ``items`` (seed, epoch and item of each row): the dataset's
    ``to_batch`` of the two gives the batch of the step again, bit by bit.
    """

    def __init__(self, message: str, step: int, path: pathlib.Path):
        super().__init__(message)
        self.step = step
        self.path = path


class Hook(NamedTuple):
    """Something to measure during the training and at its end."""

    every_images: int  # 0: at the end only
    name: str
    # (state, images) -> scalars, written as NAME/KEY. It must not keep the state, whose
    # buffers the next step reuses.
    call: Callable[[Any, int], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class LoopSettings:
    """What the loop needs to know; all periods in images."""

    duration_images: int  # the last step reaches or passes it
    batch_size: int  # images per step, over all devices
    log_every_images: int  # averaging window of the metrics
    checkpoint_every_images: int  # 0 saves at the end only
    directory: str | os.PathLike  # of the run; a bad batch goes to nonfinite/ in it
    snapshot_every_images: int = 0  # of EMAs, for post-hoc reconstruction; 0 for none
    max_in_flight: int = 4  # how many steps the host may be ahead; 0 waits for each

    def __post_init__(self):
        for field in ("duration_images", "batch_size", "log_every_images"):
            if getattr(self, field) <= 0:
                raise ValueError(f"{field}={getattr(self, field)}: must be above 0")

    @property
    def num_steps(self) -> int:
        return num_steps(self.duration_images, self.batch_size)

    def due(self, period: int, step: int) -> bool:
        """Whether update number ``step`` (from 1) passes a multiple of ``period``."""
        images = step * self.batch_size
        return period > 0 and images // period > (images - self.batch_size) // period


class LoopResult(NamedTuple):
    """The last state, and ``done`` or ``preempted`` (saved; run again to go on)."""

    state: Any
    status: str


def restore_or_init(
    checkpointer: Any, abstract_state: Any, init: Callable[[], Any], data: DataIterator
) -> tuple[Any, int | None]:
    """The state to train from and, if restored, its step; moves ``data`` there."""
    restored = checkpointer.restore_latest(abstract_state)
    if restored is None:
        return init(), None
    data.set_state(restored.data)
    return restored.state, restored.step


# --- Signals --------------------------------------------------------------------------


class Interruption:
    """SIGTERM, SIGINT and SIGUSR1 ask the loop to save and leave at the next step.

    A second SIGINT aborts at once. The handlers of before come back at the end.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

    def __init__(self):
        self.signum: int | None = None
        # Several processes must leave at one step. JAX agrees on it, and listens to
        # SIGTERM by itself; the two other signals are passed on as that one.
        self._shared = jax.distributed.is_initialized()

    def _handle(self, signum: int, frame: Any) -> None:
        if signum == signal.SIGINT and self.signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.signum = signum
        if self._shared:
            os.kill(os.getpid(), signal.SIGTERM)

    def requested(self, step: int) -> bool:
        """To be asked once before every step, by every process."""
        if self._shared:
            return multihost_utils.reached_preemption_sync_point(step)
        return self.signum is not None

    @contextlib.contextmanager
    def installed(self) -> Iterator[Interruption]:
        before = {}  # outside the main thread Python has no handlers
        if threading.current_thread() is threading.main_thread():
            mine = self.SIGNALS[1:] if self._shared else self.SIGNALS
            before = {s: signal.signal(s, self._handle) for s in mine}
        try:
            yield self
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)


# --- The step -------------------------------------------------------------------------


def _compile_step(train_step: Callable[..., Any], state: Any) -> tuple[Any, Any, Any]:
    """The jitted step, which halts once not finite; its state; the flag to begin with.

    ``(state, ok, batch, *args) -> (state, ok, metrics)``
    """

    def step(state, ok, batch, *args):
        new, metrics = train_step(state, batch, *args)
        # The flag is read a few steps late: neither the bad batch nor those after it
        # may move the state, or the checkpoint would belong to no data position.
        ok = ok & metrics["finite"]
        state = jax.tree.map(lambda n, o: jax.lax.select(ok, n, o), new, state)
        return state, ok, metrics

    where = jax.tree.map(lambda x: x.sharding, state)
    everywhere = state.step.sharding
    jitted = jax.jit(
        step, donate_argnums=0, out_shardings=(where, everywhere, everywhere)
    )
    # Committed before the first call, else the second one would compile again.
    state = jax.device_put(state, where)
    ok = jax.jit(lambda n: n >= 0, out_shardings=everywhere)(state.step)
    return jitted, state, ok


def _must_wait(state: Any) -> bool:
    # On a CPU with several devices, collectives of steps that run ahead can deadlock.
    return jax.default_backend() == "cpu" and len(state.step.sharding.device_set) > 1


# --- The loop -------------------------------------------------------------------------


@dataclasses.dataclass
class _Run:
    """The parts of one call of ``train`` that its helpers share."""

    settings: LoopSettings
    checkpointer: Any
    writer: Any
    hooks: Sequence[Hook]
    metadata: dict[str, Any]
    progress: Any
    metrics: LateMetrics
    flight: Flight

    def stop_if(self, bad: Dispatched | None, state: Any) -> None:
        """Writes the bad batch, saves the state before it, and raises."""
        if bad is None:
            return
        path, message = _write_bad_batch(self.settings, bad, state)
        self.metrics.write_row(bad.index)
        self.save_and_wait(bad.index, state, bad.position)
        raise NonFiniteError(message, bad.index, path)

    def settle(self, state: Any) -> None:
        """Until all dispatched steps are known to be finite and their rows written."""
        self.stop_if(self.flight.drain(), state)
        self.metrics.write_row()

    def save(self, step: int, state: Any, position: dict[str, Any]) -> None:
        metadata = self.metadata_at(step)
        self.checkpointer.save(step, state, data=position, metadata=metadata)
        self.writer.flush()

    def save_and_wait(self, step: int, state: Any, position: dict[str, Any]) -> None:
        self.save(step, state, position)
        self.checkpointer.wait()
        self.writer.flush()

    def leave(self, step: int, state: Any, position: dict[str, Any]) -> None:
        """Saves everything after a signal."""
        self.progress.message(f"interrupted: saving step {step:,}")
        self.metrics.end_interval(step)
        self.settle(state)
        self.save_and_wait(step, state, position)
        self.progress.message(f"saved step {step:,}; run the same command to resume")

    def metadata_at(self, step: int) -> dict[str, Any]:
        images = step * self.settings.batch_size
        return {**self.metadata, "step": step, "images": images}

    def events(self, step: int, state: Any, position: dict[str, Any]) -> None:
        """Whatever is due after update number ``step``; the checkpoint comes last."""
        s, last = self.settings, step == self.settings.num_steps
        if s.due(s.log_every_images, step) or last:
            self.metrics.end_interval(step)
            self.checkpointer.check()
        hooks = [h for h in self.hooks if last or s.due(h.every_images, step)]
        period = s.snapshot_every_images
        snapshot = s.due(period, step) or (last and period > 0)
        checkpoint = last or s.due(s.checkpoint_every_images, step)
        if not (hooks or snapshot or checkpoint):
            return
        self.settle(state)
        began = time.monotonic()
        for hook in hooks:
            self.run_hook(hook, step, state)
        if snapshot:
            self.checkpointer.save_ema_snapshot(step, state.ema, self.metadata_at(step))
        if checkpoint:
            self.save(step, state, position)
        self.metrics.exclude(time.monotonic() - began)

    def run_hook(self, hook: Hook, step: int, state: Any) -> None:
        images = step * self.settings.batch_size
        found = hook.call(state, images) or {}
        values = {f"{hook.name}/{k}": v for k, v in found.items()}
        if values:
            self.writer.write_scalars(step, {"images": images, **values})
            shown = "  ".join(f"{k} {float(v):.4g}" for k, v in values.items())
            self.progress.message(f"{images:,} images  {shown}")


def train(
    settings: LoopSettings,
    *,
    state: Any,
    train_step: Callable[..., tuple[Any, dict[str, Any]]],
    data: DataIterator,
    place_batch: Callable[[Any], Any],
    checkpointer: Any,
    writer: Any,
    hooks: Sequence[Hook] = (),
    step_args: tuple[Any, ...] = (),
    metadata: dict[str, Any] | None = None,
    progress: Any = None,
) -> LoopResult:
    """Trains from ``state.step`` to the end, or until it is asked to stop.

    Args:
      settings: length and periods.
      state: placed train state with the fields step, ema, key; donated.
      train_step: pure ``(state, batch, *step_args) -> (state, metrics)``; jitted here.
        ``metrics["finite"]`` is a bool scalar; ``metrics["bins"]``, if present, holds
        sums per time bin; all else are scalars, averaged over the log interval.
      data: endless iterator of host batches, at the position that belongs to ``state``.
      place_batch: host batch -> batch of the step, on the devices: ``make_place``.
      checkpointer: a ``checkpoint.Checkpointer``.
      writer: has clu's ``write_scalars`` and ``flush``, and ``write_arrays``.
      hooks: what to measure on the way.
      step_args: further arguments of the step, such as the teacher's parameters.
      metadata: JSON, stored in every checkpoint, with ``step`` and ``images`` added.
      progress: a ``Progress``; default is silence.

    Returns:
      The state and ``done``; or ``preempted`` after a signal, when everything has been
      saved and the same call on the restored state will go on.

    Raises:
      NonFiniteError: a step was not finite; the state before it has been saved.
      checkpoint.CheckpointError: a save failed, for example because the disk is full.
    """
    step = int(state.step)
    progress = progress or NoProgress()
    if step >= settings.num_steps:
        return LoopResult(state, DONE)
    limit = 0 if _must_wait(state) else settings.max_in_flight
    metrics, flight = LateMetrics(settings.batch_size, writer), Flight(limit)
    run = _Run(
        settings, checkpointer, writer, hooks, metadata or {}, progress, metrics, flight
    )
    compiled, state, ok = _compile_step(train_step, state)
    progress.start(step)
    with Interruption().installed() as interruption:
        batches = Ahead(data, place_batch, settings.num_steps - step)
        while step < settings.num_steps:
            if interruption.requested(step):
                run.leave(step, state, batches.position)
                return LoopResult(state, PREEMPTED)
            batch = batches.take()
            state, ok, values = compiled(state, ok, batch.arrays, *step_args)
            batches.fetch()
            if limit == 0:
                jax.block_until_ready((state, values))
            dispatched = Dispatched(step, batch.host, batch.position, values)
            run.stop_if(flight.add(dispatched), state)
            metrics.add(values)
            step += 1
            run.events(step, state, batches.position)
            progress.update(step, metrics.loss)
    checkpointer.wait()
    writer.flush()
    progress.finish()
    return LoopResult(state, DONE)


def _write_bad_batch(
    settings: LoopSettings, bad: Dispatched, state: Any
) -> tuple[pathlib.Path, str]:
    """``nonfinite/step_N.npz`` with batch, key, step and metrics; and the message."""
    metrics = jax.device_get(bad.metrics)
    arrays = _named_arrays("", bad.batch)
    found = [
        f"{name} has {np.sum(~np.isfinite(x))} of {x.size} values not finite"
        for name, x in arrays.items()
        if np.issubdtype(x.dtype, np.inexact) and not np.all(np.isfinite(x))
    ]
    scalars = {k: v for k, v in metrics.items() if np.ndim(v) == 0 and k != "bins"}
    found += [f"{k} is {v}" for k, v in scalars.items() if not np.isfinite(v)]
    directory = pathlib.Path(settings.directory) / "nonfinite"
    directory.mkdir(parents=True, exist_ok=True)
    suffix = f".process_{jax.process_index()}" if jax.process_count() > 1 else ""
    path = directory / f"step_{bad.index}{suffix}.npz"
    with atomic.replacing(path) as unfinished, unfinished.open("wb") as file:
        np.savez(
            file,
            **arrays,
            **_named_arrays("metrics/", metrics),
            key=np.asarray(jax.random.key_data(state.key)),
            key_impl=str(jax.random.key_impl(state.key)),
            step=bad.index,
        )
    message = (
        f"step {bad.index} (images {bad.index * settings.batch_size:,} and on) is not "
        f"finite: {'; '.join(found) or 'a gradient overflowed'}. Its batch, key and "
        f"metrics are in {path}. The state before it is saved as checkpoint "
        f"{bad.index}; running the same command again repeats this step."
    )
    return path, message


def _named_arrays(prefix: str, tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        prefix + (sharding.path_name(path) or "batch"): np.asarray(x)
        for path, x in leaves
    }
