"""IsoFLOP study of sCT and sCD on handwritten digits: five sizes, four budgets.

Run (2 CPU cores):
  python -m scm_jax sweep submit --sweep=experiments/sweeps/isoflop_digits.py \\
    --root=runs/isoflop_digits --max_parallel=2
  python -m scm_jax sweep status --root=runs/isoflop_digits --watch

Expect (85 runs, 2.7 hours of a CPU core; docs/isoflop_digits): valleys over size at
every budget; two-step Frechet distances from 32 to 3.4 (sCT) and 11.4 to 2.49 (sCD);
laws that miss the largest budget by 12 and 21 %.

The argument is ``both``, ``sct`` or ``scd``; with ``quick`` it is a study of three
sizes, two budgets and one seed that shows nothing but that everything works.

Which compute counts: ``scm_jax/sweeps/plan/studies.py``. The learning rate and the
warmup of the tangent are the same everywhere and the schedule is constant: the
power-function EMA takes the place of a decay, and runs that differ in budget or seed
only are one program, compiled once.
"""

from scm_jax.sweeps.plan.studies import isoflop, parse_kinds, widths

BASE = "experiments/digits.py:sct"
METRICS = ("1_steps/validation_error", "2_steps/frechet_distance")

BATCH = 128
COMMON = {
    "optimizer.schedule": "constant",
    "optimizer.learning_rate": 2e-3,
    "checkpoint.every_images": 3_000 * BATCH,
    "log.writers": ("jsonl",),
    "eval.evaluators": ("digits", "validation"),
    "eval.num_seeds": 2,
}
STUDENT = {"objective.tangent_warmup_images": 100 * BATCH, "eval.steps": (1, 2)}


def sweep(arg=""):
    """``both``, ``sct`` or ``scd``, and ``quick``."""
    kinds, quick = parse_kinds(arg)
    return isoflop(
        widths(8, 16, 24) if quick else widths(16, 24, 36, 56, 84),
        (4e9, 8e9) if quick else (1e11, 2.5e11, 6.3e11, 1.6e12),
        num_seeds=1 if quick else 2,
        teacher_flops=4e9 if quick else 6e11,
        kinds=kinds,
        common=COMMON,
        student=STUDENT,
    )
