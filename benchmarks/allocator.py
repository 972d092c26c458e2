"""What it costs to return memory to the system after every training step.

    python -m benchmarks.allocator [--quick]

A process each trains a transformer over clips with ``allocator.keep_freed_memory`` and
without, in turns; the last line has the ratio of the medians of their step times.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys

from benchmarks import common

STEPS = """
import sys, time, resource, json
import jax
from scm_jax.commands import allocator
from scm_jax.runs.setup import experiment
from scm_jax.sweeps.plan.sweep_file import load_module
if sys.argv[1] == "kept":
    assert allocator.keep_freed_memory()
config = load_module("experiments/moving_digits.py").get_config("teacher")
config.dataset.num_items = 256
built = experiment.build(config)
state = jax.jit(built.init_state)()
raw = next(built.dataset.iterator(config.train.batch_size, 0))
batch = jax.jit(built.dataset.to_batch)(raw)
step = jax.jit(built.train_step(), donate_argnums=0).lower(state, batch, None).compile()
times = []
for i in range(int(sys.argv[2]) + 2):
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    began = time.perf_counter()
    state, metrics = step(state, batch, None)
    jax.block_until_ready(state)
    times.append(time.perf_counter() - began)
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"seconds": times[2:], "faults": faults, "peak_gb": peak / 1e6}))
"""


def measure(mode: str, steps: int) -> dict:
    """Step times of a fresh process, page faults of its last step, its peak memory."""
    command = [sys.executable, "-c", STEPS, mode, str(steps)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    common.emit(mode=mode, step_seconds=statistics.median(found["seconds"]), **found)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    times: dict[str, list[float]] = {"kept": [], "returned": []}
    for turn in range(1 if quick else 3):
        for mode in sorted(times, reverse=bool(turn % 2)):
            times[mode] += measure(mode, 5 if quick else 15)["seconds"]
    kept, returned = (statistics.median(times[m]) for m in ("kept", "returned"))
    common.ratio("kept/returned", kept / returned, limit=1.0)


if __name__ == "__main__":
    main()
