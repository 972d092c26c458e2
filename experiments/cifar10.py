"""CIFAR-10, unconditional, as in the paper (Sec. 5, App. G of arXiv 2410.11081v2).

Run:
  python -m scm_jax train --config=experiments/cifar10.py:teacher \\
    --workdir=runs/cifar10_teacher
  python -m scm_jax train --config=experiments/cifar10.py:sct --workdir=runs/cifar10_sct
  python -m scm_jax train --config=experiments/cifar10.py:scd --workdir=runs/cifar10_scd

Expect (FID of 50,000 samples; published, not measured here):
  teacher  18 Heun steps, 35 evaluations: 2.15
  sct      1 step 2.85 (2.97 in the paper's first version), 2 steps 2.06
  scd      1 step 3.66, 2 steps 2.52

The data: ``data/cifar10/README.md``. ``sct,quick`` is a smoke run on noise that needs
none; like every student it starts at a teacher, here ``runs/cifar10_teacher_quick``.
Adding ``conditional`` trains on the ten classes, for which the paper has no numbers.
"""

from typing import NamedTuple

from scm_jax.config import base_config, parse_arg, shrink

VARIANTS = ("teacher", "sct", "scd")
BATCH = 512
WARMUP_ITERATIONS = 10_000  # H of the tangent's warmup


class Row(NamedTuple):
    """One column of the paper's settings."""

    iterations: int
    optimizer: str
    learning_rate: float  # constant
    b2: float
    dropout: float  # in all blocks
    P_mean: float
    P_std: float
    half_life_images: int  # of the EMA that samples


# The length of student runs is not in the paper: 400,000 is the longest of its
# comparison with ECT. The teacher has EDM's settings.
# fmt: off
PRESETS = {
    #              iterations optimizer    lr     b2  dropout P_mean P_std half-life
    "teacher": Row(   400_000,   "adam", 1e-3, 0.999,   0.13,   -1.2,  1.2,  500_000),
    "sct":     Row(   400_000,  "radam", 1e-4,  0.99,   0.20,   -1.0,  1.4,  500_000),
    "scd":     Row(   400_000,  "radam", 1e-4,  0.99,   0.00,   -1.0,  1.4,  500_000),
}
# fmt: on


def get_config(arg: str = ""):
    """``teacher``, ``sct`` or ``scd``; options ``conditional`` and ``quick``."""
    variant, options = parse_arg(arg, VARIANTS, conditional=False)
    row, quick = PRESETS[variant], options["quick"]

    def run_name(variant: str) -> str:
        flags = [flag for flag in ("conditional", "quick") if options[flag]]
        return "_".join(["cifar10", variant, *flags])

    c = base_config(
        "ddpmpp",
        "diffusion" if variant == "teacher" else "consistency",
        "noise_images" if quick else "cifar10",
    )
    c.name = run_name(variant)
    c.network.width = 128
    c.network.dropout = row.dropout
    c.objective.P_mean = row.P_mean
    c.objective.P_std = row.P_std
    c.optimizer.name = row.optimizer
    c.optimizer.learning_rate = row.learning_rate
    c.optimizer.b1 = 0.9
    c.optimizer.b2 = row.b2
    c.optimizer.eps = 1e-8
    c.ema.rel_std = ()
    c.ema.half_life_images = (row.half_life_images,)
    c.train.batch_size = BATCH
    c.train.duration_images = row.iterations * BATCH
    c.log.every_images = 100 * BATCH
    c.checkpoint.every_images = 5_000 * BATCH
    c.eval.split = "" if quick else "test"  # of validation errors
    if variant == "teacher":
        c.optimizer.rampup_images = 10e6  # EDM's
        c.sampling.sampler = "heun"
        c.sampling.steps = 18
        c.eval.steps = (18,)
    else:
        c.objective.dx_dt = "teacher" if variant == "scd" else "data"
        c.objective.tangent_normalization = "l2"
        c.objective.tangent_norm_eps = 0.1
        c.objective.tangent_warmup_images = WARMUP_ITERATIONS * BATCH
        c.objective.learned_weighting = True
        # Alg. 1 starts both kinds of student at the teacher's EMA.
        c.init.run = f"runs/{run_name('teacher')}"
        if variant == "scd":
            c.teacher.source = "run"
            c.teacher.run = c.init.run
        c.sampling.sampler = "consistency"
        c.sampling.steps = 2
        c.eval.steps = (1, 2)
    if quick:
        c.dataset.sample_shape = (16, 16, 3)
        c.dataset.num_classes = 10 if options["conditional"] else 0
        shrink(c)
    else:
        c.dataset.conditional = options["conditional"]
    return c
