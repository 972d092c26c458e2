"""Every few-step method at equal training compute, on two data sets.

Run (2 CPU cores):
  python -m scm_jax sweep submit --sweep=experiments/sweeps/methods.py:trials \\
    --root=runs/methods_trials --max_parallel=2
  python -m scm_jax sweep submit --sweep=experiments/sweeps/methods.py \\
    --root=runs/methods_digits --max_parallel=2
  python -m scm_jax sweep submit \\
    --sweep=experiments/sweeps/methods.py:trials,data=moving_digits \\
    --root=runs/methods_moving_trials --max_parallel=2
  python -m scm_jax sweep submit \\
    --sweep=experiments/sweeps/methods.py:both,data=moving_digits \\
    --root=runs/methods_moving_digits --max_parallel=2

Expect (97 runs each, 1 to 2 hours of a CPU core; docs/methods.md): Frechet distances of
digits in 2 evaluations after 7.2e11 FLOPs: imf 1.73, meanflow 2.16, lmd 2.40, scd 3.20;
their teacher has 2.10 in 35. Moving digits after 1.32e12: dmd2 299, lmd 339, scd 340,
meanflow 535; their teacher has 175.

Two tracks: ``scratch`` starts at random parameters and learns from data; ``distilled``
starts at one shared teacher, which it follows. All have the same transformer, batch and
constant schedule, and the settings of experiments/digits.py but for the learning rate:
``trials`` runs each method and budget at each of ``RATES`` with seed 0, and ``CHOSEN``
is the best of them. The comparison uses it for the seeds after 0. A run is as long as
its budget of training FLOPs allows; those of the teacher are in the table of runs. The
argument is ``both``, ``scratch``, ``distilled`` or ``trials``, ``seeds=3``,
``data=digits`` or ``moving_digits``, and ``quick`` for a smoke run.
"""

from scm_jax.config import parse_arg
from scm_jax.sweeps import of_duration, run_dir

BASE = "experiments/digits.py:sct"
METRICS = tuple(f"{n}_steps/frechet_distance" for n in (1, 2, 4, 8))
BATCH = 64
# Steps of diffusion that cost as much as the training of a student.
STEPS = {"digits": (500, 4_000), "moving_digits": (250, 2_000)}
# The teacher's steps, and its settings.
TEACHERS = {
    "digits": (2_000, {}),
    "moving_digits": (
        6_000,
        {
            "optimizer.name": "muon",
            "optimizer.learning_rate": 1e-2,
            "optimizer.schedule": "cosine",
            "optimizer.decay_images": of_duration(1.0),
        },
    ),
}
STEP_FLOPS = {"digits": 1.8e8, "moving_digits": 6.6e8}  # of diffusion
METHODS = {
    "scratch": ("sct", "ict", "ect", "meanflow", "imf", "lsd", "psd", "shortcut"),
    "distilled": (
        *("scd", "scd_segments", "cd", "emd", "lmd"),
        *("scd_vsd", "dmd2", "rcm"),
    ),
}
WARMED = ("sct", "scd", "scd_segments", "scd_vsd", "rcm")  # their tangents
RATES = (3e-4, 1e-3, 3e-3)
# The learning rate of the small and of the large budget: in the trials it had the least
# Frechet distance in two steps, that of ``scd_segments`` in four.
CHOSEN = {
    "digits": {
        "sct": (3e-3, 3e-3),
        "ict": (3e-3, 3e-3),
        "ect": (3e-3, 1e-3),
        "meanflow": (1e-3, 3e-3),
        "imf": (1e-3, 3e-3),
        "lsd": (3e-3, 3e-3),
        "psd": (1e-3, 3e-3),
        "shortcut": (3e-3, 3e-3),
        "scd": (1e-3, 3e-3),
        "scd_segments": (1e-3, 3e-4),
        "cd": (3e-4, 1e-3),
        "emd": (1e-3, 3e-4),
        "lmd": (1e-3, 3e-3),
        "scd_vsd": (3e-4, 3e-4),
        "dmd2": (1e-3, 1e-3),
        "rcm": (1e-3, 1e-3),
    },
}
CHOSEN["moving_digits"] = CHOSEN["digits"] | {
    "sct": (3e-3, 1e-3),
    "ect": (1e-3, 3e-3),
    "imf": (3e-3, 3e-3),
    "lsd": (1e-3, 3e-3),
    "scd": (1e-3, 3e-4),
    "scd_segments": (1e-3, 1e-3),
    "cd": (1e-3, 1e-3),
    "emd": (3e-4, 3e-4),
    "lmd": (1e-3, 1e-3),
    "dmd2": (1e-3, 3e-4),
    "rcm": (3e-3, 3e-4),
}


def sweep(arg=""):
    """``both``, ``scratch``, ``distilled`` or ``trials``; seeds, data and ``quick``."""
    track, options = parse_arg(
        arg or "both",
        ("both", *METHODS, "trials"),
        seeds=3,
        data=("digits", "moving_digits"),
    )
    quick, data = options["quick"], options["data"]
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
    step = STEP_FLOPS[data] * (0.002 if quick else 1.0)
    length, settings = TEACHERS[data]
    teacher = {
        "base": f":teacher,data={data}",
        "label": "teacher",
        "tags": ("teacher",),
    }
    yield common | teacher | settings | {"train.flops": length * step}
    if data == "moving_digits":  # more than any student sees
        common["dataset.num_items"] = 140_000
    tracks = {track: METHODS[track]} if track in METHODS else METHODS
    seeds = (0,) if track == "trials" or quick else range(1, 1 + options["seeds"])
    for seed in seeds:
        for budget, steps in enumerate(STEPS[data][: 1 if quick else None]):
            for kind, methods in tracks.items():
                for method in methods:
                    rates = (
                        RATES
                        if track == "trials"
                        else CHOSEN[data][method][budget:][:1]
                    )
                    for rate in rates:
                        arm = _arm(kind, method, data, rate, seed)
                        arm["label"] += f"_{steps}"
                        arm["tags"] += (f"steps_{steps}",)
                        yield common | arm | {"train.flops": steps * step}


def _arm(kind, method, data, rate, seed):
    start = "scratch" if kind == "scratch" else "teacher"
    arm = {
        "base": f":{method},start={start},data={data}",
        "label": f"{method}_{rate:.0e}_{seed}",
        "tags": (kind, method),
        "seed": seed,
        "optimizer.learning_rate": rate,
        "eval.steps": (4,) if method == "scd_segments" else (1, 2, 4, 8),
    }
    if method in WARMED:
        arm["objective.tangent_warmup_images"] = of_duration(0.1)
    if kind == "distilled":
        arm |= {"init.run": run_dir("teacher"), "teacher.run": run_dir("teacher")}
    return arm
