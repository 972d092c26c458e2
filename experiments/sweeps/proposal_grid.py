"""Where to train: a grid of the proposal's mean and standard deviation.

Run (2 CPU cores):
  python -m scm_jax sweep submit --sweep=experiments/sweeps/proposal_grid.py:sct \\
    --root=runs/proposal_grid --max_parallel=2

Expect (51 runs, 1.2 hours of a CPU core; docs/ablations.md): one step is best at
(-1.4, 1.4) for sct (4.00) and at (-0.6, 2.0) for scd (3.97), two steps at (-2.0, 1.2)
and (-2.0, 1.0) (2.62, 3.07). The paper takes (-1.0, 1.4) on CIFAR-10, (-1.0, 1.6) on
ImageNet 64 and (-0.8, 1.6) on ImageNet 512.

The argument is ``both``, ``sct`` or ``scd``, and ``quick``. The students of
experiments/digits.py at a fifth of their length.
"""

from scm_jax.sweeps import cross, grid, of_duration, run_dir
from scm_jax.sweeps.plan.studies import parse_kinds

BASE = "experiments/digits.py:sct"
METRICS = ("1_steps/frechet_distance", "2_steps/frechet_distance")

BATCH = 128
P_MEANS = (-2.0, -1.4, -1.0, -0.6, 0.0)
P_STDS = (1.0, 1.2, 1.4, 1.6, 2.0)


def sweep(arg=""):
    """``both``, ``sct`` or ``scd``, and ``quick``."""
    kinds, quick = parse_kinds(arg)
    size = {"network.width": 16} if quick else {}
    teacher = {"base": ":teacher", "label": "teacher", "tags": "teacher", **size}
    if quick:
        teacher |= {"train.duration_images": 20 * BATCH}
    yield {**teacher, "optimizer.decay_images": of_duration(1.0)}
    axes = {"objective.P_mean": P_MEANS[1:3] if quick else P_MEANS}
    axes |= {"objective.P_std": P_STDS[2:4] if quick else P_STDS}
    student = {
        **size,
        "train.duration_images": (20 if quick else 600) * BATCH,
        "optimizer.decay_images": of_duration(1.0),
        "objective.tangent_warmup_images": of_duration(0.1),
        "init.run": run_dir("teacher"),
    }
    for kind in kinds:
        own = {"base": f":{kind}", "tags": kind}
        if kind == "scd":
            own["teacher.run"] = run_dir("teacher")
        yield from cross([{**student, **own}], grid(axes))
