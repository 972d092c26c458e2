"""Where every array lives: the mesh, the rules, and the placement of batches.

mesh = make_mesh(MeshSpec(data=-1, fsdp=4))
shardings = state_shardings(abstract_state, mesh)
state = jax.jit(init, out_shardings=shardings)(key)
batch = place_batch(numpy_batch, mesh)
"""

# The only file that names mesh axes, and one code path from one CPU (the trivial mesh)
# to a pod: ``jax.jit`` with a ``NamedSharding`` for every leaf, from ordered rules over
# parameter paths. Models carry no annotations.

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

# data: the batch is split. fsdp: the batch and the parameters are. tensor: parameters
# are split, or the tokens of each example; its devices see the same examples.
MESH_AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")

# Leaves below this many elements cost more to gather than to keep.
FSDP_MIN_SIZE = 2**14

# A name of NAMED_TACTICS, or one mesh axis (or None) for each of the last dimensions.
Tactic = str | tuple[str | None, ...]
Rules = Sequence[tuple[str, Tactic]]

# fsdp: one dimension is split over that axis, the outputs (the last) where it divides
# them, so that a norm over a kernel's inputs stays on one device; else the largest.
# column: besides, the outputs are split over tensor. row: the inputs are.
NAMED_TACTICS = ("replicate", "fsdp", "column", "row")

# In each pair of layers of a block the first is split by its outputs and the second by
# its inputs: one reduction at the end of the pair.
DEFAULT_RULES: Rules = (
    (r"(^|/)(qkv|mlp_in|conv0)/kernel$", "column"),
    (r"(^|/)(attention_out|mlp_out|conv1|proj)/kernel$", "row"),
    (r".*", "fsdp"),
)
# Where the axis tensor splits tokens, every device of it multiplies by whole weights.
SEQUENCE_RULES: Rules = ((r".*", "fsdp"),)


@dataclasses.dataclass(frozen=True)
class MeshSpec:
    """Devices along each mesh axis; -1, at most once, takes the rest."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    @property
    def sizes(self) -> tuple[int, int, int]:
        return self.data, self.fsdp, self.tensor


def make_mesh(spec: MeshSpec, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Mesh of ``spec`` over ``devices`` (default: all), with automatic axis types.

    Raises:
      ValueError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes, present = spec.sizes, len(devices)
    text = "mesh " + ", ".join(map("{}={}".format, MESH_AXES, sizes))
    if any(n < 1 and n != -1 for n in sizes) or sizes.count(-1) > 1:
        raise ValueError(
            f"{text}: sizes are positive, and at most one is -1 (the rest)"
        )
    known = math.prod(n for n in sizes if n != -1)
    if present % known or (-1 not in sizes and known != present):
        raise ValueError(
            f"{text} needs {'a multiple of ' if -1 in sizes else ''}{known} devices; "
            f"{present} are present"
        )
    # Explicit axis types, the default, turn sharding constraints into assertions.
    return jax.make_mesh(
        tuple(present // known if n == -1 else n for n in sizes),
        MESH_AXES,
        axis_types=(AxisType.Auto,) * len(sizes),
        devices=devices,
    )


def path_name(path: Iterable[Any]) -> str:
    """``net/blocks/qkv/kernel``: the name of a leaf in rules, errors and tables."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def partition_spec(
    name: str, shape: tuple[int, ...], mesh: Mesh, rules: Rules = DEFAULT_RULES
) -> PartitionSpec:
    """Partition of one parameter by the first rule whose pattern is found in ``name``.

    Raises:
      ValueError: no rule matches, an unknown tactic or axis, a dimension that the axis
        does not divide, or one axis on two dimensions; names the parameter.
    """
    rule = next((rule for rule in rules if re.search(rule[0], name)), None)
    try:
        if rule is None:
            raise ValueError(
                "no sharding rule matches; end the rules with ('.*', 'fsdp') or "
                "('.*', 'replicate')"
            )
        if isinstance(rule[1], str):
            return _shard_by_tactic(name, shape, mesh, rule[0], rule[1])
        return _shard_as_told(shape, mesh, tuple(rule[1]))
    except ValueError as error:
        raise ValueError(f"parameter {name}: {error}") from None


