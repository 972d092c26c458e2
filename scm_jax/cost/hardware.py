"""Accelerators: what one device computes, holds and moves, by data sheet."""

from __future__ import annotations

import dataclasses

from scm_jax.types import lookup


@dataclasses.dataclass(frozen=True)
class Hardware:
    """One device and the network around it; figures of data sheets, not measured."""

    name: str  # key of HARDWARE
    # Dense bfloat16 FLOP/s of matrix products with float32 accumulation; a multiply-add
    # is two.
    peak_flops: float
    memory_bytes: float
    memory_bandwidth: float  # bytes/s between memory and cores
    link_bandwidth: (
        float  # bytes/s that a device can receive over all links of its node
    )
    node_devices: int  # devices that such links connect: a server, the largest slice
    # Bytes/s that a node can receive from others; None where they are not joined by a
    # network modelled here.
    node_bandwidth: float | None


# GPUs: NVIDIA's data sheets of the SXM modules; half of a bidirectional NVLink figure
# is what a device receives. Nodes are NVIDIA's DGX servers: 8 GPUs and 8 ports of 200
# Gb/s (A100) or 400 Gb/s (later); a cloud's servers may have less.
# TPUs: Google Cloud's system architecture pages; half of the bidirectional inter-chip
# bandwidth over all links, which a collective over one axis of the torus cannot use
# alone. A "node" is the largest slice.
# fmt: off
_TABLE = (
    #         name        FLOP/s  memory  mem B/s  link B/s  node  node B/s
    Hardware("a100-40g",  312e12,   40e9, 1.555e12,  300e9,     8,   200e9),
    Hardware("a100-80g",  312e12,   80e9, 2.039e12,  300e9,     8,   200e9),
    Hardware("h100",      989e12,   80e9, 3.35e12,   450e9,     8,   400e9),
    # Measured on one: 790e12 FLOP/s of large products, 4.3e12 bytes/s.
    Hardware("h200",      989e12,  141e9, 4.8e12,    450e9,     8,   400e9),
    Hardware("b200",     2250e12,  180e9, 8.0e12,    900e9,     8,   400e9),
    Hardware("tpu-v4",    275e12, 2**35,  1.2e12,    300e9,  4096,    None),
    Hardware("tpu-v5e",   197e12,   16e9, 0.819e12,  200e9,   256,    None),
    Hardware("tpu-v5p",   459e12,   95e9, 2.765e12,  600e9,  6144,    None),
    Hardware("tpu-v6e",   918e12,   32e9, 1.638e12,  400e9,   256,    None),
)
# fmt: on
HARDWARE = {hardware.name: hardware for hardware in _TABLE}


def find(name: str) -> Hardware:
    """The accelerator called ``name``.

    Raises:
      ValueError: unknown name; lists the known ones.
    """
    hardware: Hardware = lookup(HARDWARE, name, "hardware")
    return hardware
