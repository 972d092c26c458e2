"""Sampling from trained parameters: batches, labels, devices, pixels."""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from scm_jax import config as config_lib
from scm_jax import sampling
from scm_jax.datasets import pixels as quantize
from scm_jax.networks import Network
from scm_jax.runs import conditions, latents
from scm_jax.runs.directory import reading
from scm_jax.runs.directory.layout import RunDir
from scm_jax.runs.directory.reading import Run
from scm_jax.runs.setup import experiment as experiment_lib
from scm_jax.runs.setup.experiment import Experiment
from scm_jax.runs.setup.parts import average_name, ema_profiles
from scm_jax.runs.setup.start import load_average
from scm_jax.training import checkpoint, ema, seal
from scm_jax.types import (
    Cond,
    DatasetInfo,
    Prompts,
    TextInfo,
    check_seed,
    without_condition,
)

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class Generator:
    """Samples of one set of parameters.

    Sample ``i`` depends on the seed, its label and ``i`` only, for any batch size and
    number of devices. Batches are split over the devices of this process. Each
    combination of sampler, steps, times, and guidance or none compiles once.
    """

    experiment: Experiment
    params: Any
    text: TextInfo | None = None  # how the run reads captions; default is the data's
    frames: int = 0  # of a clip; 0 for as many as the run was trained on

    def __call__(
        self,
        num: int,
        steps: int | None = None,
        seed: int = 0,
        labels: np.ndarray | int | None = None,
        *,
        pixels: bool = False,
        **settings: Any,
    ) -> Any:
        """``(num, *sample_shape)`` float32; with ``pixels`` a pair ``(x, pixels)``.

        The arguments are those of ``batches``.
        """
        batches = self.batches(num, steps, seed, labels, pixels=pixels, **settings)
        x, shown = zip(*batches, strict=True)
        if not pixels:
            return np.concatenate(x)
        return np.concatenate(x), None if shown[0] is None else np.concatenate(shown)

    def batches(
        self,
        num: int,
        steps: int | None = None,
        seed: int = 0,
        labels: np.ndarray | int | None = None,
        *,
        prompts: Prompts | Sequence[str] | str | None = None,
        first: np.ndarray | None = None,
        sampler: str | None = None,
        guidance: float | None = None,
        times: tuple[float, ...] | None = None,
        gamma: float | None = None,
        pixels: bool = False,
        part: tuple[int, int] = (0, 1),
    ) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """The samples in order, ``sampling.batch_size`` of them at a time.

        Args:
          num: number of samples.
          steps: steps of the sampler; default is the run's.
          seed: seed of the noise.
          labels: one per sample or one for all; default is all classes in turn.
          prompts: taken in turn; default is the data's example captions.
          first: first frames, uint8 ``(k, h, w, c)``, or ``(num, k, h, w, c)``.
          sampler: a key of ``SAMPLERS``; default is the run's.
          guidance: guidance scale; default is the run's.
          times, gamma: of the sampler; see ``SamplingPoint``.
          pixels: also make pixels; latents are decoded inside the compiled sampler by
            the autoencoder of ``config.sampling.decoder``.
          part: ``(index, count)``: only every ``count``-th batch, from ``index`` on, so
            that ``count`` processes share the work. It may be none.

        Yields:
          ``x`` float32 ``(n, *sample_shape)``, and pixels uint8 ``(n, h, w, c)`` or
          None.

        Raises:
          ValueError: labels, prompts, times or names that do not fit.
        """
        check_seed(seed)
        config, info = self.experiment.config, self.info
        takes_guidance = "guidance" in self.network.consumes
        scale = config.sampling.guidance if guidance is None else guidance
        guided = scale != 1.0 and not takes_guidance
        decoder = self._decoder if pixels else None
        run = self._compiled(
            config.sampling.sampler if sampler is None else sampler,
            config.sampling.steps if steps is None else steps,
            guided,
            times,
            config.sampling.gamma if gamma is None else gamma,
            decoder is not None,
        )
        params = (self._weights, decoder and self._everywhere(decoder.params))
        fields = conditions.asked(info, num, labels, prompts)
        if first is not None:
            told = info, self.network.consumes, num, first
            fields["frames"] = conditions.first_frames(*told)
        size = jax.local_device_count()
        size *= -(-min(num, config.sampling.batch_size) // size)
        for start in range(part[0] * size, num, part[1] * size):
            # The last batch is filled up with further samples: all have one shape.
            numbers = np.arange(start, start + size)
            rows: dict[str, Any]
            rows = {k: jnp.asarray(a[numbers % num]) for k, a in fields.items()}
            if takes_guidance or guided:
                rows["guidance"] = jnp.full((size,), scale, jnp.float32)
            cond = Cond(t=jnp.zeros((size,)), **rows)
            split = self._placed("samples")
            drawn = jax.device_put((sampling.sample_keys(seed, numbers), cond), split)
            found = jax.tree.map(
                lambda a, rows=num - start: np.asarray(a)[:rows], run(params, *drawn)
            )
            if decoder is not None:
                yield found
            elif pixels and info.to_pixels is not None:
                yield found, info.to_pixels(found)
            else:
                yield found, None

    @property
    def info(self) -> DatasetInfo:
        """What the data are, with captions as the run reads them."""
        info = self.experiment.dataset.info
        if self.frames:
            shape = (self.frames, *info.sample_shape[1:])
            info = dataclasses.replace(info, sample_shape=shape)
        return info if self.text is None else dataclasses.replace(info, text=self.text)

    @functools.cached_property
    def network(self) -> Network:
        """The run's network, for clips of ``frames`` frames."""
        network = self.experiment.network
        shape = self.experiment.dataset.info.sample_shape
        if self.frames in (0, shape[0]):
            return network
        if len(shape) != 4 or getattr(network.module, "positions", "") == "learned":
            raise ValueError(
                f"frames = {self.frames}: this run makes samples of shape {shape}, of "
                "another length only if they are clips (t, h, w, c) and its network's "
                "positions are not learned (network.positions = 'rotary' or 'sincos')"
            )
        module = network.module.clone(sample_shape=self.info.sample_shape)
        module.check()
        return dataclasses.replace(network, module=module)

    @property
    def quantization(self) -> str:
        """How pixels are quantized, for the protocol of a number."""
        if self._decoder is None:
            return self.experiment.dataset.info.quantization
        pixel_range = self._decoder.whitening.pixel_range
        return quantize.by_interval(pixel_range).rule

    def _placed(self, *axes: str) -> NamedSharding:
        mesh = Mesh(np.array(jax.local_devices()), ("samples",))
        return NamedSharding(mesh, PartitionSpec(*axes))

    def _everywhere(self, tree: Any) -> Any:
        return jax.device_put(tree, self._placed())

    @functools.cached_property
    def _weights(self) -> Any:
        return self._everywhere(jax.jit(self.network.fold)(self.params))

    @functools.cached_property
    def _decoder(self) -> latents.Decoder | None:
        name = self.experiment.config.sampling.decoder
        return latents.find_decoder(name, self.experiment.dataset.info)

    @functools.cached_property
    def _compiled(self) -> Callable[..., Callable]:
        return functools.cache(self._compile)

    def _compile(
        self,
        sampler: str,
        steps: int,
        guided: bool,
        times: tuple[float, ...] | None,
        gamma: float,
        decoded: bool,
    ) -> Callable:
        info, network = self.info, self.network

        def make_fn(params: Any) -> sampling.Fn:
            fn = functools.partial(network.apply, params[0])
            return sampling.with_guidance(fn) if guided else fn

        def encode(params: Any, cond: Cond) -> Cond:
            # Captions are read once for all steps.
            encoded = network.encode(params[0], cond)
            if not guided or encoded.memory is None:
                return encoded
            null = network.encode(params[0], without_condition(cond))
            return dataclasses.replace(encoded, null=null)

        def decode(params: Any, x0: jax.Array) -> jax.Array:
            assert self._decoder is not None
            return self._decoder.pixels(params[1], x0)

        shift = self.experiment.config.sampling.shift
        grid = sampling.make_grid(sampler, steps, info.sigma_data, times, shift)
        shape, finish = info.sample_shape, decode if decoded else None
        return sampling.make_sampler(
            make_fn, sampler, grid, shape, info.sigma_data, finish, encode, gamma
        )


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A trained run, ready to sample; its experiment has no teacher."""

    path: Path
    experiment: Experiment
    average: str  # name of the EMA whose parameters were read
    step: int  # step of its checkpoint
    params: Any
    generate: Generator


def load_generate(
    directory: str | os.PathLike,
    average: str = "",
    step: int | None = None,
    decoder: str | None = None,
    frames: int = 0,
) -> Loaded:
    """Reads what sampling needs of a run: its config and one EMA.

    ``decoder`` replaces ``config.sampling.decoder``; ``frames`` is the length of clips,
    0 for that of the training.
    """
    run_dir = RunDir(Path(directory))
    config = config_lib.from_dict(run_dir.read_config())
    config = experiment_lib.with_moved_runs(config, directory)
    if decoder is not None:
        config.sampling.decoder = decoder
    experiment = experiment_lib.build(config, taught=False)
    average = average_name(average) or experiment.sampling_ema
    abstract = experiment.abstract_params()["net"]
    if step is None:
        step = seal.newest_whole(run_dir.checkpoints_dir, "ema/")[0]
    if average in experiment.ema_profiles:
        params = load_average(directory, average, abstract, step)
    else:
        params = _reconstruct_average(run_dir, config, average, step)
    generate = Generator(experiment, params, conditions.read_text(run_dir), frames)
    return Loaded(run_dir.path, experiment, average, step, params, generate)


def _reconstruct_average(
    run_dir: RunDir, config: ConfigDict, width: str, step: int
) -> Any:
    """An EMA that was not kept, from the run's snapshots and its checkpoint.

    ``width`` is its relative width as text, ``step`` that of the checkpoint.

    Raises:
      ValueError: not a width, or too few EMAs were kept.
    """
    kept = [f"{rel_std:g}" for rel_std in config.ema.rel_std]
    snapshots = [s for s in seal.list_steps(run_dir.ema_snapshots_dir) if s < step]
    if strays := seal.strays_text(run_dir.ema_snapshots_dir):
        logger.warning("using %s snapshots%s", len(snapshots), strays)
    try:
        rel_std = float(width)
        ema.rel_std_to_gamma(rel_std)
    except ValueError as error:
        raise ValueError(
            f"ema {width!r} is neither kept in {run_dir.path}, which has "
            f"{sorted(ema_profiles(config))}, nor a relative width"
        ) from error
    places = [(run_dir.ema_snapshots_dir, s) for s in snapshots]
    places.append((run_dir.checkpoints_dir, step))
    stored = [(folder, name, moment) for folder, moment in places for name in kept]
    if len(stored) < 3:
        raise ValueError(
            f"ema {width} of {run_dir.path} was not kept and cannot be reconstructed "
            f"from {len(stored)} stored EMAs: train with ema.snapshot_images above "
            f"0, or choose one of {sorted(ema_profiles(config))}"
        )
    coefficients = ema.posthoc_coefficients(
        [moment for *_, moment in stored],
        [float(name) for _, name, _ in stored],
        step,
        rel_std,
    )
    return ema.weighted_sum(coefficients, (checkpoint.load_ema(*s) for s in stored))


def make_sampler(run: Run) -> reading.SampleFn:
    """``run.sample`` of a ``Run``: the newest checkpoint, compiled once."""
    load = functools.cache(lambda ema: load_generate(run.path, ema or ""))

    def sample(
        num: int, *, steps: int, seed: int, ema: str | None = None, **asked: Any
    ) -> reading.Samples:
        return draw(load(ema), num, steps, seed, **asked)

    return sample


def draw(
    loaded: Loaded,
    num: int,
    steps: int | None = None,
    seed: int = 0,
    label: int | None = None,
    prompt: Prompts | Sequence[str] | str | None = None,
    **settings: Any,
) -> reading.Samples:
    """Samples with the prompts that they were drawn from; see ``Generator.batches``."""
    generate = loaded.generate
    texts: tuple[str, ...] = ()
    config = loaded.experiment.config.sampling
    if prompt is not None or generate.info.text is not None:
        prompts = conditions.as_prompts(generate.info, prompt)
        texts = tuple(prompts.texts[i % len(prompts.texts)] for i in range(num))
        settings["prompts"] = prompts
    x, pixels = generate(num, steps, seed, label, pixels=True, **settings)
    guidance = settings.get("guidance")
    facts = {
        "run": str(loaded.path),
        "ema": loaded.average,
        "checkpoint": loaded.step,
        "seed": seed,
        "steps": config.steps if steps is None else steps,
        "guidance": config.guidance if guidance is None else guidance,
    }
    x, info = np.asarray(x, np.float32), generate.info
    sound = None if info.to_sound is None else info.to_sound(x)
    rate = info.sample_rate or info.frame_rate
    return reading.Samples(x, pixels, texts, facts, rate, sound)


def load_run(directory: str | os.PathLike) -> Run:
    """A run for notebooks: config, metrics, results and ``run.sample(...)``."""
    return reading.load_run(directory, make_sampler)
