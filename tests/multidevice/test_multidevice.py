"""States, batches, attention and features on several devices, and on several hosts."""

import functools
import itertools
import os
import pathlib
import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from scm_jax.evaluation.features import extraction
from scm_jax.networks.attention import attention
from scm_jax.training import ahead, checkpoint, loop, sharding
from scm_jax.types import Batch
from tests.datasets import test_to_batch
from tests.multidevice import test_meshes
from tests.multidevice.eight import on_eight_devices
from tests.multidevice.processes import Processes, free_port
from tests.training import toy

RULES = (("layer/kernel$", ("fsdp", "tensor")), (".*", "replicate"))


# --- States ---------------------------------------------------------------------------


def train(directory, steps, spec, data=None):
    """The toy training on a mesh; resumes. Its result, and what was restored."""
    mesh = sharding.make_mesh(spec)
    shape = jax.eval_shape(toy.init)
    shardings = sharding.state_shardings(shape, mesh, RULES)
    abstract = sharding.abstract_like(shape, shardings)
    data = toy.ToyData() if data is None else data
    with checkpoint.Checkpointer(directory / "checkpoints") as checkpointer:
        state, step = loop.restore_or_init(
            checkpointer, abstract, jax.jit(toy.init, out_shardings=shardings), data
        )
        restored = None if step is None else toy.leaves(state)
        result = loop.train(
            toy.settings(directory, steps, checkpoint_every_images=0),
            state=state,
            train_step=toy.train_step,
            data=data,
            place_batch=lambda batch: sharding.place_batch(batch, mesh),
            checkpointer=checkpointer,
            writer=toy.ListWriter(),
        )
    same = jax.tree.map(lambda x, s: x.sharding == s, result.state, shardings)
    assert jax.tree.all(same), same
    return result, restored


def train_here(directory, steps, *sizes):
    result, restored = train(directory, steps, sharding.MeshSpec(*sizes))
    return toy.leaves(result.state), restored


@on_eight_devices
def train_on_eight(*args):
    return train_here(*args)


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """Steps 0-6 on eight devices, 6-12 on one, 12-18 on eight with another mesh."""
    directory = tmp_path_factory.mktemp("story")
    first = train_on_eight(directory, 6, 2, 2, 2)
    second = train_here(directory, 12, 1, 1, 1)
    return directory, first, second, train_on_eight(directory, 18, 1, 4, 2)


def test_saved_on_eight_and_on_one_and_restored_on_the_other(story):
    for (saved, _), (_, restored) in itertools.pairwise(story[1:]):
        toy.assert_same(saved, restored)


def test_changing_devices_does_not_change_the_training(story):
    step, data, state = jax.jit(toy.train_step), toy.ToyData(), toy.init()
    for _ in range(18):
        state, _ = step(state, toy.place(next(data)))
    got, _ = story[-1]
    for name, x in toy.leaves(state).items():
        # sums over eight devices round differently
        np.testing.assert_allclose(got[name], x, rtol=2e-4, atol=1e-6, err_msg=name)


@on_eight_devices
def average_devices(directory):
    average = checkpoint.load_ema(directory / "checkpoints", "0.05")
    return [x.devices() == {jax.devices()[0]} for x in jax.tree.leaves(average)]


def test_an_average_is_read_onto_one_device(story):
    assert set(average_devices(story[0])) == {True}


@on_eight_devices
def test_everything_lies_where_the_rules_say():
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
    with pytest.raises(ValueError, match="batch_size=6 is not divisible by the 4 dev"):
        sharding.place_batch(Batch(x=batch.x[:6]), mesh)
    with pytest.raises(ValueError, match="data=3, .* needs 3 devices; 8 are present"):
        sharding.make_mesh(sharding.MeshSpec(data=3))


# --- Programs -------------------------------------------------------------------------


def exchanges(compiled):
    names = ("all-gather", "all-to-all", "permute(", "all-reduce")
    return {name for name in names if name in compiled.as_text()}


@on_eight_devices
def test_attention_with_split_batch_and_heads_is_the_same():
    """The chunked attention with split batch and heads, against the einsum on one."""
    mesh = sharding.make_mesh(sharding.MeshSpec(data=2, tensor=2), jax.devices()[:4])
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
    assert exchanges(compiled) <= {"all-reduce"}
    got = compiled(placed, rows)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert {s.data.shape for s in a.addressable_shards} == {(1, 600, 2, 8)}
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize("name", sorted(test_to_batch.DATASETS))
@on_eight_devices
def test_batches_made_on_several_devices_are_the_same(name):
    """The bits of one device, cut by rows, nothing exchanged."""
    dataset = test_to_batch.DATASETS[name]()
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
    assert not exchanges(jitted.lower(raws[0]).compile())
    with pytest.raises(ValueError, match="batch_size=6 is not divisible by the 4 dev"):
        place(jax.tree.map(lambda a: a[:6], raws[0]))


