"""Which learning rate is best at which width, with the maximal-update rules or not.

Run (2 CPU cores):
  python -m scm_jax sweep submit --sweep=experiments/sweeps/transfer.py:with \\
    --root=runs/transfer_with --max_parallel=2
  python -m scm_jax sweep submit --sweep=experiments/sweeps/transfer.py:without \\
    --root=runs/transfer_without --max_parallel=2

Expect (95 runs each, 50 minutes of a CPU core): see docs/laws.md; not run in full yet.

Five widths, eightfold apart, on digits anywhere on 16x16 pixels, of which none comes
twice; the same images at every width. The argument is ``with`` or ``without``, and
``quick`` for a smoke run.
"""

from scm_jax.config import parse_arg
from scm_jax.sweeps.plan.studies import (
    SHARES,
    STUDENT_SHARES,
    transfer,
    widths,
)

BASE = "experiments/digits.py:sct,data=moving_digits"
METRICS = ("validation_error", "2_steps/frechet_distance")
BATCH, BASE_WIDTH = 64, 32
STEPS = {"teacher": 400, "scd": 400, "sct": 1_600}  # sct is slow to begin
RATES = (2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2, 6.4e-2)


def sweep(arg=""):
    """``with`` or ``without`` the rules; ``quick``."""
    rules, options = parse_arg(arg, ("with", "without"))
    quick = options["quick"]
    common = {
        "train.batch_size": BATCH,
        "network.depth": 1 if quick else 2,
        "log.writers": ("jsonl",),
        "checkpoint.every_images": 0,
        "eval.evaluators": ("validation", "moving_digits"),
        **SHARES,
    }
    sizes = widths(
        *((16, 32) if quick else (16, 24, 48, 80, 128)),
        head_width=8,
        base_width=BASE_WIDTH if rules == "with" else 0,
    )
    for kind, steps in STEPS.items():
        yield from transfer(
            sizes,
            RATES[:2] if quick else RATES,
            images=BATCH * (4 if quick else steps),
            teacher_rate=4e-3,
            kinds=(kind,),
            common=common,
            student={**STUDENT_SHARES, "eval.steps": (2,)},
            options=",data=moving_digits",
        )
