"""What a sweep would do: runs, accounts, times and what is there already."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scm_jax.records import flatten, read_rows
from scm_jax.runs import RunDir
from scm_jax.sweeps.planned import PlannedRun


@dataclasses.dataclass(frozen=True)
class Measured:
    """How fast a finished run was.

    Attributes:
      flops_per_image: of its training.
      flops_per_second: while it trained, over all its devices: the median of its
        intervals.
      overhead_seconds: start, compilation, checkpoints and evaluation.
      device: kind of its devices.
      device_count: how many.
      run: its directory.
    """

    flops_per_image: float
    flops_per_second: float
    overhead_seconds: float
    device: str
    device_count: int
    run: str


def measured_run(directory: str | Path) -> Measured | None:
    """The speed of a finished run; None where it has not been measured."""
    run = RunDir(directory)
    if not run.summary_path.is_file():
        return None
    summary = json.loads(run.summary_path.read_text(encoding="utf-8"))
    rows = read_rows(run.metrics_path)
    rates = [r["images_per_second"] for r in rows if r.get("images_per_second")]
    environment = summary.get("environment", {})
    if not rates or summary.get("resumed_at_step") or "total_train_macs" not in summary:
        return None
    rate = statistics.median(rates)
    return Measured(
        flops_per_image=2.0 * summary["train_macs_per_image"],
        flops_per_second=2.0 * summary["train_macs_per_image"] * rate,
        overhead_seconds=max(0.0, summary["seconds"] - summary["images"] / rate),
        device=environment.get("device", "unknown"),
        device_count=environment.get("device_count", 1),
        run=str(directory),
    )


def measured_runs(directories: Sequence[str | Path]) -> list[Measured]:
    """The speeds of those that are finished."""
    found = (measured_run(directory) for directory in directories)
    return [m for m in found if m is not None]


def estimated_device_hours(
    planned: PlannedRun, measured: Sequence[Measured]
) -> float | None:
    """Device hours by the rate of the measured run whose images cost most alike.

    Smaller networks reach less of a device, so the nearest one in the logarithm of
    FLOPs per image decides. None where nothing was measured.
    """
    if not measured:
        return None
    cost = math.log(planned.train_flops / planned.images)
    nearest = min(measured, key=lambda m: abs(math.log(m.flops_per_image) - cost))
    seconds = planned.train_flops / nearest.flops_per_second
    return (seconds + nearest.overhead_seconds) * nearest.device_count / 3600


def varying_keys(planned: Sequence[PlannedRun]) -> list[str]:
    """Overridden keys whose values are not the same for all runs, in their order.

    What only follows from others, such as a schedule that scales with the training
    length, is left out where it varies with ``train.duration_images``.
    """
    keys = dict.fromkeys(key for run in planned for key in run.overrides)
    configs = [flatten(run.config) for run in planned]
    return [
        key
        for key in keys
        if len({json.dumps(config.get(key)) for config in configs}) > 1
    ]


def changed_texts(planned: Sequence[PlannedRun]) -> list[str]:
    """What tells each run from the others: ``width=64 seed=1``, without paths' heads.

    A key is shortened to its last part where that is unambiguous.
    """
    keys = [k for k in varying_keys(planned) if not k.endswith("_images")]
    bases = len({run.base for run in planned}) > 1
    short = short_names(keys)
    texts = []
    for run in planned:
        config = flatten(run.config)
        parts = [run.base.partition(":")[2]] if bases else []
        parts += [
            f"{short[key]}={short_value(config[key])}"
            for key in keys
            if key in run.overrides
            and not (key == "teacher.run" and "init.run" in keys)
        ]
        texts.append(" ".join(part for part in parts if part) or run.label or "-")
    return texts


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """The last part of each dotted key, or the whole key where two share it."""
    last = [key.rpartition(".")[2] for key in keys]
    return {k: s if last.count(s) == 1 else k for k, s in zip(keys, last, strict=True)}


def short_value(value: Any) -> str:
    """A value for a table: a run's directory by its name."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, str) and "/" in value:
        return Path(value).name
    return str(value)


def plan_rows(
    planned: Sequence[PlannedRun],
    states: Mapping[str, str],
    measured: Sequence[Measured] = (),
) -> list[dict[str, Any]]:
    """One row of plain data per run, for ``--json`` and the table."""
    texts = changed_texts(planned)
    return [
        {
            "id": run.id,
            "changed": text,
            "overrides": dict(run.overrides),
            "tags": list(run.tags),
            "resources": run.resources,
            "depends_on": list(run.depends_on),
            "parameters": run.parameters,
            "images": run.images,
            "train_flops": run.train_flops,
            "device_hours": estimated_device_hours(run, measured),
            "state": states[run.id],
        }
        for run, text in zip(planned, texts, strict=True)
    ]
