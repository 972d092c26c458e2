"""Programs that need their own number of devices; see test_multidevice.py.

python -m tests.multidevice.program COMMAND DIRECTORY [...]
"""

import functools
import itertools
import os
import pathlib
import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from scm_jax.networks.attention import attention
from scm_jax.training import ahead, checkpoint, loop, sharding
from scm_jax.types import Batch
from tests.datasets import test_to_batch
from tests.training import toy

RULES = (("layer/kernel$", ("fsdp", "tensor")), (".*", "replicate"))


def train(directory, steps, spec, data=None, **changes):
    """The toy training on a mesh; resumes. Returns result and state shardings."""
    mesh = sharding.make_mesh(spec)
    sharding.check_batch_size(toy.BATCH, mesh)
    shape = jax.eval_shape(toy.init)
    shardings = sharding.state_shardings(shape, mesh, RULES)
    abstract = sharding.abstract_like(shape, shardings)
    data = toy.ToyData() if data is None else data
    with checkpoint.Checkpointer(directory / "checkpoints") as checkpointer:
        state, step = loop.restore_or_init(
            checkpointer, abstract, jax.jit(toy.init, out_shardings=shardings), data
        )
        if step is not None:
            save(directory / f"restored_{step}_on_{jax.device_count()}.npz", state)
        result = loop.train(
            toy.settings(directory, steps, checkpoint_every_images=0, **changes),
            state=state,
            train_step=toy.train_step,
            data=data,
            place_batch=lambda batch: sharding.place_batch(batch, mesh),
            checkpointer=checkpointer,
            writer=toy.ListWriter(),
        )
    return result, shardings


def save(path, state):
    np.savez(path, **toy.leaves(state))


def train_here(directory, steps, *sizes):
    """Trains on all devices of this process, and checks where everything lies."""
    spec = sharding.MeshSpec(*map(int, sizes))
    result, shardings = train(directory, int(steps), spec)
    same = jax.tree.map(lambda x, s: x.sharding == s, result.state, shardings)
    assert jax.tree.all(same), same
    save(directory / f"trained_{steps}.npz", result.state)


def check_mesh(directory):
    """Parameters, moments and averages are cut alike; batches by data and fsdp."""
    mesh = sharding.make_mesh(sharding.MeshSpec(data=2, fsdp=-1, tensor=2))
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    shape = jax.eval_shape(toy.init)
    shardings = sharding.state_shardings(shape, mesh, RULES)
    state = jax.jit(toy.init, out_shardings=shardings)()
    adam = state.opt_state[0]
    trees = (state.params["net"], adam.mu["net"], adam.nu["net"], *state.ema.values())
    for tree in trees:
        kernel = tree["layer"]["kernel"]
        assert kernel.sharding.spec == PartitionSpec("fsdp", "tensor")
        assert {s.data.shape for s in kernel.addressable_shards} == {(32, 32)}
        assert tree["layer"]["bias"].sharding.is_fully_replicated
    batch = next(toy.ToyData())
    placed = sharding.place_batch(batch, mesh)
    np.testing.assert_array_equal(placed.x, batch.x)
    assert {s.data.shape for s in placed.x.addressable_shards} == {(2, toy.DIM)}
    _expect(
        ValueError,
        "batch_size=6 is not divisible by the 4 devices",
        lambda: sharding.place_batch(Batch(x=batch.x[:6]), mesh),
    )
    _expect(
        ValueError,
        "data=3, fsdp=1, tensor=1 needs 3 devices; 8 are present",
        lambda: sharding.make_mesh(sharding.MeshSpec(data=3)),
    )
    average = checkpoint.load_ema(directory / "checkpoints", "0.05")
    assert {x.devices() == {jax.devices()[0]} for x in jax.tree.leaves(average)} == {
        True
    }


