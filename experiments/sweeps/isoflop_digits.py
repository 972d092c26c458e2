"""IsoFLOP study of sCT and sCD on handwritten digits: five sizes, four budgets.

Run (2 CPU cores):
  python -m scm_jax sweep submit --sweep=experiments/sweeps/isoflop_digits.py \\
    --root=runs/isoflop_digits --max_parallel=2
  python -m scm_jax sweep status --root=runs/isoflop_digits --watch

Expect: not yet measured.

The argument is ``both``, ``sct`` or ``scd``; ``quick`` is a study of three sizes and
two budgets that shows nothing but that everything works.

sCT starts at random parameters, so that all its compute counts. sCD starts at a
teacher of its own size; a student's budget holds its teacher's evaluations but not the
teacher's training, which has one budget at all sizes. The learning rate and the warmup
of the tangent are the same everywhere and the schedule is constant: the power-function
average takes the place of a decay, and runs that differ in budget only are one program,
compiled once.
"""

from scm_jax.sweeps import chain, cross, grid, run_dir, seeds, zipped

BASE = "experiments/digits.py:sct"
METRICS = ("validation_error", "1_steps/frechet_distance", "2_steps/frechet_distance")

WIDTHS = (16, 24, 36, 56, 84)
BUDGETS = (1e11, 2.5e11, 6.3e11, 1.6e12)  # FLOPs of a training
TEACHER_BUDGET = 6e11
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
SCT = {"base": ":sct", "init.run": "", "tags": "sct"}


def sweep(arg=""):
    """``both``, ``sct`` or ``scd``, and ``quick``."""
    kind, quick = (arg or "both").partition(",")[::2]
    if kind not in ("both", "sct", "scd") or quick not in ("", "quick"):
        raise ValueError(f"argument {arg!r}: legal are both, sct, scd and KIND,quick")
    widths, budgets, teacher = WIDTHS, BUDGETS, TEACHER_BUDGET
    if quick:
        widths, budgets, teacher = (8, 16, 24), (2e9, 4e9), 2e9
    sizes = grid({"network.width": widths})
    plan = cross(grid({"train.flops": budgets}), seeds(2))
    runs = cross([SCT], sizes, plan) if kind != "scd" else []
    if kind != "sct":
        teachers = zipped(
            {"label": [f"teacher_{w}" for w in widths], "network.width": widths}
        )
        budget = {"base": ":teacher", "tags": "teacher", "train.flops": teacher}
        runs = chain(runs, cross([budget], teachers))
        places = [run_dir(f"teacher_{w}") for w in widths]
        own = zipped(
            {"network.width": widths, "teacher.run": places, "init.run": places}
        )
        runs = chain(runs, cross([{"base": ":scd", "tags": "scd"}], own, plan))
    for run in runs:
        yield {**COMMON, **({} if run["base"] == ":teacher" else STUDENT), **run}
