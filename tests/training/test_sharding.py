import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from scm_jax.training import sharding
from tests.training import toy

AUTO = (AxisType.Auto,) * 3
# Rules need the sizes of a mesh only, not its devices.
MESH = AbstractMesh((2, 4, 2), sharding.MESH_AXES, axis_types=AUTO)
BIG = sharding.FSDP_MIN_SIZE


def spec(name, shape, rules=((".*", "fsdp"),), mesh=MESH):
    return sharding.partition_spec(name, shape, mesh, rules)


WHOLE = AbstractMesh((1, 4, 1), sharding.MESH_AXES, axis_types=AUTO)


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        # norms over the inputs of a kernel stay on one device
        ((512, 384), (None, "fsdp")),
        ((128, 128, 128), (None, None, "fsdp")),
        # 1022 is not divisible by 4
        ((64, 32, 1022), ("fsdp", None, None)),
        # small leaves are copies
        ((BIG // 128 - 1, 128), ()),
        ((BIG // 128, 128), (None, "fsdp")),
        ((), ()),
    ],
)
def test_fsdp_splits_the_outputs_or_the_largest_divisible_dimension(shape, axes):
    assert spec("w", shape) == PartitionSpec(*axes)


@pytest.mark.parametrize(
    ("tactic", "shape", "mesh", "axes"),
    [
        ("column", (3, 3, 64, 128), MESH, (None, None, "fsdp", "tensor")),
        ("row", (3, 3, 64, 128), MESH, (None, None, "tensor", "fsdp")),
        ("column", (8, 4), MESH, (None, "tensor")),  # too small for fsdp
        ("column", (3, 3, 64, 128), WHOLE, (None, None, None, "fsdp")),
        ("row", (3, 3, 64, 128), WHOLE, (None, None, None, "fsdp")),
        # axes name the last dimensions; they may come as lists from a JSON config
        (("fsdp", "tensor"), (8, 6), MESH, ("fsdp", "tensor")),
        (("fsdp", "tensor"), (5, 8, 6), MESH, (None, "fsdp", "tensor")),
        ([None, "tensor"], (3, 6), MESH, (None, "tensor")),
    ],
)
def test_columns_rows_and_named_axes(tactic, shape, mesh, axes):
    assert spec("w", shape, [[".*", tactic]], mesh) == PartitionSpec(*axes)


def test_first_matching_rule_wins():
    rules = ((r"out/kernel$", "replicate"), (".*", "fsdp"))
    assert spec("net/out/kernel", (256, 256), rules) == PartitionSpec()
    assert spec("net/in/kernel", (256, 256), rules) != PartitionSpec()


@pytest.mark.parametrize(
    ("shape", "tactic", "message"),
    [
        ((8, 7), ("fsdp", "tensor"), r"dimension 1 of \(8, 7\) .* 2 devices .*tensor"),
        ((6, 8), ("fsdp", "tensor"), r"dimension 0 of \(6, 8\) .* 4 devices .*fsdp"),
        ((8, 8), ("fsdp", "model"), r"unknown mesh axis 'model'; legal are"),
        ((8, 8), ("fsdp", "fsdp"), r"'fsdp' is used for two dimensions"),
        ((8, 8), (("data", "fsdp"), None), r"dimension 0 is claimed by .*data.*fsdp"),
        ((8,), ("fsdp", "tensor"), r"names 2 dimensions .* shape \(8,\)"),
        ((8, 8), "shard", r"unknown tactic 'shard' .*'replicate', 'fsdp'"),
        ((64, 63), "column", r"dimension 1 of \(64, 63\) .* 2 devices .*tensor"),
        ((63, 64), "row", r"dimension 0 of \(63, 64\) .* 2 devices .*tensor"),
        ((BIG + 1,), "fsdp", r"no dimension of .* divisible by the 4 .*'replicate'"),
    ],
)
def test_errors_name_the_parameter(shape, tactic, message):
    with pytest.raises(ValueError, match=f"parameter net/blocks/w: .*{message}"):
        spec("net/blocks/w", shape, ((".*", tactic),))


def test_a_parameter_without_a_rule_is_an_error():
    with pytest.raises(ValueError, match="parameter net/w: no sharding rule matches"):
        spec("net/w", (8, 8), (("bias$", "replicate"),))


def test_default_rules_fit_a_transformer_block():
    def of(name, *shape):
        return spec(f"net/blocks/{name}/kernel", shape, sharding.DEFAULT_RULES)

    assert of("qkv", 12, 64, 3, 64) == PartitionSpec(None, "fsdp", None, "tensor")
    assert of("mlp_out", 12, 256, 64) == PartitionSpec(None, "tensor", "fsdp")
    assert of("patch_in", 4, 64) == PartitionSpec()


# --- Placement ------------------------------------------------------------------------

# Weights of two stacked blocks, and outside of them.
WEIGHTS = {
    "blocks": {
        "qkv": {"kernel": jax.ShapeDtypeStruct((2, 64, 3, 128), jnp.bfloat16)},
        "mlp_out": {"kernel": jax.ShapeDtypeStruct((2, 256, 64), jnp.bfloat16)},
        "affine": {"kernel": jax.ShapeDtypeStruct((2, 256, 64), jnp.bfloat16)},
    },
    "patch_in": {"kernel": jax.ShapeDtypeStruct((4, 64), jnp.float32)},
}


def placed(fn, *args):
    """Where a function constrains its results to lie, and what it does besides."""
    traced = jax.make_jaxpr(fn)(*args)
    where, others = {}, []
    for eqn in traced.eqns:
        if eqn.primitive.name == "sharding_constraint":
            where[eqn.outvars[0]] = eqn.params["sharding"].spec
        else:
            others.append(eqn)
    return traced, where, others


def test_kept_weights_lie_where_parameters_do():
    """And a barrier stands behind: what comes later cannot move before the rounding."""
    traced, where, (barrier,) = placed(sharding.Placement(MESH).keep, WEIGHTS)
    assert barrier.primitive.name == "optimization_barrier"
    assert list(barrier.outvars) == list(traced.jaxpr.outvars)
    expected = sharding.tree_shardings({"net": WEIGHTS}, MESH)
    got = [where[v] for v in barrier.invars]
    assert got == [s.spec for s in jax.tree.leaves(expected)]
    assert got.count(PartitionSpec()) == 1 and "fsdp" in got[0]


@pytest.mark.parametrize("stacked", [True, False])
def test_gathered_weights_are_whole_but_for_the_axis_tensor(stacked):
    """Also one block's, out of a loop over the stack."""

    def block(w):
        return w if stacked else jax.ShapeDtypeStruct(w.shape[1:], w.dtype)

    blocks = jax.tree.map(block, WEIGHTS["blocks"])
    placement = sharding.Placement(MESH)
    copies = AbstractMesh((4, 1, 2), sharding.MESH_AXES, axis_types=AUTO)
    assert placement.gathers and not sharding.Placement(copies).gathers
    traced, where, others = placed(lambda w: placement.gather(w, "blocks"), blocks)
    assert not others
    lead = (None,) * stacked
    # Leaves of a dict come in the order of their names.
    got = zip(sorted(blocks), (where[v] for v in traced.jaxpr.outvars), strict=True)
    assert dict(got) == {
        "affine": PartitionSpec(*lead, None, None),
        "mlp_out": PartitionSpec(*lead, "tensor", None),
        "qkv": PartitionSpec(*lead, None, None, "tensor"),
    }


def test_rules_place_gathered_weights_too():
    """They name paths of a train state, whose first group is ``net``."""
    rules = (("^net/blocks/affine/", ("tensor", "fsdp")), (".*", "fsdp"))
    placement = sharding.Placement(MESH, rules)
    _, where, _ = placed(lambda w: placement.gather(w, "blocks"), WEIGHTS["blocks"])
    assert PartitionSpec(None, "tensor", None) in where.values()


def test_activations_are_split_over_their_batch_alone():
    h = jax.ShapeDtypeStruct((16, 8, 4), jnp.float32)
    _, where, _ = placed(sharding.Placement(MESH).batch, h)
    free = PartitionSpec.UNCONSTRAINED
    assert list(where.values()) == [PartitionSpec(("data", "fsdp"), free, free)]


# --- States ---------------------------------------------------------------------------


def test_moments_and_averages_are_sharded_like_their_parameter():
    rules = (("net/layer/kernel$", ("fsdp", "tensor")), (".*", "replicate"))
    state = jax.eval_shape(toy.init)
    shardings = sharding.state_shardings(state, MESH, rules)
    adam = shardings.opt_state[0]
    nets = (shardings.params["net"], adam.mu["net"], adam.nu["net"])
    for net in (*nets, *shardings.ema.values()):
        assert net["layer"]["kernel"].spec == PartitionSpec("fsdp", "tensor")
        assert net["layer"]["bias"].spec == PartitionSpec()
    for leaf in (shardings.step, shardings.key, adam.count):
        assert leaf.spec == PartitionSpec()


def test_a_moment_of_another_shape_is_replicated():
    # factored second moments carry the path of the parameter and not its shape
    state = jax.eval_shape(toy.init)
    factored = {"v_row": {"net": {"layer": {"kernel": jnp.zeros(4)}}}}
    state = state.replace(opt_state=factored)
    rules = (("kernel$", ("fsdp", "tensor")), (".*", "replicate"))
    shardings = sharding.state_shardings(state, MESH, rules)
    leaf = shardings.opt_state["v_row"]["net"]["layer"]["kernel"]
    assert leaf.spec == PartitionSpec()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ((2, 2), "data=2, fsdp=2, tensor=1 needs 4 .* 1 are"),
        ((-1, 2), "needs a multiple of 2 devices; 1 are"),
        ((-1, -1), "at most one is -1"),
        ((0,), "sizes are positive"),
    ],
)
def test_mesh_must_match_the_devices(spec, message):
    with pytest.raises(ValueError, match=message):
        sharding.make_mesh(sharding.MeshSpec(*spec))


def test_batch_is_split_over_data_and_fsdp_and_not_over_tensor():
    assert sharding.batch_sharding(MESH).spec == PartitionSpec(("data", "fsdp"))
    sharding.check_batch_size(24, MESH)
    with pytest.raises(ValueError, match=r"batch_size=20 .* the 8 devices"):
        sharding.check_batch_size(20, MESH)


def test_the_mesh_of_one_device_is_the_default():
    mesh = sharding.make_mesh(sharding.MeshSpec())
    assert dict(mesh.shape) == {"data": 1, "fsdp": 1, "tensor": 1}
    assert mesh.axis_types == AUTO and sharding.data_shard(mesh) == (0, 1)
