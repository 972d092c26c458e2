"""What a config costs on a mesh of accelerators, and how each number is known."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from scm_jax.cost import collectives, counts, roofline
from scm_jax.cost import hardware as hardware_lib
from scm_jax.cost.hardware import Hardware
from scm_jax.networks import layers
from scm_jax.runs.estimate import work
from scm_jax.runs.setup import experiment as experiment_lib
from scm_jax.runs.setup import parts, start
from scm_jax.runs.setup.experiment import Experiment
from scm_jax.training import sharding
from scm_jax.training.sharding import MeshSpec
from scm_jax.types import lookup, num_steps

DEFAULT_HARDWARE = "a100-80g"
# What a cost estimate repeats of ``Hardware``.
_DATA_SHEET = (
    *("peak_flops", "memory_bytes", "memory_bandwidth"),
    *("link_bandwidth", "node_devices", "node_bandwidth"),
)


@dataclasses.dataclass(frozen=True)
class Accounts:
    """The cost estimate; bytes, seconds and counts without prefixes.

    Attributes:
      stated: given by the caller, the config or a data sheet.
      measured: exact, counted on the traced program and its shapes.
      compiled: read from XLA's program for simulated CPU devices (its buffers hold
        16-bit arrays in 32 bits where the CPU computes so); empty without a mesh.
      modelled: formulas of ``scm_jax/cost/roofline.py``.
    """

    stated: dict[str, Any]
    measured: dict[str, Any]
    compiled: dict[str, Any]
    modelled: dict[str, Any]


def parse_mesh(text: str) -> MeshSpec:
    """``data=2,fsdp=4`` as a mesh; missing axes have one device.

    Raises:
      ValueError: anything else; names the legal axes.

    Example:
      >>> parse_mesh("data=2,fsdp=4")
      MeshSpec(data=2, fsdp=4, tensor=1)
    """
    sizes: dict[str, int] = {}
    for part in text.split(","):
        axis, equals, size = (piece.strip() for piece in part.partition("="))
        lookup(dict.fromkeys(sharding.MESH_AXES), axis, f"axis of --mesh={text}")
        if not (equals and size.isascii() and size.isdigit() and int(size)):
            raise ValueError(
                f"--mesh={text}: {part.strip()!r} is not AXIS=DEVICES with a positive "
                f"number; legal axes are {', '.join(sharding.MESH_AXES)}, as in "
                "--mesh=data=2,fsdp=4"
            )
        if axis in sizes:
            raise ValueError(f"--mesh={text} names the axis {axis!r} twice")
        sizes[axis] = int(size)
    return MeshSpec(**{"data": 1, **sizes})


def simulate_devices(count: int) -> None:
    """Makes this process see ``count`` CPU devices and no others.

    Raises:
      ValueError: JAX has already started with other devices.
    """
    try:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError as error:
        raise ValueError(
            f"{count} devices cannot be simulated: JAX has started with "
            f"{jax.device_count()} already"
        ) from error


def account(
    config: ConfigDict,
    mesh: MeshSpec | None = None,
    hardware: str = DEFAULT_HARDWARE,
    efficiency: float = roofline.EFFICIENCY,
) -> Accounts:
    """The cost estimate of a training step and of the whole training.

    Args:
      config: a complete config; its own mesh is not read.
      mesh: mesh to compile for, with as many CPU devices (``simulate_devices``); None
        compiles nothing and models one device.
      hardware: a key of ``hardware.HARDWARE``.
      efficiency: share of the peak that matrix products reach.

    Raises:
      ValueError: unknown hardware; a batch or a parameter that the mesh does not
        divide.
    """
    device = hardware_lib.find(hardware)
    roofline.check_efficiency(efficiency)
    spec = mesh or MeshSpec(1, 1, 1)
    real = sharding.make_mesh(spec, jax.devices("cpu")[: math.prod(spec.sizes)])
    sharding.check_batch_size(config.train.batch_size, real)
    config = as_on_accelerator(config, gathers=spec.fsdp > 1)
    experiment = experiment_lib.build_abstract(config)
    stated = _state(config, spec, device, efficiency)
    measured = measure(experiment)
    measured["state_bytes_per_device"] = state_bytes_per_device(experiment, real)
    found, compiled = compile_step(experiment, real) if mesh else ([], {})
    modelled = model(stated, measured, compiled, found, device)
    return Accounts(stated, measured, compiled, modelled)


def as_on_accelerator(config: ConfigDict, *, gathers: bool = False) -> ConfigDict:
    """The config with its stacks as loops, as on any device but a CPU.

    With ``gathers``, for a mesh that gathers weights, ``remat="none"`` is written as
    what it means there, ``"dots"``: counts on one device are then those of the mesh.
    """
    config = config.copy_and_resolve_references()
    with config.unlocked():
        if "unroll" in config.network:
            config.network.unroll = 1
        if gathers and config.network.get("remat") == "none":
            config.network.remat = "dots"
    return config


def _state(
    config: ConfigDict, spec: MeshSpec, device: Hardware, efficiency: float
) -> dict[str, Any]:
    return {
        "name": config.name,
        "hardware": device.name,
        "mesh": dict(zip(sharding.MESH_AXES, spec.sizes, strict=True)),
        "devices": math.prod(spec.sizes),
        "batch_size": config.train.batch_size,
        "microbatches": config.train.microbatches,
        "steps": num_steps(config.train.duration_images, config.train.batch_size),
        "compute_dtype": config.network.get("dtype", "float32"),
        "efficiency": efficiency,
        "bandwidth_efficiency": roofline.BANDWIDTH_EFFICIENCY,
        "usable_memory": roofline.USABLE_MEMORY,
        **{name: getattr(device, name) for name in _DATA_SHEET},
    }


def measure(experiment: Experiment) -> dict[str, Any]:
    """Exact counts of a step; nothing is compiled."""
    teacher = experiment.teacher.network if experiment.teacher else None
    taught = parts.abstract_init(teacher) if teacher else {}

    def traffic(batch: int) -> int:
        loss, args = work.training_loss(experiment, batch)
        return roofline.contraction_bytes(jax.value_and_grad(loss), *args)

    def saved(batch: int) -> int:
        loss, args = work.training_loss(experiment, batch)
        return roofline.saved_bytes(loss, *args)

    traffic_fixed, traffic_per_image = roofline.linear(traffic)
    abstract = experiment.abstract_params()
    return {
        "parameters": counts.parameter_count(abstract["net"]),
        "teacher_parameters": counts.parameter_count(taught),
        **work.macs_per_image(experiment),
        "saved_bytes_per_image": roofline.linear(saved)[1],
        "contraction_bytes_per_image": traffic_per_image,
        "contraction_bytes_per_step": traffic_fixed,
        "state_bytes": counts.tree_bytes(
            jax.eval_shape(experiment.init_state, abstract)
        ),
        "gradient_bytes": gradient_bytes(experiment),
    }


def gradient_bytes(experiment: Experiment) -> int:
    """Bytes of the network's gradients in the dtypes in which devices sum them."""

    # The dtypes of folded weights, but for kernels that are widened to multiply.
    def leaf_bytes(path: Any, leaf: jax.ShapeDtypeStruct) -> int:
        wide = any(getattr(p, "key", None) in layers.FLOAT32_KERNELS for p in path)
        return int(leaf.size) * (4 if wide else leaf.dtype.itemsize)

    network = experiment.network
    folded = jax.eval_shape(network.fold, parts.abstract_init(network))
    return sum(jax.tree.leaves(jax.tree.map_with_path(leaf_bytes, folded)))