def compare_attention(_):
    """The chunked attention with split batch and heads, against the einsum on one."""
    mesh = sharding.make_mesh(sharding.MeshSpec(data=2, tensor=2))
    split = NamedSharding(mesh, PartitionSpec("data", None, "tensor"))
    rng = np.random.default_rng(0)
    shape = (2, 600, 4, 8)  # more than one chunk
    arrays = [rng.normal(size=shape).astype(np.float32) for _ in range(6)]
    mask = rng.random(shape[:2]) < 0.7

    def step(implementation, arrays, mask):
        f = functools.partial(attention, key_mask=mask, implementation=implementation)

        def loss(qkv):
            F, dF = jax.jvp(f, tuple(qkv), tuple(arrays[3:]))
            return jnp.sum((F - jax.lax.stop_gradient(F + dF)) ** 2), (F, dF)

        return jax.grad(loss, has_aux=True)(arrays[:3])

    expected = jax.jit(step, static_argnums=0)("einsum", arrays, mask)
    placed = jax.device_put(arrays, split)
    rows = jax.device_put(mask, NamedSharding(mesh, PartitionSpec("data")))
    compiled = jax.jit(step, static_argnums=0).lower("chunked", placed, rows).compile()
    text = compiled.as_text()
    assert not any(name in text for name in ("all-gather", "all-to-all", "permute("))
    got = compiled(placed, rows)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert {s.data.shape for s in a.addressable_shards} == {(1, 600, 2, 8)}
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


def _expect(error, message, call):
    try:
        call()
    except error as caught:
        assert message in str(caught), caught
    else:
        raise AssertionError(f"no {error.__name__} {message!r}")


def train_together(directory, address, process_id):
    """One of two processes; the second is told to leave by a signal it sends itself."""
    jax.distributed.initialize(address, 2, int(process_id))
    spec = sharding.MeshSpec(data=-1, fsdp=2)
    mesh = sharding.make_mesh(spec)
    shard, count = sharding.data_shard(mesh)
    assert (shard, count) == (int(process_id), 2)
    crossing = sharding.make_mesh(sharding.MeshSpec(data=1, fsdp=1, tensor=-1))
    assert sharding.data_shard(crossing) == (0, 1), "all must feed every row"

    class Data(toy.ToyData):
        def __next__(self):
            if int(process_id) == 1 and self.index == 5:
                os.kill(os.getpid(), signal.SIGUSR1)
            batch = super().__next__()
            return Batch(x=np.split(batch.x, count)[shard])

    result, _ = train(directory, 4000, spec, data=Data())
    assert result.status == loop.PREEMPTED
    step = int(result.state.step)
    print(f"left at {step}", flush=True)
    jax.distributed.shutdown()


def compare_batches(_):
    """Batches made on four devices: the bits of one, cut by rows, nothing exchanged."""
    flips, draws = test_to_batch.flipped_images(), test_to_batch.posteriors()
    for dataset in (flips, draws):
        raws = list(itertools.islice(dataset.iterator(16, seed=3), 2))
        found = {}
        for count in (1, 4):
            spec = sharding.MeshSpec(data=count)
            mesh = sharding.make_mesh(spec, jax.devices()[:count])
            place = ahead.make_place(dataset.to_batch, mesh)
            found[count] = [place(raw) for raw in raws]
        jax.tree.map(np.testing.assert_array_equal, *found.values())
        batch = found[4][0]
        assert {s.data.shape[0] for s in batch.x.addressable_shards} == {4}
        rows = sharding.batch_sharding(mesh)
        jitted = jax.jit(dataset.to_batch, in_shardings=rows, out_shardings=rows)
        text = jitted.lower(raws[0]).compile().as_text()
        names = ("all-gather", "all-to-all", "permute(", "all-reduce")
        assert not any(name in text for name in names)
        _expect(
            ValueError,
            "batch_size=6 is not divisible by the 4 devices",
            lambda: place(jax.tree.map(lambda a: a[:6], raws[0])),  # noqa: B023
        )


COMMANDS = {
    f.__name__: f
    for f in (
        train_here,
        check_mesh,
        compare_attention,
        compare_batches,
        train_together,
    )
}

if __name__ == "__main__":
    jax.config.update("jax_numpy_rank_promotion", "raise")
    COMMANDS[sys.argv[1]](pathlib.Path(sys.argv[2]), *sys.argv[3:])