# --- Features -------------------------------------------------------------------------


def apply(params, x):
    """A convolution over the image, so that a cut at the wrong axis is seen."""
    x = jax.lax.conv_general_dilated(
        x.astype(jnp.float32) / 255,
        params,
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return {"features": jax.nn.relu(x).mean(axis=(1, 2)), "row": x[:, 0]}


def features(images=21, batch=6):
    """Features of a tiny network, and how many came at a time."""
    rng = np.random.default_rng(0)
    params = rng.standard_normal((3, 3, 3, 5), np.float32)
    x = rng.integers(0, 256, (images, 8, 8, 3), dtype=np.uint8)
    net = extraction.FeatureNet("", "", "", apply, params, batch_size=batch)
    parts = list(net.batches(x))
    sizes = [len(part["features"]) for part in parts]
    return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}, sizes


@on_eight_devices
def features_on_eight():
    cuts, fetch = [], extraction._fetch

    def watched(outputs, count):
        shards = outputs["features"].addressable_shards
        cuts.append([s.data.shape[0] for s in shards])
        return fetch(outputs, count)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extraction, "_fetch", watched)
        everywhere, sizes = features()
    assert sizes == [8, 8, 5], sizes  # the next multiple of eight
    assert cuts == [[1] * 8] * 3, cuts  # one row on each of the eight
    return everywhere


def test_eight_devices_give_the_features_of_one():
    got, (expected, _) = features_on_eight(), features()
    assert sorted(got) == sorted(expected)
    for name, x in expected.items():
        assert len(x) == 21
        np.testing.assert_allclose(got[name], x, rtol=1e-5, atol=1e-6)


# --- Several processes ----------------------------------------------------------------


def work_together(directory, address, index):
    """One of two processes: a step, then a training that a signal to the second ends.

    python -m tests.multidevice.test_multidevice DIRECTORY ADDRESS INDEX
    """
    jax.distributed.initialize(address, 2, index)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "FSDP_MIN_SIZE", 64)
        mesh = sharding.make_mesh(sharding.MeshSpec(data=1, fsdp=-1))
        loss, grads = test_meshes.one_step("dit", mesh)
    spec = sharding.MeshSpec(data=-1, fsdp=2)
    shard, count = sharding.data_shard(sharding.make_mesh(spec))
    assert (shard, count) == (index, 2)
    crossing = sharding.make_mesh(sharding.MeshSpec(data=1, fsdp=1, tensor=-1))
    assert sharding.data_shard(crossing) == (0, 1), "all must feed every row"

    class Data(toy.ToyData):
        def __next__(self):
            if index == 1 and self.index == 5:
                os.kill(os.getpid(), signal.SIGUSR1)
            batch = super().__next__()
            return Batch(x=np.split(batch.x, count)[shard])

    result, _ = train(directory, 4000, spec, data=Data())
    assert result.status == loop.PREEMPTED
    print(f"left at {int(result.state.step)}", flush=True)
    np.savez(directory / f"{index}.npz", *jax.tree.leaves(grads), loss=loss)
    jax.distributed.shutdown()


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """Where two processes of two devices have worked, and their outputs."""
    directory = tmp_path_factory.mktemp("together")
    address = f"127.0.0.1:{free_port()}"
    commands = [(__name__, directory, address, index) for index in range(2)]
    given = os.environ.get("XLA_FLAGS", "")
    flags = f"{given} --xla_force_host_platform_device_count=2"
    with Processes(commands, XLA_FLAGS=flags) as processes:
        outputs = processes.finish(0, 0)
    return directory, outputs


@on_eight_devices
def check_step(path):
    """A step in four pieces on two hosts against one device."""
    with np.load(path) as file:
        loss, arrays = file["loss"], [file[n] for n in file.files if n != "loss"]
    structure = jax.tree.structure(test_meshes.of_one_device("dit")[1])
    test_meshes.check("dit", loss, jax.tree.unflatten(structure, arrays))


def test_processes_together_compute_what_one_does(together):
    """With real collectives between them, parameters in four pieces."""
    for index in range(2):
        check_step(together[0] / f"{index}.npz")


def test_two_processes_leave_at_the_same_step(together):
    directory, outputs = together
    steps = [int(o.split("left at ")[1].split()[0]) for o in outputs]
    assert steps[0] == steps[1] and 5 <= steps[0] < 4000
    # what two processes wrote, one process reads
    restored = toy.restore(directory)
    assert restored.step == steps[0] == restored.data["next_index"]


if __name__ == "__main__":
    jax.config.update("jax_numpy_rank_promotion", "raise")
    folder, coordinator, number = sys.argv[1:]
    work_together(pathlib.Path(folder), coordinator, int(number))
