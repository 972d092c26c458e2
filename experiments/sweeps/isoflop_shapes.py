"""IsoFLOP study of sCT and sCD on coloured shapes, 32x32: five sizes, four budgets.

Run:
  python -m scm_jax sweep submit --sweep=experiments/sweeps/isoflop_shapes.py \\
    --root=runs/isoflop_shapes

Expect: not yet measured; ``sweep plan`` tells how long it takes once one run is done.

The argument is that of ``isoflop_digits.py``. The longest run passes the 20,000 drawn
images eight times: raise ``dataset.num_items`` for fresh ones.
"""

from scm_jax.sweeps.plan.studies import isoflop, parse_kinds, widths

BASE = "experiments/shapes.py:sct"
METRICS = ("1_steps/validation_error", "2_steps/frechet_distance")

BATCH = 32
COMMON = {
    "optimizer.schedule": "constant",
    "optimizer.learning_rate": 2e-3,
    "checkpoint.every_images": 500 * BATCH,
    "log.writers": ("jsonl",),
    "eval.evaluators": ("shapes", "validation"),
    "eval.num_samples": 1_000,
    "eval.num_seeds": 2,
}
STUDENT = {"objective.tangent_warmup_images": 100 * BATCH, "eval.steps": (1, 2)}


def sweep(arg=""):
    """``both``, ``sct`` or ``scd``, and ``quick``."""
    kinds, quick = parse_kinds(arg)
    return isoflop(
        widths(16, 32) if quick else widths(16, 32, 48, 64, 96),
        (2e11, 4e11) if quick else (3e12, 1e13, 3e13, 1e14),
        num_seeds=2,
        teacher_flops=2e11 if quick else 3e13,
        kinds=kinds,
        common=COMMON,
        student=STUDENT,
    )
