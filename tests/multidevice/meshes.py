"""The same step on many meshes; run by test_meshes.py on eight simulated devices.

python -m tests.multidevice.meshes NETWORK [ADDRESS PROCESSES INDEX]
"""

import functools
import sys

import jax
import numpy as np
import optax
from jax.experimental import multihost_utils

from scm_jax import networks, objectives
from scm_jax.training import sharding
from scm_jax.training import state as state_lib
from scm_jax.training.step import make_train_step
from scm_jax.types import Batch, Cond

# Sizes of (data, fsdp, tensor), and how the networks are made.
MESHES = {
    "dit": [(2, 1, 1), (1, 4, 1), (8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 2, 4)],
    "unet": [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 2, 4)],
    "ddpmpp": [(2, 2, 2)],
}
SETTINGS = {
    "unet": {
        "width": 32,
        "channel_mult": (1,),
        "num_blocks": 2,
        "attention_resolutions": (8,),
        "head_channels": 8,
        "unroll": 1,
    },
    "ddpmpp": {
        "width": 32,
        "channel_mult": (1,),
        "num_blocks": 2,
        "attention_resolutions": (8,),
        "num_heads": 4,
        "unroll": 1,
    },
    "dit": {"width": 32, "depth": 5, "num_heads": 4},
}
SHAPE, CLASSES, BATCH = (8, 8, 4), 3, 16

# Compiling is most of the work here.
quick_jit = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)


def random_like(tree, seed):
    """Every leaf drawn, so that no gradient is zero."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda a: np.asarray(0.3 * rng.normal(size=a.shape), np.float32), tree
    )


def one_step(name, mesh, **changes):
    """Loss and gradient of distillation, with everything switched on."""
    placement = None if mesh is None else sharding.Placement(mesh)
    settings = {"dropout": 0.2, "remat": "blocks", **SETTINGS[name], **changes}
    net = networks.build(name, SHAPE, CLASSES, **settings).place(placement)
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
    )

    def keep(folded):
        if placement is None:
            return folded
        return folded.replace(weights=placement.keep(folded.weights))

    def teacher_fn(weights, x, cond):
        return net.apply(weights, x, Cond(t=cond.t, label=cond.label))

    optimizer = optax.sgd(1.0)
    step = make_train_step(
        objective,
        net.apply,
        optimizer,
        {},
        teacher_fn=teacher_fn,
        fold=net.fold,
        keep=keep,
        num_microbatches=2,
    )
    teacher_params = random_like(params["net"], 2)

    def init():
        state = state_lib.init_state(params, optimizer, (), jax.random.key(3))
        return state, net.fold(teacher_params)

    if mesh is not None:
        where = sharding.state_shardings(jax.eval_shape(init)[0], mesh)
        both = where, networks.Folded(where.params["net"])
        state, teacher = jax.jit(init, out_shardings=both)()
        shard, shards = sharding.data_shard(mesh)
        batch = jax.tree.map(lambda a: np.split(a, shards)[shard], batch)
        batch = sharding.place_batch(batch, mesh)
        step = quick_jit(step, out_shardings=(where, None))
    else:
        (state, teacher), step = init(), quick_jit(step)
    new, metrics = step(state, batch, teacher)
    after = new.params
    if mesh is not None and mesh.is_multi_process:
        after = multihost_utils.process_allgather(after, tiled=True)
    grads = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), params, after)
    return float(metrics["loss"]), grads


def relative(difference, tree):
    return float(optax.tree.norm(difference) / optax.tree.norm(tree))


def check_together(name, address, count, index):
    """The same of ``count`` processes with a device each."""
    jax.distributed.initialize(address, int(count), int(index))
    check(name, [(1, int(count), 1)])
    jax.distributed.shutdown()


def check(name, meshes=None):
    """Every mesh gives the loss and the gradient of one device, to 1e-5."""
    sharding.FSDP_MIN_SIZE = 64  # or nothing of so small a network would be cut
    with jax.default_device(jax.local_devices()[0]):
        loss, grads = one_step(name, None)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(grads))
    for sizes in meshes or MESHES[name]:
        spec = sharding.MeshSpec(*sizes)
        mesh = sharding.make_mesh(spec, jax.devices()[: int(np.prod(sizes))])
        other_loss, others = one_step(name, mesh)
        np.testing.assert_allclose(other_loss, loss, rtol=1e-5, err_msg=str(sizes))
        difference = jax.tree.map(np.subtract, others, grads)
        error = relative(difference["net"], grads["net"])
        worst = max(
            (np.linalg.norm(d) / np.linalg.norm(g), sharding.path_name(path))
            for (path, d), g in zip(
                jax.tree_util.tree_leaves_with_path(difference["net"]),
                jax.tree.leaves(grads["net"]),
                strict=True,
            )
        )
        print(sizes, "gradient", float(error), "worst leaf", worst, flush=True)
        assert error < 1e-5


if __name__ == "__main__":
    jax.config.update("jax_numpy_rank_promotion", "raise")
    (check_together if len(sys.argv) > 2 else check)(*sys.argv[1:])
