"""How the runs of one machine share it: accelerators or processor cores, by slot."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path

from scm_jax.sweeps.launchers.options import Options
from scm_jax.training.processes.cluster import visible_devices


@dataclasses.dataclass(frozen=True)
class Slot:
    """What one run at a time may use."""

    index: int
    environment: Mapping[str, str]  # variables that pin the accelerators
    cores: tuple[int, ...] = ()  # processor cores; empty for all

    @property
    def text(self) -> str:
        """A description for messages: ``slot 1, cores 2,3``."""
        parts = [f"{name}={value}" for name, value in self.environment.items()]
        if self.cores:
            parts.append(f"cores {','.join(map(str, self.cores))}")
        return ", ".join([f"slot {self.index}", *parts])


def make_slots(
    options: Options, environ: Mapping[str, str], cores: tuple[int, ...]
) -> list[Slot]:
    """The slots of this machine.

    With accelerators each slot gets ``devices_per_run`` of them, and what ``environ``
    hides stays hidden; without, an equal part of the ``cores``, so that runs do not
    disturb each other's timing.

    Raises:
      ValueError: more devices are asked for than there are.
    """
    kind, devices = accelerators(environ)
    per_run = options.devices_per_run
    if not devices and per_run:
        raise ValueError(
            f"--devices_per_run={per_run}: this machine shows no accelerator"
        )
    if not devices or per_run == 0:
        return _slots_of_cores(options.max_parallel or 1, () if devices else cores)
    if per_run is None:
        per_run = max(1, len(devices) // (options.max_parallel or len(devices)))
    count = options.max_parallel or max(1, len(devices) // per_run)
    if count * per_run > len(devices):
        raise ValueError(
            f"--max_parallel={count} x --devices_per_run={per_run} is more than the "
            f"{len(devices)} devices that are visible; --devices_per_run=0 lets the "
            "runs share them"
        )
    return [
        Slot(i, _pinned(kind, devices[i * per_run : (i + 1) * per_run]))
        for i in range(count)
    ]


def accelerators(environ: Mapping[str, str]) -> tuple[str, list[str]]:
    """``cuda``, ``tpu`` or ``cpu``, and the names of the devices that JAX would see."""
    if environ.get("JAX_PLATFORMS", "").split(",")[0] == "cpu":
        return "cpu", []
    chips = environ.get("TPU_VISIBLE_CHIPS") or environ.get("TPU_VISIBLE_DEVICES")
    for kind, prefix, listed in (
        ("cuda", "nvidia", environ.get("CUDA_VISIBLE_DEVICES")),
        ("tpu", "accel", chips),
    ):
        found = _numbers(prefix)
        if found and listed is not None:
            found = visible_devices(listed)
        if found:
            return kind, found
    return "cpu", []


def _numbers(prefix: str) -> list[str]:
    """The numbers n of device files ``/dev/PREFIXn``."""
    names = (path.name.removeprefix(prefix) for path in Path("/dev").glob(f"{prefix}*"))
    return sorted((name for name in names if name.isdecimal()), key=int)


def _pinned(kind: str, devices: list[str]) -> dict[str, str]:
    listed = ",".join(devices)
    if kind == "cuda":
        return {"CUDA_VISIBLE_DEVICES": listed}
    return {
        "TPU_VISIBLE_CHIPS": listed,
        "TPU_CHIPS_PER_PROCESS_BOUNDS": f"1,{len(devices)},1",
        "TPU_PROCESS_BOUNDS": "1,1,1",
    }


def _slots_of_cores(count: int, cores: tuple[int, ...]) -> list[Slot]:
    if not cores:
        return [Slot(i, {}) for i in range(count)]
    if count > len(cores):
        return [Slot(i, {}, (cores[i % len(cores)],)) for i in range(count)]
    bounds = [i * len(cores) // count for i in range(count + 1)]
    return [Slot(i, {}, cores[bounds[i] : bounds[i + 1]]) for i in range(count)]


def usable_cores() -> tuple[int, ...]:
    """Processor cores of this process; empty outside Linux, which does not tell."""
    affinity = getattr(os, "sched_getaffinity", lambda pid: ())
    return tuple(sorted(affinity(0)))
