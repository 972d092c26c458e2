"""Small run directories with known numbers, written by the package's own writers.

write(root, {"network.width": 32, "seed": 1}, results=[result(2, 1.5, std=0.1)])
"""

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scm_jax.evaluation.protocol import Protocol
from scm_jax.runs.directory.layout import RunDir
from scm_jax.runs.directory.run_configs import config_hash
from scm_jax.runs.directory.writers import JsonlWriter
from scm_jax.sweeps.plan import planned

CONFIG = {
    "name": "sct",
    "seed": 0,
    "dataset": {"name": "digits", "root": ""},
    "network": {"name": "dit", "width": 16, "patch": 2},
    "objective": {
        "name": "consistency",
        "dx_dt": "data",
        "tangent_normalization": "l2",
        "tangent_warmup_images": 1000,
        "learned_weighting": True,
        "guidance_range": None,
    },
    "ema": {"rel_std": [0.1, 0.05], "half_life_images": [], "sampling": ""},
    "sampling": {"guidance": 1.0, "steps": 2, "sampler": "consistency"},
    "train": {"batch_size": 10, "duration_images": 1000},
    "log": {"every_images": 100},
}
MACS_PER_IMAGE = 1_000_000
PARAMETERS = 5_000


def config(overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """``CONFIG`` with dotted keys replaced or added."""
    found = copy.deepcopy(CONFIG)
    for key, value in (overrides or {}).items():
        section, _, name = key.rpartition(".")
        (found.setdefault(section, {}) if section else found)[name] = value
    return found


def protocol(**fields: Any) -> dict[str, Any]:
    """How ``result`` was measured."""
    usual: dict[str, Any] = {"metric": "frechet_distance", "sampler": "consistency"}
    usual |= {"extractor": "digits_classifier", "extractor_sha256": "a" * 64}
    usual |= {"resize": "none", "quantization": "none", "num_samples": 1000}
    usual |= {"reference": "digits", "reference_sha256": "b" * 64}
    usual |= {"reference_count": 1797, "seeds": (0, 1, 2), "steps": 2}
    return dataclasses.asdict(Protocol(**{**usual, **fields}))


def result(steps: int, value: float, std: float | None = None, **entries: Any):
    """A row of ``results.jsonl``; ``measured`` are fields of its protocol."""
    measured = entries.pop("measured", {})
    row = {"method": "sct", "sampler": "consistency", "steps": steps, "times": None}
    row |= {"guidance": 1.0, "nfe": steps, "frechet_distance": value, "ema": "0.1"}
    row |= {"num_samples": 1000, "num_seeds": 3, "step": 100, "images": 1000}
    row["protocol"] = {"digits": protocol(steps=steps, **measured)}
    row["measured_by"] = {"frechet_distance": "digits"}
    return row | ({} if std is None else {"frechet_distance_std": std}) | entries


def write(
    root: Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    name: str = "",
    results: Sequence[Mapping[str, Any]] = (),
    rows: Sequence[Mapping[str, Any]] = (),
    done: bool = True,
    plan: Mapping[str, Any] | None = None,
) -> Path:
    """Writes one run into a directory of runs; returns its own.

    ``rows`` are those of ``metrics.jsonl``; ``plan`` has further fields of ``run.json``
    and is None for a run without a sweep.
    """
    resolved = config(overrides)
    path = root / (name or f"run-{config_hash(resolved)}")
    run = RunDir(path)
    images = resolved["train"]["duration_images"]
    if plan is None:
        run.write_config(resolved)
    else:
        facts = {"sweep": "study", "file": "study.py", "base": "digits.py:sct"}
        facts |= {"images": images, "label": "", "overrides": {}, **plan}
        entry = planned.PlannedRun(id=path.name, config=resolved, **facts)
        planned.write_run(root, entry)
    write_metrics(path, rows)
    for row in results:
        run.append_result(row)
    if done:
        environment = {"device": "cpu", "device_count": 2}
        environment |= {"commit": "abc", "dirty": False}
        run.write_summary(
            {
                "parameters": PARAMETERS,
                "images": images,
                "train_macs_per_image": MACS_PER_IMAGE,
                "total_train_macs": MACS_PER_IMAGE * images,
                "seconds": 36.0,
                "results": list(results),
                "environment": environment,
            }
        )
    return path


def write_metrics(
    path: Path, rows: Sequence[Mapping[str, Any]], resume_step: int | None = None
) -> None:
    """Appends rows to a run's metrics, numbers and lists apart as a training does."""
    if not rows and resume_step is None:
        return
    writer = JsonlWriter(RunDir(path).metrics_path, resume_step=resume_step)
    for row in rows:
        lists = {name: v for name, v in row.items() if np.ndim(v)}
        numbers = {k: v for k, v in row.items() if k not in {"step", *lists}}
        if numbers:
            writer.write_scalars(row["step"], numbers)
        if lists:
            writer.write_arrays(row["step"], lists)
    writer.close()
