"""IsoFLOP study of diffusion, sCT and sCD on digits that never repeat.

Run (2 CPU cores):
  python -m scm_jax sweep submit --sweep=experiments/sweeps/law_moving_digits.py \\
    --root=runs/law_moving_digits --max_parallel=2

Expect: not yet measured.

Seven sizes, 100 times apart in parameters, and four budgets, 30 times apart in FLOPs,
with two seeds; a size has the budgets at which it is near the best one. Learning rates
are those of experiments/sweeps/transfer.py, for the width 32, and everything else that
a size or a budget changes is in ``scm_jax.sweeps.plan.studies``. The teachers of sCD
saw equally many images. The argument is ``quick`` for a smoke run.
"""

from scm_jax.config import parse_arg
from scm_jax.sweeps import cross, grid, seeds
from scm_jax.sweeps.plan.studies import (
    KINDS,
    SHARES,
    STUDENT_SHARES,
    by_size,
    widths,
)

BASE = "experiments/digits.py:sct,data=moving_digits"
METRICS = ("validation_error", "2_steps/frechet_distance")
BATCH = 64
# Width -> FLOPs of its trainings.
BUDGETS = {
    8: (5e10, 1.6e11),
    16: (5e10, 1.6e11, 5e11),
    24: (5e10, 1.6e11, 5e11, 1.5e12),
    32: (5e10, 1.6e11, 5e11, 1.5e12),
    48: (1.6e11, 5e11, 1.5e12),
    64: (1.6e11, 5e11, 1.5e12),
    96: (5e11, 1.5e12),
}
TEACHER_RATE, STUDENT_RATE = 1.6e-2, 8e-3
COMMON = {
    "train.batch_size": BATCH,
    "network.depth": 2,
    "dataset.num_items": 4_000_000,  # more than any run sees
    "log.writers": ("jsonl",),
    "checkpoint.every_images": 0,
    "eval.evaluators": ("validation", "moving_digits"),
    **SHARES,
}
STUDENT = {
    "optimizer.learning_rate": STUDENT_RATE,
    "eval.steps": (2,),
    **STUDENT_SHARES,
}


def study(budgets, kinds=KINDS, num_seeds=2, teacher_images=2_000 * BATCH):
    """The runs of ``budgets``, which is as ``BUDGETS``."""
    rate = {"optimizer.learning_rate": TEACHER_RATE}
    settings = {"common": COMMON, "options": ",data=moving_digits"}
    settings["teacher"] = rate | {"train.duration_images": teacher_images}
    for name, size in widths(*budgets, head_width=8, base_width=32).items():
        points = cross(grid({"train.flops": budgets[int(name)]}), seeds(num_seeds))
        for kind in kinds:
            at = cross([rate], points) if kind == "teacher" else points
            yield from by_size(
                {name: size}, at, kinds=(kind,), student=STUDENT, **settings
            )


def sweep(arg=""):
    """``all``, ``teacher``, ``sct`` or ``scd``, and ``quick``."""
    kind, options = parse_arg(arg, ("all", *KINDS))
    kinds = KINDS if kind == "all" else (kind,)
    if options["quick"]:
        return study({8: (2e9,), 16: (2e9,)}, kinds, 1, 4 * BATCH)
    return study(BUDGETS, kinds)
