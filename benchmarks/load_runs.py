"""Loading 2,000 finished runs of 500 logged steps with 12 numbers each.

    python -m benchmarks.load_runs [--quick] [--root=DIR]

Writes the runs as a training does into a temporary folder (or ``--root``, which is kept
and used again), reads them from their own files, collects them, and reads them again.
Times are of the second of two calls, as in a notebook: files are in the page cache and
the libraries imported. Every part is measured in a process of its own, for its memory.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np

from benchmarks import common
from scm_jax import config as config_lib
from scm_jax.analysis.tables import collect, frames
from scm_jax.evaluation import protocol
from scm_jax.runs.directory import writers
from scm_jax.runs.directory.layout import RunDir
from scm_jax.runs.directory.run_configs import config_hash
from scm_jax.sweeps.plan import planned

ROOT = pathlib.Path(__file__).resolve().parent.parent
METRICS = ("loss", "grad_norm", "tangent_norm", "squared_error", "tangent_warmup")
METRICS += tuple(f"eval/{n}_steps/frechet_distance" for n in (1, 2, 4))
METRICS += ("images_per_second", "images")
LIMITS = {"runs": 1.0, "metrics": 2.0}  # seconds


def base_config() -> dict:
    path = ROOT / "experiments" / "digits.py"
    spec = importlib.util.spec_from_file_location("digits", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return config_lib.to_dict(module.get_config("sct"))


def write_runs(root: pathlib.Path, num_runs: int, num_rows: int) -> None:
    base, rng = base_config(), np.random.default_rng(0)
    for number in range(num_runs):
        config = json.loads(json.dumps(base))
        config["seed"] = number // 50
        config["network"]["width"] = 32 * (1 + number % 5)
        config["train"]["duration_images"] = 10_000 * (1 + number % 50 // 5)
        write_run(root, config, rng.lognormal(size=(num_rows, len(METRICS))))


def write_run(root: pathlib.Path, config: dict, numbers: np.ndarray) -> None:
    run_id = f"digits-{config_hash(config)}"
    images = config["train"]["duration_images"]
    facts = {"sweep": "study", "file": "study.py", "base": "digits.py:sct", "label": ""}
    plan = planned.PlannedRun(
        id=run_id, config=config, overrides={"seed": config["seed"]}, **facts
    )
    run = RunDir(planned.write_run(root, plan))
    writer = writers.JsonlWriter(run.metrics_path)
    for step, row in enumerate(numbers.tolist()):
        writer.write_scalars(step, dict(zip(METRICS, row, strict=True)))
    writer.close()
    rows = [result(steps, float(numbers[-1, 0])) for steps in (1, 2, 4)]
    # Not through append_result: 6,000 calls of fsync would take minutes.
    text = "".join(json.dumps(row) + "\n" for row in rows)
    run.results_path.write_text(text)
    end = {"event": "ended", "seconds": 60.0, "environment": {"device_count": 1}}
    (run.path / "attempts.jsonl").write_text(json.dumps({"attempt": 1, **end}) + "\n")
    status = {"state": "done", "attempt": 1, "heartbeat": 0.0, "error": None}
    (run.path / "status.json").write_text(json.dumps(status))
    summary = {"parameters": 10_000, "images": images, "train_macs_per_image": 1000}
    summary |= {"total_train_macs": 1000 * images, "results": rows}
    summary |= {"environment": {**common.environment(), "commit": "0" * 40}}
    run.summary_path.write_text(json.dumps(summary, indent=1))


def result(steps: int, value: float) -> dict:
    how = {
        "metric": "frechet_distance, prdc(k=3)",
        "extractor": "digits_classifier",
        "extractor_sha256": "0" * 64,
        "resize": "none",
        "quantization": "x*127.5+128, truncated",
        "reference": "digits",
        "reference_sha256": "1" * 64,
        "reference_count": 1797,
        "num_samples": 1797,
        "seeds": [0, 1, 2],
        "sampler": "consistency",
        "steps": steps,
    }
    found = {"frechet_distance": value, "precision": 0.8, "recall": 0.7}
    return {
        **{"method": "sct", "sampler": "consistency", "steps": steps, "times": None},
        **{
            "guidance": 1.0,
            "nfe": steps,
            "ema": "0.1",
            "step": 500,
            "key": f"{steps:010}",
        },
        **found,
        "frechet_distance_std": value / 10,
        "protocol": {"digits": protocol.Protocol(**how).__dict__},
        "measured_by": dict.fromkeys(found, "digits"),
    }


# --- Measuring ------------------------------------------------------------------------

PARTS = {
    "runs": lambda root: frames.load_runs(root),
    "metrics": lambda root: frames.load_metrics(root),
    "one metric": lambda root: frames.load_metrics(root, ["loss"]),
    "results": lambda root: frames.load_results(root),
    "collect": lambda root: collect.collect(root),
}


def measure(root: str, part: str, repeats: int) -> None:
    """Prints seconds of each call, what it gave and the most memory of the process."""
    before = peak_mb()
    took = []
    for _ in range(repeats):
        began, began_cpu = time.perf_counter(), time.process_time()
        found = PARTS[part](root)
        took.append((time.perf_counter() - began, time.process_time() - began_cpu))
    rows = found.runs if part == "collect" else len(found)
    print(json.dumps({"seconds": took, "rows": rows, "mb": [before, peak_mb()]}))


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measured(root: pathlib.Path, part: str, source: str, repeats: int = 2) -> float:
    """Measures in a new process; returns the seconds of the last call."""
    command = [sys.executable, "-m", "benchmarks.load_runs", f"--root={root}"]
    command += [f"--measure={part}", f"--repeats={repeats}"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    seconds, cpu_seconds = found["seconds"][-1]
    common.emit(
        part=part,
        source=source,
        first_seconds=found["seconds"][0][0],
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        rows=found["rows"],
        memory_mb=found["mb"][1] - found["mb"][0],
    )
    return seconds


def run(root: pathlib.Path, num_runs: int, num_rows: int) -> None:
    if not any(root.glob("*/config.json")):
        began = time.perf_counter()
        write_runs(root, num_runs, num_rows)
        common.emit(part="write", seconds=time.perf_counter() - began, runs=num_runs)
    for file in root.glob("*.parquet"):
        file.unlink()
    took = {"runs": measured(root, "runs", "json")}
    measured(root, "results", "json")
    measured(root, "metrics", "json", repeats=1)
    measured(root, "collect", "json", repeats=1)
    size = sum(file.stat().st_size for file in root.glob("*.parquet"))
    common.emit(part="parquet", mb=size / 2**20)
    measured(root, "collect", "parquet", repeats=1)
    measured(root, "runs", "parquet")
    measured(root, "results", "parquet")
    measured(root, "one metric", "parquet")
    took["metrics"] = measured(root, "metrics", "parquet")
    for part, limit in LIMITS.items():
        common.ratio(f"load_{part}, seconds / 1", took[part], limit=limit)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="40 runs of 20 steps")
    parser.add_argument("--root", type=pathlib.Path)
    parser.add_argument("--measure", choices=PARTS)
    parser.add_argument("--repeats", type=int, default=2)
    args = parser.parse_args()
    if args.measure:
        measure(str(args.root), args.measure, args.repeats)
        return
    size = (40, 20) if args.quick else (2000, 500)
    with tempfile.TemporaryDirectory() as folder:
        run(args.root or pathlib.Path(folder), *size)


if __name__ == "__main__":
    main()