def _shard_by_tactic(
    name: str, shape: tuple[int, ...], mesh: Mesh, pattern: str, tactic: str
) -> PartitionSpec:
    if tactic not in NAMED_TACTICS:
        raise ValueError(
            f"unknown tactic {tactic!r} of rule {pattern!r}; legal are "
            f"{NAMED_TACTICS} and tuples of None and {MESH_AXES}"
        )
    axes: list[str | None] = [None] * len(shape)
    if tactic in ("column", "row") and mesh.shape["tensor"] > 1:
        dim = len(shape) - {"column": 1, "row": 2}[tactic]
        _check_divides(shape, dim, "tensor", mesh)
        axes[dim] = "tensor"
    size = mesh.shape["fsdp"]
    if tactic != "replicate" and size > 1 and math.prod(shape) >= FSDP_MIN_SIZE:
        free = [i for i, n in enumerate(shape) if axes[i] is None and n % size == 0]
        if not free:
            raise ValueError(
                f"no dimension of {shape} is divisible by the {size} devices of mesh "
                f"axis 'fsdp'; add a rule that replicates it, ({name!r}, 'replicate'), "
                "or choose another mesh"
            )
        last = len(shape) - 1
        axes[last if last in free else max(free, key=lambda i: (shape[i], i))] = "fsdp"
    return PartitionSpec(*axes) if any(axes) else PartitionSpec()


def _check_divides(shape: tuple[int, ...], dim: int, axis: str, mesh: Mesh) -> None:
    if shape[dim] % mesh.shape[axis]:
        raise ValueError(
            f"dimension {dim} of {shape} is not divisible by the {mesh.shape[axis]} "
            f"devices of mesh axis {axis!r}"
        )


def _shard_as_told(
    shape: tuple[int, ...], mesh: Mesh, tactic: tuple[Any, ...]
) -> PartitionSpec:
    """Axes for the last dimensions, so that a stack of layers needs no other rule."""
    if len(tactic) > len(shape):
        raise ValueError(
            f"the rule names {len(tactic)} dimensions {tactic}, the parameter has "
            f"shape {shape}"
        )
    axes = (None,) * (len(shape) - len(tactic)) + tactic
    for dim, axis in enumerate(axes):
        if isinstance(axis, tuple | list):
            raise ValueError(
                f"dimension {dim} is claimed by mesh axes {tuple(axis)}; one dimension "
                "takes at most one axis"
            )
        if axis is None:
            continue
        if axis not in MESH_AXES:
            raise ValueError(f"unknown mesh axis {axis!r}; legal are {MESH_AXES}")
        if axes.count(axis) > 1:
            raise ValueError(
                f"mesh axis {axis!r} is used for two dimensions in {tactic}; one axis "
                "splits at most one dimension"
            )
        _check_divides(shape, dim, axis, mesh)
    return PartitionSpec(*axes)


@dataclasses.dataclass(frozen=True)
class Placement:
    """How a step treats the pieces of a mesh; networks see it as ``types.Placement``.

    Weights are stored, normalized, rounded and updated in pieces; only what a block is
    about to multiply by is gathered over ``fsdp``, in its compute dtype, and dropped.
    With ``sequence``, the axis ``tensor`` splits tokens between attentions and heads
    within them: an all-to-all before and after each (arXiv 2309.14509).
    """

    mesh: Mesh
    rules: Rules = DEFAULT_RULES
    sequence: bool = False

    @property
    def gathers(self) -> bool:
        """Whether weights are stored in pieces that a block must gather."""
        return self.mesh.shape["fsdp"] > 1

    def keep(self, weights: Any) -> Any:
        """Network weights (or their gradient) in the pieces that devices store."""
        where = tree_shardings({"net": weights}, self.mesh, self.rules)["net"]
        weights = jax.lax.with_sharding_constraint(weights, where)
        # Else the compiler may gather what was there before the weights were rounded:
        # twice the bytes.
        return jax.lax.optimization_barrier(weights)

    def gather(self, weights: Any, *path: str) -> Any:
        """The weights of the subtree at ``path``, whole but for the axis ``tensor``."""

        def whole(leaf: Any, w: jax.Array) -> jax.Array:
            name = "/".join(("net", *path, path_name(leaf)))
            spec = partition_spec(name, w.shape, self.mesh, self.rules)
            # In pieces first: else the compiler moves the gathering to before the
            # barrier of a recomputation, where it is the one of the forward pass.
            if "fsdp" in spec:
                w = self._constrain(w, *spec)
            return self._constrain(w, *(None if a == "fsdp" else a for a in spec))

        return jax.tree_util.tree_map_with_path(whole, weights)

    def batch(self, h: jax.Array, along: int = 0) -> jax.Array:
        """``(b, ...)``: ``b`` over all devices that see different examples.

        ``along``, a dimension of tokens or heads, is split if ``sequence`` says so.
        """
        axes: list[Any] = [PartitionSpec.UNCONSTRAINED] * h.ndim
        axes[0] = BATCH_AXES
        if along and self.sequence:
            axes[along] = "tensor"
        return self._constrain(h, *axes)

    def _constrain(self, x: jax.Array, *axes: Any) -> jax.Array:
        where = NamedSharding(self.mesh, PartitionSpec(*axes))
        return jax.lax.with_sharding_constraint(x, where)


