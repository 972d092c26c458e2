"""What a sweep would do: its runs, their cost and hours, and what is done already."""

from __future__ import annotations

import collections
import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scm_jax.files.jsonl import flatten, read_rows
from scm_jax.runs.directory import labels
from scm_jax.runs.directory.layout import RunDir
from scm_jax.runs.directory.run_configs import is_neutral, read_whole_object
from scm_jax.sweeps.plan.planned import PlannedRun


@dataclasses.dataclass(frozen=True)
class Measured:
    """The speed of a finished run."""

    flops_per_image: float  # of its training
    flops_per_second: float  # of all its devices: the median of the logged intervals
    overhead_seconds: float  # start, compilation, checkpoints and evaluation
    device: str
    device_count: int


def measured_run(directory: str | Path) -> Measured | None:
    """The speed of a finished run; None if it was resumed or logged no rate."""
    run = RunDir(directory)
    if not (summary := read_whole_object(run.summary_path)):
        return None
    rows = read_rows(run.metrics_path)
    rates = [r["images_per_second"] for r in rows if r.get("images_per_second")]
    if not rates or summary.get("resumed_at_step") or "total_train_macs" not in summary:
        return None
    rate = statistics.median(rates)
    environment = summary.get("environment", {})
    return Measured(
        flops_per_image=2.0 * summary["train_macs_per_image"],
        flops_per_second=2.0 * summary["train_macs_per_image"] * rate,
        overhead_seconds=max(0.0, summary["seconds"] - summary["images"] / rate),
        device=environment.get("device", "unknown"),
        device_count=environment.get("device_count", 1),
    )


def measured_runs(directories: Sequence[str | Path]) -> list[Measured]:
    """The speeds of the finished runs among ``directories``."""
    return [m for directory in directories if (m := measured_run(directory))]


def estimated_device_hours(
    planned: PlannedRun, measured: Sequence[Measured]
) -> float | None:
    """Device hours by the rate of the measured runs whose images cost most alike.

    Smaller networks reach less of a device's peak, so the nearest in the logarithm of
    FLOPs per image counts; among several that cost the same, the medians of rate and
    overhead. None where nothing was measured.
    """
    if not measured:
        return None
    cost = math.log(planned.train_flops / planned.images)
    distances = [abs(math.log(m.flops_per_image) - cost) for m in measured]
    least = min(distances) + 1e-2
    near = [m for m, d in zip(measured, distances, strict=True) if d <= least]
    rate = statistics.median(m.flops_per_second for m in near)
    overhead = statistics.median(m.overhead_seconds for m in near)
    return (planned.train_flops / rate + overhead) * near[0].device_count / 3600


def changed_texts(planned: Sequence[PlannedRun]) -> list[str]:
    """What tells each run from the others, such as ``scd width=64 seed=1``.

    The argument of the experiment file comes first where it differs between runs; a key
    is shortened to its last part where that is unambiguous.
    """
    configs = [flatten(run.config) for run in planned]
    keys = dict.fromkeys(key for run in planned for key in run.overrides)
    varying = labels.varying_keys([{key: c.get(key) for key in keys} for c in configs])
    # Not what cannot change a result, nor numbers of images that a budget decides.
    shown = [k for k in varying if not (is_neutral(k) or k.endswith("_images"))]
    bases = len({run.base for run in planned}) > 1
    short = labels.short_names(shown)
    texts = []
    for run, config in zip(planned, configs, strict=True):
        parts = [run.base.partition(":")[2]] if bases else []
        parts += [
            f"{short[key]}={labels.short_value(config[key])}"
            for key in shown
            if key in run.overrides
        ]
        texts.append(" ".join(part for part in parts if part) or run.label or "-")
    return texts


_AS_PLANNED = (
    *("overrides", "tags", "resources", "depends_on"),
    *("parameters", "images", "train_flops"),
)


def plan_rows(
    planned: Sequence[PlannedRun],
    states: Mapping[str, str],
    measured: Sequence[Measured] = (),
) -> list[dict[str, Any]]:
    """One row of plain data per run, for ``--json`` and the table."""
    return [
        {
            "id": run.id,
            "changed": text,
            **{key: getattr(run, key) for key in _AS_PLANNED},
            "device_hours": estimated_device_hours(run, measured),
            "state": states[run.id],
        }
        for run, text in zip(planned, changed_texts(planned), strict=True)
    ]


def print_plan(
    rows: Sequence[Mapping[str, Any]],
    root: str | Path,
    measured: Sequence[Measured] = (),
    *,
    limit: int | None = None,
) -> None:
    """Prints ``limit`` rows of ``plan_rows`` as a table, and what all add up to.

    The hours come from ``measured``.
    """
    import rich.console
    import rich.table

    console = rich.console.Console(highlight=False)
    # The name is mostly in what changed; the hash alone finds a directory.
    full = console.width >= 110
    table = rich.table.Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("run", no_wrap=True)
    table.add_column("changed", overflow="fold")
    for name in ("params", "images", "FLOPs", "hours"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for row in rows[:limit]:
        table.add_row(
            row["id"] if full else row["id"].rpartition("-")[2],
            row["changed"],
            labels.short_count(row["parameters"]),
            labels.short_count(row["images"]),
            f"{row['train_flops']:.3g}",
            short_hours(row["device_hours"]),
            row["state"],
        )
    console.print(table)
    if hidden := len(rows) - len(rows[:limit]):
        console.print(f"and {hidden} more: --limit=0 shows all, --json everything")
    for line in plan_totals(rows, root, measured):
        console.print(line, soft_wrap=True)


def plan_totals(
    rows: Sequence[Mapping[str, Any]], root: str | Path, measured: Sequence[Measured]
) -> list[str]:
    """Two sentences on all runs together: their number and FLOPs, and the hours."""
    counts = collections.Counter(row["state"] for row in rows)
    states = ", ".join(f"{n} {state}" for state, n in counts.most_common())
    flops = sum(row["train_flops"] for row in rows)
    total = f"{len(rows)} runs in {root} ({states}), {flops:.3g} FLOPs of training"
    if not measured:
        return [
            total,
            "hours: unknown, since no run of this sweep is finished; name a finished "
            "run on the same devices with --measured=DIR",
        ]
    kinds = sorted({f"{m.device_count} x {m.device}" for m in measured})
    hours = sum(row["device_hours"] for row in rows)
    left = sum(row["device_hours"] for row in rows if row["state"] != "done")
    return [
        total,
        f"{short_hours(hours)} device hours, {short_hours(left)} of them to come, by "
        f"the rates of {len(measured)} finished runs on {', '.join(kinds)}",
    ]


def short_hours(hours: float | None) -> str:
    """Hours with three digits, below one in minutes; ``?`` where unknown."""
    if hours is None:
        return "?"
    return f"{hours:.3g}" if hours >= 1 else f"{60 * hours:.2g}min"
