"""What a training step should cost: formulas over counts, nothing compiled.

Notation: P parameters, b images per device, F multiply-adds per image of loss and
gradient, a mesh of ``data`` copies of ``fsdp`` shards.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
from jax.extend import core

from scm_jax.cost import counts
from scm_jax.cost.collectives import Collective
from scm_jax.cost.hardware import Hardware

EFFICIENCY = 0.4  # of matrix products, as a share of the peak
# For long transfers, memory and network, as a share of the data sheet's bandwidth:
# 230 of 300 GB/s for collectives over NVLink on A100.
BANDWIDTH_EFFICIENCY = 0.8
USABLE_MEMORY = 0.9  # the rest goes to fragmentation, kernels and the runtime


def contraction_bytes(fn: Callable[..., Any], *abstract_args: Any) -> int:
    """Bytes that the contractions of a program read and write, each array once.

    Memory traffic if all elementwise work were fused into its neighbours: a lower
    bound, counted where ``counts.count_macs`` counts.

    Example:
      >>> x = jax.ShapeDtypeStruct((2, 3), "float32")
      >>> w = jax.ShapeDtypeStruct((3, 5), "float32")
      >>> contraction_bytes(lambda x, w: x @ w, x, w) == 4 * (6 + 15 + 10)
      True
    """
    return _jaxpr_bytes(counts.live_jaxpr(fn, *abstract_args))


def _jaxpr_bytes(jaxpr: Any) -> int:
    return sum(_eqn_bytes(eqn) for eqn in counts.open_jaxpr(jaxpr).eqns)


def _eqn_bytes(eqn: Any) -> int:
    name = eqn.primitive.name
    if name in ("dot_general", "conv_general_dilated"):
        arrays = (v.aval for v in (*eqn.invars, *eqn.outvars))
        return sum(math.prod(a.shape) * a.dtype.itemsize for a in arrays)
    bodies = [_jaxpr_bytes(body) for body in core.jaxprs_in_params(eqn.params)]
    if name == "cond":
        return max(bodies)
    return sum(bodies) * (eqn.params["length"] if name == "scan" else 1)


def saved_bytes(loss: Callable[..., jax.Array], *abstract_args: Any) -> int:
    """Bytes that ``jax.vjp`` keeps for the backward pass over the first argument.

    A compiler may recompute some, and needs room beside.
    """

    def keep(params: Any, *rest: Any) -> Any:
        return jax.vjp(lambda p: loss(p, *rest), params)[1]

    return counts.tree_bytes(jax.eval_shape(keep, *abstract_args))


def linear(count: Callable[[int], float]) -> tuple[float, float]:
    """``(fixed, slope)`` of a count in the batch size, from batches of 2 and 4."""
    low, high = count(2), count(4)
    return 2 * low - high, (high - low) / 2


def fsdp_transfers(
    *,
    parameters: float,
    teacher_parameters: float,
    data: int,
    fsdp: int,
    itemsize: int,
    gradient_bytes: float,
    microbatches: int,
) -> list[Collective]:
    """What fully sharded training must move in a step.

    Parameters are gathered over ``fsdp``, the inner axis, in the compute dtype, once
    for the forward and once for the backward pass (the tangent reuses the forward's), a
    teacher's once; gradients are reduced and scattered over ``fsdp`` and then summed
    over ``data``: the same for diffusion and consistency training.

    A gathered parameter has ``itemsize`` bytes. ``gradient_bytes`` are those of all
    gradients in the dtypes in which they are reduced. All happens once for each of the
    ``microbatches``.
    """
    gathered = (2 * parameters + teacher_parameters) * itemsize * microbatches
    reduced = gradient_bytes * microbatches
    return [
        Collective("all-gather", gathered, range(fsdp)),
        Collective("reduce-scatter", reduced, range(fsdp)),
        Collective("all-reduce", reduced / fsdp, range(0, data * fsdp, fsdp)),
    ]


def network_seconds(transfers: Iterable[Collective], hardware: Hardware) -> float:
    """Time of all transfers: the slower of the links in a node and those between.

    Raises:
      ValueError: a group spans nodes, and their network is not in ``HARDWARE``.
    """
    transfers = list(transfers)
    links = sum(t.received_bytes for t in transfers) / hardware.link_bandwidth
    between = sum(t.node_bytes(hardware.node_devices) for t in transfers)
    if not between:
        return links / BANDWIDTH_EFFICIENCY
    if hardware.node_bandwidth is None:
        raise ValueError(
            f"hardware = {hardware.name!r} joins at most {hardware.node_devices} "
            "devices; a network between such groups is not modelled"
        )
    return max(links, between / hardware.node_bandwidth) / BANDWIDTH_EFFICIENCY


@dataclasses.dataclass(frozen=True)
class StepTime:
    """Seconds of a step's parts, on every device at the same time."""

    compute: float  # contractions at the stated efficiency
    memory: float  # bytes of the contractions at the bandwidth
    update: float  # bytes of the optimizer's update; it follows the gradient
    network: float  # collectives
    ideal: float  # contractions at the peak

    @property
    def busy(self) -> float:
        """The device's own work."""
        return max(self.compute, self.memory) + self.update

    @property
    def overlapped(self) -> float:
        """Collectives run beside the computation."""
        return max(self.busy, self.network)

    @property
    def exposed(self) -> float:
        """Computation waits for every collective."""
        return self.busy + self.network

    def utilization(self, seconds: float) -> float:
        """Model-FLOPs utilization of a step of so many seconds."""
        return self.ideal / seconds

    @property
    def bound(self) -> str:
        """What takes longest."""
        parts = ("compute", "memory", "update", "network")
        return max(parts, key=lambda name: float(getattr(self, name)))


def step_time(
    *,
    macs_per_image: float,
    images: float,
    traffic: float,
    state_bytes: float,
    network: float,
    hardware: Hardware,
    efficiency: float = EFFICIENCY,
) -> StepTime:
    """Roofline of a step on one device.

    ``compute = 2 F b / (efficiency peak)``, ``memory = traffic / bandwidth`` and
    ``update = 2 state / bandwidth``: all parameters, moments and EMAs are read and
    written.

    Args:
      macs_per_image: F.
      images: b, per device.
      traffic: bytes of contractions of the step on this device.
      state_bytes: bytes of the train state on this device.
      network: seconds of collectives.
      hardware: the device.
      efficiency: share of the peak that contractions reach.

    Raises:
      ValueError: an efficiency outside of (0, 1].
    """
    check_efficiency(efficiency)
    ideal = 2 * macs_per_image * images / hardware.peak_flops
    bandwidth = hardware.memory_bandwidth * BANDWIDTH_EFFICIENCY
    return StepTime(
        compute=ideal / efficiency,
        memory=traffic / bandwidth,
        update=2 * state_bytes / bandwidth,
        network=network,
        ideal=ideal,
    )


def check_efficiency(efficiency: float) -> None:
    """Raises ValueError unless it is a share of the peak."""
    if not 0 < efficiency <= 1:
        raise ValueError(f"efficiency = {efficiency} is not in (0, 1]")


def fixed_bytes(
    parameters: float, fsdp: int, itemsize: int, teacher_parameters: float = 0
) -> float:
    """Bytes on a device beside state and activations.

    The shard of the gradients in float32 and one gathered copy of the network (and of
    the teacher's) in the compute dtype.
    """
    # A step gathers block by block and drops what it gathered; the rest of the copy is
    # room for shards of rounded weights and gradients, and for blocks gathered ahead.
    gathered = (parameters + teacher_parameters) * itemsize
    return 4 * parameters / fsdp + gathered


def largest_batch(
    *, resident_bytes: float, bytes_per_image: float, hardware: Hardware
) -> int:
    """Images that fit on a device at once; 0 where the state alone does not.

    ``resident_bytes`` do not grow with the batch; arrays fill ``USABLE_MEMORY``.
    """
    free = hardware.memory_bytes * USABLE_MEMORY - resident_bytes
    return max(int(free // bytes_per_image), 0)


def microbatches(images: float, fits: int) -> int | None:
    """Fewest equal parts of which each fits; None where not even one image does.

    Example:
      >>> microbatches(32, 12)
      4
    """
    total = math.ceil(images)
    if fits < 1:
        return None
    return next(n for n in range(1, total + 1) if total % n == 0 and total // n <= fits)
