"""A consistency step is the same on every mesh."""

import functools
import os
import tempfile

import jax
import numpy as np
import optax
import pytest
from jax.experimental import multihost_utils

from scm_jax import networks, objectives
from scm_jax.training import sharding
from scm_jax.training import state as state_lib
from scm_jax.training.step import Weights, make_train_step
from scm_jax.types import Batch, Cond, TextInfo, conditions
from tests.multidevice.eight import on_eight_devices
from tests.training import toy

UNET = {"width": 32, "channel_mult": (1,), "num_blocks": 2, "unroll": 1}
UNET |= {"attention_resolutions": (8,)}
SETTINGS = {
    "unet": UNET | {"head_channels": 8},
    "ddpmpp": UNET | {"num_heads": 4},
    "dit": {"width": 32, "depth": 5, "num_heads": 4, "tower_width": 32},
    # The last caption is not read by queries, whose norm would have no gradient.
    "mmdit": {"width": 32, "depth": 6, "tower_width": 32, "qk_norm": "none"},
    # Tokens are split between attentions, and heads within them.
    "wan": {"width": 32, "depth": 5, "num_heads": 4, "tower_width": 32}
    | {"patch_sides": (2, 2)},
}
SEQUENCES = ("wan",)
# Transformers read captions, too: tower, cross- and joint attention on the mesh.
TEXTS = dict.fromkeys(("dit", "mmdit", "wan"), TextInfo(4, ("a", "red", "star")))
# Sizes of (data, fsdp, tensor); each takes 10 to 25 seconds to compile.
MESHES = [("unet", (2, 2, 2))]
MESHES += [("dit", (1, 8, 1)), ("dit", (2, 2, 2)), ("wan", (1, 2, 4))]
if os.environ.get("SCM_JAX_NIGHTLY"):
    MESHES += [("ddpmpp", (2, 2, 2)), ("mmdit", (2, 2, 2))]
    MESHES += [("dit", sizes) for sizes in [(8, 1, 1), (2, 1, 1), (1, 4, 1)]]
    MESHES += [("dit", (1, 2, 4)), ("wan", (2, 1, 4))]
    MESHES += [("unet", sizes) for sizes in [(8, 1, 1), (1, 8, 1), (1, 2, 4)]]
SHAPE, CLASSES, BATCH = (8, 8, 4), 3, 16


def random_like(tree, seed):
    """Every leaf drawn, so that no gradient is zero."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda a: np.asarray(0.3 * rng.normal(size=a.shape), np.float32), tree
    )


def one_step(name, mesh):
    """Loss and gradient of distillation, with everything switched on."""
    sequence = name in SEQUENCES
    rules = sharding.SEQUENCE_RULES if sequence else sharding.DEFAULT_RULES
    placement = mesh and sharding.Placement(mesh, rules, sequence)
    settings = {"dropout": 0.2, "remat": "blocks", **SETTINGS[name]}
    net = networks.build(name, SHAPE, CLASSES, TEXTS.get(name), **settings)
    net = net.place(placement)
    objective = objectives.build(
        "consistency", dx_dt="teacher", sigma_data=0.5, tangent_warmup_steps=0
    )
    params = {
        "net": jax.eval_shape(net.init, jax.random.key(0)),
        "objective": objective.init(jax.random.key(0)),
    }
    params = random_like(params, 0)
    rng = np.random.default_rng(1)
    batch = Batch(
        x=0.5 * rng.normal(size=(BATCH, *SHAPE)).astype(np.float32),
        label=np.arange(BATCH, dtype=np.int32) % CLASSES,
        tokens=rng.integers(0, 3, (BATCH, 4), np.int32) * 130,
    )

    def keep(folded):
        if placement is None:
            return folded
        return folded.replace(weights=placement.keep(folded.weights))

    def teacher_fn(weights, x, cond):
        return net.apply(weights, x, Cond(t=cond.t, **conditions(cond)))

    optimizer = optax.sgd(1.0)  # the change of the parameters is the gradient
    how = {"teacher_fn": teacher_fn, "weights": Weights(net.fold, keep)}
    step = make_train_step(
        objective, net.apply, optimizer, {}, num_microbatches=2, **how
    )
    teacher_params = random_like(params["net"], 2)

    def init():
        state = state_lib.init_state(params, optimizer, (), jax.random.key(3))
        return state, net.fold(teacher_params)

    if mesh is None:
        (state, teacher), step = toy.quick_jit(init)(), toy.quick_jit(step)
    else:
        where = sharding.state_shardings(jax.eval_shape(init)[0], mesh, rules)
        both = where, networks.Folded(where.params["net"])
        state, teacher = toy.quick_jit(init, out_shardings=both)()
        shard, shards = sharding.data_shard(mesh)
        batch = jax.tree.map(lambda a: np.split(a, shards)[shard], batch)
        batch = sharding.place_batch(batch, mesh)
        jitted = toy.quick_jit(step, out_shardings=(where, None))
        step = jitted.lower(state, batch, teacher).compile()
        assert ("all-to-all" in step.as_text()) or not sequence
    new, metrics = step(state, batch, teacher)
    after = new.params
    if mesh is not None and mesh.is_multi_process:
        after = multihost_utils.process_allgather(after, tiled=True)
    grads = jax.tree.map(lambda a, b: a - np.asarray(b), params, after)
    return float(metrics["loss"]), grads


@functools.cache
def of_one_device(name):
    with jax.default_device(jax.local_devices()[0]):
        loss, grads = one_step(name, None)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(grads))
    return loss, grads


def check(name, loss, grads):
    """Loss and gradient are those of one device, to 1e-5."""
    expected_loss, expected = of_one_device(name)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    error = optax.tree.norm(jax.tree.map(np.subtract, grads["net"], expected["net"]))
    assert error / optax.tree.norm(expected["net"]) < 1e-5, error


class Stderr:
    """What the process prints there, from C++ too."""

    def __enter__(self):
        self._file, self._before = tempfile.TemporaryFile("w+"), os.dup(2)
        os.dup2(self._file.fileno(), 2)
        return self

    def __exit__(self, *exc_info):
        os.dup2(self._before, 2)
        os.close(self._before)
        self._file.seek(0)
        self.text = self._file.read()
        self._file.close()


@pytest.mark.parametrize(
    ("name", "sizes"), MESHES, ids=[f"{name}-{sizes}" for name, sizes in MESHES]
)
@on_eight_devices
def test_loss_and_gradient_are_those_of_one_device(name, sizes):
    """With dropout, loops, rematerialization and microbatches, to 1e-5."""
    spec = sharding.MeshSpec(*sizes)
    mesh = sharding.make_mesh(spec, jax.devices()[: int(np.prod(sizes))])
    with pytest.MonkeyPatch.context() as patch, Stderr() as stderr:
        patch.setattr(sharding, "FSDP_MIN_SIZE", 64)  # or nothing of it would be cut
        result = one_step(name, mesh)
    check(name, *result)
    # What the partitioner says when it must guess how activations lie.
    assert "Involuntary full rematerialization" not in stderr.text, stderr.text