def state_bytes_per_device(experiment: Experiment, mesh: jax.sharding.Mesh) -> int:
    """Bytes of one device's shards of the train state."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * _itemsize(leaf)
        for leaf in jax.tree.leaves(start.abstract_state(experiment, mesh))
    )


def _itemsize(leaf: Any) -> int:
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.eval_shape(jax.random.key_data, leaf).size * 4
    return leaf.dtype.itemsize


def lower_step(experiment: Experiment, mesh: jax.sharding.Mesh) -> jax.stages.Lowered:
    """The training step, lowered for a mesh; nothing is allocated.

    Raises:
      ValueError: a batch that the mesh does not divide, or a parameter that the rules
        cannot place.
    """
    size = experiment.config.train.batch_size
    sharding.check_batch_size(size, mesh)
    with jax.set_mesh(mesh):
        state = start.abstract_state(experiment, mesh)
        batch = experiment.example_batch(size)
        split = jax.tree.map(lambda _: sharding.batch_sharding(mesh), batch)
        step = jax.jit(
            experiment.place(mesh).train_step(),
            donate_argnums=0,
            out_shardings=(jax.tree.map(lambda a: a.sharding, state), None),
        )
        return step.lower(
            state,
            sharding.abstract_like(batch, split),
            start.abstract_teacher(experiment, mesh),
        )


def compile_step(
    experiment: Experiment, mesh: jax.sharding.Mesh
) -> tuple[list[collectives.Collective], dict[str, Any]]:
    """Collectives and bytes per device of the step, which is compiled once."""
    lowered = lower_step(experiment, mesh)
    program, hlo = collectives.compile_partitioned(lowered)
    found = collectives.read_collectives(hlo)
    memory = program.memory_analysis()
    return found, {
        "argument_bytes_per_device": memory.argument_size_in_bytes,
        "temporary_bytes_per_device": memory.temp_size_in_bytes,
        "collectives": collectives.summarize(found),
    }


def model(
    stated: dict[str, Any],
    measured: dict[str, Any],
    compiled: dict[str, Any],
    found: list[collectives.Collective],
    device: Hardware,
) -> dict[str, Any]:
    """Everything that follows by formula from counts and data sheets.

    Times use the traffic of the compiled step where there is one, else the analytic
    model of fully sharded training.
    """
    sizes = stated["mesh"]
    split = sizes["data"] * sizes["fsdp"]
    images = stated["batch_size"] / split
    itemsize = jnp.dtype(stated["compute_dtype"]).itemsize
    parts = stated["microbatches"]
    here = measured["parameters"] / sizes["tensor"]
    teacher_here = measured["teacher_parameters"] / sizes["tensor"]
    analytic = roofline.fsdp_transfers(
        parameters=here,
        teacher_parameters=teacher_here,
        data=sizes["data"],
        fsdp=sizes["fsdp"],
        itemsize=itemsize,
        gradient_bytes=measured["gradient_bytes"] / sizes["tensor"],
        microbatches=parts,
    )
    network = functools.partial(roofline.network_seconds, hardware=device)
    time = roofline.step_time(
        macs_per_image=measured["train_macs_per_image"] / sizes["tensor"],
        images=images,
        traffic=measured["contraction_bytes_per_image"] * images / sizes["tensor"]
        + measured["contraction_bytes_per_step"] * parts / sizes["tensor"],
        state_bytes=measured["state_bytes_per_device"],
        network=network(found if compiled else analytic),
        hardware=device,
        efficiency=stated["efficiency"],
    )
    saved = measured["saved_bytes_per_image"] / sizes["tensor"]
    fixed = roofline.fixed_bytes(here, sizes["fsdp"], itemsize, teacher_here)
    resident = measured["state_bytes_per_device"] + fixed
    growing = saved
    if compiled:
        # What the compiled step needs beyond the model is taken to grow with the batch.
        resident = compiled["argument_bytes_per_device"] + fixed
        excess = compiled["temporary_bytes_per_device"] - fixed
        growing = max(saved, excess * parts / images)
    largest = roofline.largest_batch(
        resident_bytes=resident, bytes_per_image=growing, hardware=device
    )
    hours = time.exposed * stated["steps"] * stated["devices"] / 3600
    return {
        "images_per_device": images,
        "temporary_bytes_per_device": fixed + saved * images / parts,
        "collectives": [
            {"kind": t.kind, "received_bytes": t.received_bytes} for t in analytic
        ],
        "network_seconds_analytic": network(analytic),
        "compute_seconds": time.compute,
        "memory_seconds": time.memory,
        "update_seconds": time.update,
        "network_seconds": time.network,
        "bound": time.bound,
        "step_seconds_overlapped": time.overlapped,
        "step_seconds_exposed": time.exposed,
        "model_flops_utilization_overlapped": time.utilization(time.overlapped),
        "model_flops_utilization_exposed": time.utilization(time.exposed),
        "images_per_second": stated["batch_size"] / time.exposed,
        "device_hours": hours,
        "largest_images_per_device": largest,
        "microbatches_needed": roofline.microbatches(images, largest),
    }
