"""Sampling steps and intermediate times, on three seeds of each student.

Run (2 CPU cores):
  python -m scm_jax sweep submit --sweep=experiments/sweeps/sampling_times.py \\
    --root=runs/sampling_times --max_parallel=2

Expect (10 runs, 25 minutes of a CPU core; docs/results.md): sct is indifferent (2.24 at
0.4 to 2.39 at 1.5), scd and lmd are best at 0.4 to 0.6 (2.48 and 2.44; 2.75 and 2.87 at
1.1, where the paper samples everywhere).

How samples are drawn changes no parameter: this is one training per kind and seed, and
``eval.times`` measures each at all points when it is done. To measure runs that exist,
``evaluate --steps --times --sampler``. The argument is ``both``, ``sct`` or ``scd``,
and ``quick``; ``both`` adds ``lmd``, a map with a second time, sampled by a chain.
"""

from scm_jax.sweeps import cross, of_duration, run_dir, seeds
from scm_jax.sweeps.plan.studies import parse_kinds

BASE = "experiments/digits.py:sct"
METRICS = ("1_steps/frechet_distance", "2_steps/frechet_distance")

BATCH = 128
TWO_STEPS = (0.2, 0.4, 0.6, 0.8, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5)
THREE_STEPS = ((1.2, 0.6), (1.2, 0.9), (1.4, 0.8), (1.4, 1.1))


def sweep(arg=""):
    """``both``, ``sct`` or ``scd``, and ``quick``."""
    kinds, quick = parse_kinds(arg)
    size = {"network.width": 16} if quick else {}
    teacher = {"base": ":teacher", "label": "teacher", "tags": "teacher", **size}
    if quick:
        teacher |= {"train.duration_images": 20 * BATCH, "eval.num_seeds": 1}
    yield {**teacher, "optimizer.decay_images": of_duration(1.0)}
    two, three = (TWO_STEPS[::4], ()) if quick else (TWO_STEPS, THREE_STEPS)
    student = {
        **size,
        "train.duration_images": (20 if quick else 1_500) * BATCH,
        "optimizer.decay_images": of_duration(1.0),
        "init.run": run_dir("teacher"),
        "eval.steps": (1, 2) if quick else (1, 2, 3, 4),
        "eval.times": (*((t,) for t in two), *three),
        "eval.num_seeds": 1 if quick else 2,
    }
    for kind in kinds if len(kinds) == 1 else (*kinds, "lmd"):
        own = {"base": f":{kind}", "tags": kind}
        if kind != "sct":
            own["teacher.run"] = run_dir("teacher")
        if kind != "lmd":
            own["objective.tangent_warmup_images"] = of_duration(0.1)
        yield from cross([{**student, **own}], seeds(1 if quick else 3))
