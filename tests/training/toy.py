"""A training in miniature, for the tests of the infrastructure.

A least-squares fit with Adam that has every part of a real one: groups net and
objective, moments, averages, a typed key for the noise, time bins, a finite flag.
As a program it trains in ``--directory``; the kill tests need it.
"""

import argparse
import functools
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from scm_jax.training import checkpoint, loop
from scm_jax.training.ema import PowerEma
from scm_jax.training.progress import Progress
from scm_jax.types import Batch

BATCH = 8
DIM = 64
OPTIMIZER = optax.adam(1e-2)
PROFILES = {"0.05": PowerEma(0.05), "0.10": PowerEma(0.10)}


# Where compiling takes longer than what is compiled.
quick_jit = functools.partial(
    jax.jit,
    compiler_options={
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    },
)


def make_key(seed: int):
    """A key that is not of the default kind, must survive, and compiles quickly."""
    return jax.random.key(seed, impl="unsafe_rbg")


@flax.struct.dataclass
class ToyState:
    step: Any
    params: Any
    opt_state: Any
    ema: Any
    key: Any


def init(width: int = DIM) -> ToyState:
    net = {
        "layer": {"kernel": jnp.ones((DIM, width)), "bias": jnp.zeros((width,))},
        "empty": {},
    }
    params = {"net": net, "objective": {"log_weight": jnp.zeros(())}}
    return ToyState(
        step=jnp.int32(0),
        params=params,
        opt_state=OPTIMIZER.init(params),
        ema={name: jax.tree.map(jnp.copy, net) for name in PROFILES},
        key=make_key(7),
    )


def loss_fn(params, batch, key):
    x = batch.x + 0.1 * jax.random.normal(key, batch.x.shape)
    layer = params["net"]["layer"]
    y = jnp.dot(x, layer["kernel"]) + layer["bias"][None]
    weight = params["objective"]["log_weight"]
    return jnp.exp(weight) * jnp.mean((y - 0.5 * batch.x) ** 2) - weight


def train_step(state: ToyState, batch: Batch):
    key = jax.random.fold_in(state.key, state.step)
    loss, grads = jax.value_and_grad(loss_fn)(state.params, batch, key)
    finite = jnp.isfinite(loss) & jnp.all(jnp.isfinite(batch.x))
    updates, opt_state = OPTIMIZER.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = {
        name: jax.tree.map(
            lambda e, p, w=profile.update_weight(state.step, BATCH): e + w * (p - e),
            state.ema[name],
            params["net"],
        )
        for name, profile in PROFILES.items()
    }
    new = state.replace(
        step=state.step + 1, params=params, opt_state=opt_state, ema=ema
    )
    new = jax.tree.map(lambda n, o: jax.lax.select(finite, n, o), new, state)
    bins = {"loss": jnp.stack([loss, 0 * loss]), "count": jnp.array([1.0, 0.0])}
    return new, {"loss": loss, "finite": finite, "bins": bins}


class ToyData:
    """Batch ``i`` depends on ``i`` only; ``bad`` batches hold one NaN.

    ``before(i)`` is called when it is asked for.
    """

    def __init__(self, bad=(), end=None, before=lambda index: None):
        self.index, self.bad, self.end, self.before = 0, bad, end, before

    def __next__(self) -> Batch:
        self.before(self.index)
        if self.index == self.end:
            raise StopIteration
        x = np.random.default_rng(self.index).normal(size=(BATCH, DIM))
        x = x.astype(np.float32)
        if self.index in self.bad:
            x[3, 1] = np.nan
        self.index += 1
        return Batch(x=x)

    def get_state(self):
        return {"next_index": self.index}

    def set_state(self, state):
        self.index = state["next_index"]


class ListWriter:
    """Remembers what is written."""

    def __init__(self):
        self.scalars, self.arrays, self.flushes = [], [], 0

    def write_scalars(self, step, scalars):
        self.scalars.append((step, dict(scalars)))

    def write_arrays(self, step, arrays):
        self.arrays.append((step, dict(arrays)))

    def flush(self):
        self.flushes += 1


def settings(directory, steps=20, **changes) -> loop.LoopSettings:
    values = {
        "duration_images": steps * BATCH,
        "batch_size": BATCH,
        "log_every_images": 4 * BATCH,
        "checkpoint_every_images": 5 * BATCH,
        "directory": directory,
    }
    return loop.LoopSettings(**{**values, **changes})


def place(batch):
    return jax.tree.map(jnp.asarray, batch)


def leaves(state) -> dict[str, np.ndarray]:
    """Every array of a state by name, keys as their bits, for bitwise comparison."""
    named = {}
    for path, x in jax.tree_util.tree_leaves_with_path(state):
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            x = jax.random.key_data(x)
        named[jax.tree_util.keystr(path, simple=True, separator="/")] = np.asarray(x)
    return named


def metadata(folder, step: int) -> dict[str, Any]:
    """The metadata of a saved checkpoint."""
    return json.loads((folder / str(step) / "metadata/metadata").read_text())


def assert_same(a, b):
    a, b = leaves(a), leaves(b)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def assert_close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def run(
    directory, steps=20, *, data=None, step=None, writer=None, hooks=(), args=(), **more
):
    """Trains or resumes in ``directory``."""
    directory = pathlib.Path(directory)
    data = ToyData() if data is None else data
    with checkpoint.Checkpointer(directory / "checkpoints") as checkpointer:
        state, _ = loop.restore_or_init(checkpointer, jax.eval_shape(init), init, data)
        return loop.train(
            settings(directory, steps, **more),
            state=state,
            train_step=step or train_step,
            data=data,
            place_batch=place,
            checkpointer=checkpointer,
            writer=ListWriter() if writer is None else writer,
            hooks=hooks,
            step_args=args,
            metadata={"config_hash": "toy"},
            progress=Progress(steps, BATCH),
        )


def restore(directory, abstract=None):
    """The newest checkpoint of the run there."""
    abstract = jax.eval_shape(init) if abstract is None else abstract
    with checkpoint.Checkpointer(directory / "checkpoints") as checkpointer:
        return checkpointer.restore_latest(abstract)


def in_new_process(directory, *options) -> subprocess.CompletedProcess:
    """This program in a process of its own, with its output as text."""
    module = ("-m", "tests.training.toy", f"--directory={directory}")
    return subprocess.run(
        [sys.executable, *module, *options],
        cwd=pathlib.Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=3600,
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--directory", required=True)
    parser.add_argument("--kill_while_saving", type=int, default=-1)
    parser.add_argument("--file_limit", type=int, default=0)
    args = parser.parse_args()
    jax.config.update("jax_numpy_rank_promotion", "raise")
    if args.kill_while_saving >= 0:
        _kill_while_saving(args.kill_while_saving)
    if args.file_limit:
        _limit_files(args.file_limit)
    run(args.directory)


def _kill_while_saving(nth: int) -> None:
    """Kills this process when the files of save ``nth`` are half written."""
    from scm_jax.training import seal

    original, saves = seal.write_manifest, []

    def write_manifest(directory):
        saves.append(directory)
        if len(saves) > nth:
            time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGKILL)
        original(directory)

    seal.write_manifest = write_manifest


def _limit_files(size: int) -> None:
    """No file may grow beyond ``size`` bytes, from the second save on."""
    import resource

    original, saves = checkpoint.Checkpointer.save, []

    def save(self, *args, **kwargs):
        self.wait()
        if saves:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        saves.append(1)
        original(self, *args, **kwargs)

    checkpoint.Checkpointer.save = save


if __name__ == "__main__":
    main()
