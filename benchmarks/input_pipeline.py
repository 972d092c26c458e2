"""What a real loader costs the training, against one fixed batch on the device.

    python -m benchmarks.input_pipeline [--quick]

Segments of steps take real batches and a placed one in turns; the host waits for all
steps between them. Digits in memory with the demo's network; images 32x32x3 and latents
64x64x4 from array records on disk with a small transformer. A line also has the time of
the loader alone, since it shares the CPU with the network. The lines ``dispatch`` have
the host's time per step, and that of several steps per dispatch.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.util
import itertools
import logging
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import common, shapes
from scm_jax import config as config_lib
from scm_jax.datasets import latents, make_dataset, pipeline, storage
from scm_jax.runs.setup import experiment as experiment_lib
from scm_jax.training import ahead, loop, sharding
from scm_jax.training.state import TrainState

LIMIT = 1.01
# On a CPU a loader takes time from the computation; CPU time ignores other processes.
CLOCK = "cpu" if jax.default_backend() == "cpu" else "wall"

BUILDER = """
import numpy as np
import tensorflow_datasets as tfds

class Builder(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {{
            "{field}": tfds.features.Tensor(shape={shape}, dtype=np.{dtype}),
            "label": tfds.features.ClassLabel(num_classes=10),
        }}
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        return {{"train": self._generate_examples()}}

    def _generate_examples(self):
        rng = np.random.default_rng(0)
        for index in range({num_items}):
            value = {value}
            yield index, {{"{field}": value.astype(np.{dtype}), "label": index % 10}}
"""


class NoCheckpoints:
    """In the place of a ``Checkpointer``: nothing is saved."""

    def save(self, *args: Any, **kwargs: Any) -> None: ...

    def wait(self) -> None: ...

    def check(self) -> None: ...


class NoMetrics:
    """In the place of a writer."""

    def write_scalars(self, step: int, scalars: Any) -> None: ...

    def write_arrays(self, step: int, arrays: Any) -> None: ...

    def flush(self) -> None: ...


class InTurns:
    """``length`` batches of each iterator in turn; as many of the first before that."""

    def __init__(self, iterators: list[Any], length: int, first: int):
        self._iterators, self._length, self._first = iterators, length, first
        self._index = 0

    def __next__(self) -> Any:
        segment = max(self._index - self._first, 0) // self._length
        self._index += 1
        return next(self._iterators[segment % len(self._iterators)])

    def get_state(self) -> dict[str, int]:
        return {"next_index": self._index}


class Fixed:
    """The same batch for ever."""

    def __init__(self, batch: Any):
        self._batch = batch

    def __next__(self) -> Any:
        return self._batch


def segment_seconds(
    state: Any,
    train_step: Any,
    data: list[Any],
    to_batch: Callable[[Any], Any],
    batch_size: int,
    length: int,
    num: int,
) -> dict[str, list[float]]:
    """Seconds per step of ``num`` segments of ``length`` steps, after one for warm-up.

    By the clocks of ``common.CLOCKS``: the wall's, and that of the CPU time of all
    threads. Segment ``i`` takes its batches from ``data[i % len(data)]``; batches whose
    arrays are on the device are used as they are.
    """
    times: dict[str, list[float]] = {name: [] for name in common.CLOCKS}
    mesh = sharding.make_mesh(sharding.MeshSpec(data=1))

    decoded = ahead.make_place(to_batch, mesh)

    def place(batch: Any) -> Any:
        placed = isinstance(jax.tree.leaves(batch)[0], jax.Array)
        return batch if placed else decoded(batch)

    segment = length * batch_size
    settings = loop.LoopSettings(
        duration_images=(num + 1) * segment,
        batch_size=batch_size,
        log_every_images=segment,
        checkpoint_every_images=0,
        directory="",
    )

    def read_clocks(state: Any, images: int) -> None:
        for name, clock in common.CLOCKS.items():
            times[name].append(clock())

    mark = loop.Hook(segment, "mark", read_clocks)
    with jax.set_mesh(mesh):
        loop.train(
            settings,
            state=state,
            train_step=train_step,
            data=InTurns(data, length, length),
            place_batch=place,
            checkpointer=NoCheckpoints(),
            writer=NoMetrics(),
            hooks=[mark],
            progress=loop.NoProgress(),
        )
    return {
        name: [(b - a) / length for a, b in itertools.pairwise(marks)]
        for name, marks in times.items()
    }


def write_records(root: pathlib.Path, name: str, num_items: int) -> None:
    """A data set of random items as the package expects it under ``name``."""
    if name == "cifar10":
        field, shape, dtype = "image", (32, 32, 3), "uint8"
        value = f"rng.integers(0, 256, {shape})"
    else:
        field, shape, dtype = "latent", (64, 64, 4), "float32"
        mean, std, _ = latents.WHITENING["sd_vae_ft_mse_pm1"]
        value = f"rng.standard_normal({shape}) * {std} + {mean}"
    folder = root / "builder" / name
    folder.mkdir(parents=True)
    text = BUILDER.format(
        field=field, shape=shape, dtype=dtype, value=value, num_items=num_items
    )
    (folder / f"{name}_dataset_builder.py").write_text(text)
    (folder / "README.md").write_text("Random items for a benchmark.")
    storage.prepare(folder, root)


def records(name: str, root: pathlib.Path, num_items: int) -> Any:
    """The data set, read from disk item by item however small it is."""
    write_records(root, name, num_items)
    options = {"conditional": True} if name == "cifar10" else {}
    opened = make_dataset(name, root=root, **options).opened
    folder = storage.prepared_folder(name, root)
    source = pipeline.read_prepared(folder, memory_limit=0)
    return dataclasses.replace(opened, source=source)


def loader_alone(dataset: Any, batch_size: int, batches: int) -> dict[str, float]:
    """Rate and CPU time of the loader where nothing else runs."""
    iterator = dataset.iterator(batch_size, 0)
    for _ in range(10):  # what was read ahead is not counted
        next(iterator)
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(batches):
        next(iterator)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    images = batches * batch_size
    return {
        "loader_images_per_second": images / wall,
        "loader_cpu_seconds_per_batch": cpu / batches,
    }


def experiment_config(name: str, variant: str) -> Any:
    """The config of a file of ``experiments/``."""
    path = pathlib.Path(__file__).parents[1] / "experiments" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(variant)


def records_config(name: str, batch_size: int, patch: int) -> Any:
    """A diffusion training with a network that computes long enough on a CPU."""
    config = config_lib.base_config("dit", "diffusion", name)
    config.network.update({**shapes.DIT_A.settings, "patch": patch})
    config.train.batch_size = batch_size
    return config


def compare(name: str, config: Any, dataset: Any, length: int, pairs: int) -> float:
    """Prints one line; returns the time with real batches over that with a fixed."""
    batch_size = config.train.batch_size
    experiment = experiment_lib.build(config)
    state = jax.jit(experiment.init_state)()
    mesh = sharding.make_mesh(sharding.MeshSpec(data=1))
    real = dataset.iterator(batch_size, 0)
    place = ahead.make_place(dataset.to_batch, mesh)
    fixed = Fixed(place(next(dataset.iterator(batch_size, 1))))
    train_step = experiment.train_step()
    times = segment_seconds(
        state,
        lambda state, batch: train_step(state, batch, None),
        [fixed, real],
        dataset.to_batch,
        batch_size,
        length,
        2 * pairs + 1,
    )
    found = {}
    for clock, steps in times.items():
        # Each real segment against the mean of its two neighbours.
        around = zip(steps[0::2], steps[1::2], steps[2::2], strict=False)
        ratios = [2 * b / (a + c) for a, b, c in around]
        found[clock] = {
            "fixed_step_seconds": statistics.median(steps[0::2]),
            "real_step_seconds": statistics.median(steps[1::2]),
            "ratio": statistics.median(ratios),
            "quartiles": statistics.quantiles(ratios, n=4)[::2],
        }
    common.emit(
        benchmark="input_pipeline",
        data=name,
        batch_size=batch_size,
        sample_shape=list(dataset.info.sample_shape),
        **found,
        **loader_alone(dataset, batch_size, 20),
    )
    ratio = found[CLOCK]["ratio"]
    return ratio


# --- dispatch -------------------------------------------------------------------------


def host_overhead(steps: int) -> dict[str, float]:
    """Host microseconds per step of a training that computes next to nothing."""
    dataset = make_dataset("digits", prepare=True)
    mesh = sharding.make_mesh(sharding.MeshSpec(data=1))
    raw = next(dataset.iterator(8, 0))

    def step(state: Any, batch: Any) -> Any:
        loss = jnp.sum(batch.x[0, 0])
        metrics = {name: loss for name in ("loss", "grad_norm", "tangent_norm")}
        return state.replace(step=state.step + 1), {
            **metrics,
            "finite": jnp.isfinite(loss),
        }

    def run(data: Any) -> float:
        state = TrainState(
            jnp.int32(0), {"net": {"w": jnp.zeros(8)}}, {}, {}, jax.random.key(0)
        )
        times = segment_seconds(state, step, [data], dataset.to_batch, 8, steps, 5)
        return 1e6 * statistics.median(times["wall"])

    return {
        "fixed_batch": run(Fixed(ahead.make_place(dataset.to_batch, mesh)(raw))),
        "one_batch_placed_every_step": run(Fixed(raw)),
        "digits": run(dataset.iterator(8, 0)),
    }


def steps_per_dispatch(config: Any, num_steps: int, repeats: int) -> dict[str, Any]:
    """``num_steps`` dispatches against one dispatch of a scan over as many steps."""
    experiment = experiment_lib.build(config)
    batch_size = config.train.batch_size
    iterator = experiment.dataset.iterator(batch_size, 0)
    to_batch = jax.jit(experiment.dataset.to_batch)
    batches = [to_batch(next(iterator)) for _ in range(num_steps)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *batches)
    step = loop.halting(experiment.train_step())
    single = jax.jit(step, donate_argnums=(0, 1))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def many(state: Any, ok: Any, stacked: Any) -> Any:
        def body(carry: Any, batch: Any) -> Any:
            *carry, metrics = step(*carry, batch, None)
            return tuple(carry), metrics

        return jax.lax.scan(body, (state, ok), stacked)

    def stepper(advance: Callable[[Any, Any], tuple[Any, Any]]) -> Callable[[], Any]:
        held = [jax.jit(experiment.init_state)(), jnp.bool_(True)]

        def run() -> Any:
            held[:] = advance(*held)
            return held

        return run

    def one_by_one(state: Any, ok: Any) -> tuple[Any, Any]:
        for batch in batches:
            state, ok, _ = single(state, ok, batch, None)
        return state, ok

    def at_once(state: Any, ok: Any) -> tuple[Any, Any]:
        (state, ok), _ = many(state, ok, stacked)
        return state, ok

    found = common.paired(stepper(at_once), stepper(one_by_one), repeats, clock=CLOCK)
    return {
        "data": config.dataset.name,
        "network": config.network.name,
        "batch_size": batch_size,
        "steps_per_dispatch": num_steps,
        "clock": CLOCK,
        "step_seconds_several": found.a / num_steps,
        "step_seconds_one": found.b / num_steps,
        "several_over_one": found.ratio,
        "quartiles": found.spread,
    }


def dispatch(quick: bool) -> None:
    """Prints the lines ``dispatch``."""
    microseconds = host_overhead(300 if quick else 1000)
    common.emit(benchmark="dispatch", host_microseconds_per_step=microseconds)
    mixture = experiment_config("mixture", "sct")
    mixture.train.batch_size = 128
    for config in (experiment_config("digits", "teacher"), mixture):
        found = steps_per_dispatch(config, 8, 6 if quick else 20)
        common.emit(benchmark="dispatch", **found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer segments")
    quick = parser.parse_args().quick
    logging.disable(logging.WARNING)  # subsets of data sets are meant here
    pairs = 6 if quick else 20
    ratios = {}
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        digits = make_dataset("digits", prepare=True)
        config = experiment_config("digits", "teacher")
        ratios["digits in memory"] = compare(
            "digits in memory", config, digits, 16, pairs
        )
        for name, patch, num_items in (
            ("cifar10", 4, 2048),
            ("imagenet512_latents", 8, 512),
        ):
            config = records_config(name, 16, patch)
            dataset = records(name, root, num_items)
            label = f"{name} from disk"
            ratios[label] = compare(label, config, dataset, 4, pairs)
        dispatch(quick)
    common.ratio(
        "step with a real loader / step with a fixed batch",
        max(ratios.values()),
        limit=LIMIT,
        clock=CLOCK,
        by_data=ratios,
    )


if __name__ == "__main__":
    main()
