"""A cost estimate as text of at most 80 columns."""

from __future__ import annotations

import dataclasses
from typing import Any

from scm_jax.cost import collectives
from scm_jax.runs.directory import report
from scm_jax.runs.directory.labels import short_count
from scm_jax.runs.estimate.accounts import Accounts


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _bytes(value: float) -> str:
    return f"{short_count(value, ' ')}B"


def _count(value: float) -> str:
    return short_count(value, " ").rstrip()


_MFU = "model_flops_utilization"
# Group, key, label, and how the value is written.
_LINES: tuple[tuple[str, str, str, Any], ...] = (
    ("stated", "batch_size", "images per step, all devices", str),
    ("modelled", "images_per_device", "images per step and device", "{:g}".format),
    ("stated", "microbatches", "microbatches", str),
    ("measured", "parameters", "parameters", _count),
    ("measured", "teacher_parameters", "parameters of the teacher", _count),
    ("measured", "forward_macs_per_image", "multiply-adds, forward, per image", _count),
    ("measured", "train_macs_per_image", "multiply-adds, step, per image", _count),
    ("measured", "state_bytes", "state, all devices without copies", _bytes),
    ("measured", "state_bytes_per_device", "state per device", _bytes),
    ("compiled", "argument_bytes_per_device", "state, teacher, batch", _bytes),
    ("measured", "saved_bytes_per_image", "kept for backward, per image", _bytes),
    ("compiled", "temporary_bytes_per_device", "peak temporaries per device", _bytes),
    ("modelled", "temporary_bytes_per_device", "peak temporaries per device", _bytes),
    ("modelled", "largest_images_per_device", "images that fit at once", str),
    ("modelled", "microbatches_needed", "microbatches needed", str),
    ("stated", "efficiency", "share of peak in matrix products", _percent),
    ("stated", "bandwidth_efficiency", "share of bandwidths reached", _percent),
    ("modelled", "compute_seconds", "roofline: compute", _seconds),
    ("modelled", "memory_seconds", "roofline: memory of products", _seconds),
    ("modelled", "update_seconds", "roofline: memory of the update", _seconds),
    ("modelled", "network_seconds", "roofline: network", _seconds),
    ("modelled", "network_seconds_analytic", "network by the FSDP model", _seconds),
    ("modelled", "step_seconds_overlapped", "step, network hidden", _seconds),
    ("modelled", "step_seconds_exposed", "step, network exposed", _seconds),
    ("modelled", f"{_MFU}_overlapped", "MFU, network hidden", _percent),
    ("modelled", f"{_MFU}_exposed", "MFU, network exposed", _percent),
    ("modelled", "device_hours", "device hours of the training", _count),
)


_LEGEND = """\
measured  counted on the traced program and its shapes, exact
compiled  read from XLA's program for simulated CPU devices; nothing was run
modelled  formulas of scm_jax/cost/roofline.py
stated    the config, a flag or a data sheet
Collectives are in bytes that one device receives in a step, in a ring."""


def format_accounts(accounts: Accounts) -> str:
    """The estimate as text of at most 80 columns."""
    groups = dataclasses.asdict(accounts)
    stated = accounts.stated
    mesh = ",".join(f"{axis}={n}" for axis, n in stated["mesh"].items())
    rows = [
        {"quantity": label, "value": write(value), "known": group}
        for group, key, label, write in _LINES
        if (value := groups[group].get(key)) is not None
    ]
    parts = [
        f"{stated['name']}: {mesh} of {stated['hardware']}, bound by "
        f"{accounts.modelled['bound']}",
        report.format_table(rows),
    ]
    if table := _collective_rows(accounts):
        parts.append(report.format_table(table))
    if stated["mesh"]["tensor"] > 1:
        parts.append("The FSDP model leaves out what the tensor axis exchanges.")
    return "\n\n".join([*parts, _LEGEND])


def _collective_rows(accounts: Accounts) -> list[dict[str, Any]]:
    model = {row["kind"]: row for row in accounts.modelled["collectives"]}
    compiled: dict[str, list[dict[str, Any]]] = {}
    for row in accounts.compiled.get("collectives", ()):
        compiled.setdefault(row["kind"], []).append(row)
    rows = []
    for kind in collectives.KINDS:
        received = model.get(kind, {}).get("received_bytes", 0.0)
        if kind not in compiled and not received:
            continue
        found = compiled.get(kind, [])
        rows.append(
            {
                "collective": kind,
                "times": str(sum(row["executions"] for row in found)),
                "compiled": _bytes(sum(row["received_bytes"] for row in found)),
                "FSDP model": _bytes(received),
                "dtypes": " ".join(row["dtype"] for row in found),
            }
        )
    return rows