def tree_shardings(params: Any, mesh: Mesh, rules: Rules = DEFAULT_RULES) -> Any:
    """A ``NamedSharding`` for every leaf of a parameter tree (arrays or abstract).

    The rules see the paths of this tree; pass ``{"net": params}`` where they name the
    group.
    """

    def sharding(path, leaf):
        spec = partition_spec(path_name(path), leaf.shape, mesh, rules)
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(sharding, params)


def state_shardings(state: Any, mesh: Mesh, rules: Rules = DEFAULT_RULES) -> Any:
    """A ``NamedSharding`` for every leaf of a train state.

    The rules see the paths of ``state.params`` only. Any other leaf whose path ends in
    the path of a parameter of its shape (moments: ``opt_state/0/mu/net/...``; EMAs
    of the network: ``ema/NAME/...`` ends without the group ``net``) is sharded like
    that parameter; everything else (step, counters, key) is replicated.
    """
    known: dict[tuple[str, tuple[int, ...]], PartitionSpec] = {}
    # A critic may have another network; its paths are those of a group ``net``.
    critic = getattr(state, "critic", None)
    trees = [state.params] + ([] if critic is None else [{"net": critic.params}])
    leaves = map(jax.tree_util.tree_leaves_with_path, trees)
    for path, leaf in itertools.chain.from_iterable(leaves):
        name = path_name(path)
        spec = partition_spec(name, leaf.shape, mesh, rules)
        known[name, leaf.shape] = spec
        if name.startswith("net/"):
            known.setdefault((name.removeprefix("net/"), leaf.shape), spec)

    def sharding(path, leaf):
        name = path_name(path)
        while name and (name, leaf.shape) not in known:
            name = name.partition("/")[2]
        return NamedSharding(mesh, known.get((name, leaf.shape), PartitionSpec()))

    return jax.tree_util.tree_map_with_path(sharding, state)


def abstract_like(tree: Any, shardings: Any) -> Any:
    """``ShapeDtypeStruct`` leaves with shardings: what a restore needs to know."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis split over all devices that see different examples."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def num_batch_shards(mesh: Mesh) -> int:
    """Into how many pieces a global batch is cut."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """Raises ValueError, with both numbers, where a batch cannot be cut evenly."""
    shards = num_batch_shards(mesh)
    if batch_size % shards:
        sizes = " * ".join(f"{axis}={mesh.shape[axis]}" for axis in BATCH_AXES)
        raise ValueError(
            f"batch_size={batch_size} is not divisible by the {shards} devices of the "
            f"mesh that split a batch ({sizes})"
        )


@functools.lru_cache(maxsize=8)
def data_shard(mesh: Mesh) -> tuple[int, int]:
    """``(index, count)``: which slice of the global batch this process must load.

    Where the tensor axis spans processes, several of them must load the same rows.
    """
    shards = num_batch_shards(mesh)
    rows_of: dict[int, set[int]] = {}
    device_rows: Mapping[Any, Any] = batch_sharding(mesh).devices_indices_map((shards,))
    for device, (rows,) in device_rows.items():
        rows = range(*rows.indices(shards))
        rows_of.setdefault(device.process_index, set()).update(rows)
    groups = sorted({tuple(sorted(rows)) for rows in rows_of.values()})
    if sum(map(len, groups)) != shards:
        raise ValueError(
            "the processes of this mesh see overlapping parts of the batch; make the "
            "product of data and fsdp a multiple of the number of processes, or the "
            "reverse"
        )
    return groups.index(tuple(sorted(rows_of[jax.process_index()]))), len(groups)


def place_batch(batch: Any, mesh: Mesh) -> Any:
    """The rows of ``data_shard(mesh)``, ``(local_batch, ...)``, as global arrays.

    Raises:
      ValueError: the global batch is not divisible by the devices that split it.
    """
    leaves = jax.tree.leaves(batch)
    check_batch_size(leaves[0].shape[0] * data_shard(mesh)[1], mesh)
    sharding = batch_sharding(mesh)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch
    )
