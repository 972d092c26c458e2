"""Every few-step method at equal training compute, on digits.

Run (2 CPU cores):
  python -m scm_jax sweep submit --sweep=experiments/sweeps/methods.py \\
    --root=runs/methods --max_parallel=2

Expect (33 runs with seeds=1, 40 minutes of a CPU core): docs/methods.md.

Two tracks: ``scratch`` starts at random parameters and learns from data; ``distilled``
starts at one shared teacher, which it follows. All have the same transformer, batch,
learning rate and constant schedule, and one setting each, that of
experiments/digits.py. A run is as long as its budget of training FLOPs allows; those of
the teacher are in the table of runs. The argument is ``both``, ``scratch`` or
``distilled``, ``seeds=3``, and ``quick`` for a smoke run.
"""

from scm_jax.config import parse_arg
from scm_jax.sweeps import of_duration, run_dir

BASE = "experiments/digits.py:sct"
METRICS = tuple(f"{n}_steps/frechet_distance" for n in (1, 2, 4, 8))
BATCH = 64
BUDGETS = (9e10, 7.2e11)  # of a student: 500 and 4,000 diffusion steps
TEACHER = 3.6e11
METHODS = {
    "scratch": ("sct", "ict", "ect", "meanflow", "imf", "lsd", "psd", "shortcut"),
    "distilled": (
        *("scd", "scd_segments", "cd", "emd", "lmd"),
        *("scd_vsd", "dmd2", "rcm"),
    ),
}
WARMED = ("sct", "scd", "scd_segments", "scd_vsd", "rcm")  # their tangents


def sweep(arg=""):
    """``both``, ``scratch`` or ``distilled``; seeds=N and ``quick``."""
    track, options = parse_arg(arg or "both", ("both", *METHODS), seeds=3)
    quick = options["quick"]
    common = {
        "train.batch_size": BATCH,
        "network.width": 16 if quick else 64,
        "network.depth": 1 if quick else 2,
        "optimizer.schedule": "constant",
        "log.writers": ("jsonl",),
        "log.every_images": 100 * BATCH,
        "eval.num_seeds": 1,
        "checkpoint.every_images": 0,
    }
    scale = 0.002 if quick else 1.0
    teacher = {"base": ":teacher", "label": "teacher", "tags": ("teacher",)}
    yield common | teacher | {"train.flops": TEACHER * scale}
    kinds = METHODS if track == "both" else {track: METHODS[track]}
    for seed in range(1 if quick else options["seeds"]):
        for budget in BUDGETS[:1] if quick else BUDGETS:
            for kind, methods in kinds.items():
                for method in methods:
                    flops = {"train.flops": budget * scale}
                    yield common | _arm(kind, method, budget, seed) | flops


def _arm(kind, method, budget, seed):
    start = "scratch" if kind == "scratch" else "teacher"
    arm = {
        "base": f":{method},start={start}",
        "label": f"{method}_{budget:.0e}_{seed}",
        "tags": (kind, method, f"budget_{budget:.0e}"),
        "seed": seed,
        "eval.steps": (4,) if method == "scd_segments" else (1, 2, 4, 8),
    }
    if method in WARMED:
        arm["objective.tangent_warmup_images"] = of_duration(0.1)
    if kind == "distilled":
        arm |= {"init.run": run_dir("teacher"), "teacher.run": run_dir("teacher")}
    return arm
