"""Handwritten digits, 8x8: the three runs of the demo.

Run:
  python -m scm_jax train --config=experiments/digits.py:teacher \\
    --workdir=runs/digits_teacher
  python -m scm_jax train --config=experiments/digits.py:scd --workdir=runs/digits_scd
  python -m scm_jax train --config=experiments/digits.py:sct --workdir=runs/digits_sct

Expect (Frechet distance, floor 1.80, means of 3 sets of samples; 2 CPU cores, seed 0):
  teacher  18 Heun steps 2.27
  scd      1 step 2.83, 2 steps 2.42, 4 steps 2.00
  sct      1 step 1.94, 2 steps 1.65, 4 steps 1.38

``start=scratch`` begins at random parameters. The other methods of
``scm_jax.objectives.presets.PRESETS``, and all of them at equal compute:
docs/methods.md. ``data=moving_digits`` are digits anywhere on 16x16 pixels, of which
none comes twice.
"""

from scm_jax.config import base_config, parse_arg
from scm_jax.objectives.presets import PRESETS

BATCH = 128


def get_config(arg: str = ""):
    """``teacher``, ``sct``, ``scd`` or another method; start, data and ``quick``."""
    others = sorted(set(PRESETS) - {"sct", "scd"})
    variant, options = parse_arg(
        arg,
        ("teacher", "sct", "scd", *others),
        start=("teacher", "scratch"),
        data=("digits", "moving_digits"),
    )
    data, objective = options["data"], "diffusion" if variant == "teacher" else variant
    c = base_config("dit", objective, data)
    c.name = variant
    c.network.patch = 4
    c.network.width = 128
    c.network.depth = 3
    c.network.num_heads = 2
    c.optimizer.schedule = "cosine"
    c.optimizer.rampup_images = 50.0 * BATCH
    c.ema.rel_std = (0.05, 0.10)
    c.train.batch_size = BATCH
    c.eval.evaluators = (data,)
    c.eval.num_seeds = 3
    teacher = "runs/digits_teacher"
    if data == "moving_digits":
        teacher = "runs/digit_frames_teacher"
        c.dataset.update({"frames": 1, "num_items": 400_000})
        c.network.patch_sides = (1, 4, 4)
        c.eval.split, c.eval.num_seeds = "test", 1
    if variant == "teacher":
        c.objective.P_mean = -0.8
        c.objective.P_std = 1.4
        c.optimizer.learning_rate = 2e-3
        c.train.duration_images = 650 * BATCH
        c.eval.steps = (18,)
    else:
        if c.objective.name in ("consistency", "discrete"):
            c.objective.P_mean = -1.4 if PRESETS[variant].taught else -1.0
            c.objective.P_std = 1.6 if PRESETS[variant].taught else 1.4
        if c.objective.name == "consistency":
            c.objective.tangent_warmup_images = 200 * BATCH
        # As in mixture.py: a learned weight grows where the tangent is small already,
        # at high noise, and drowns the low noise that everything above builds on.
        c.objective.learned_weighting = c.matching.learned_weighting = False
        c.optimizer.learning_rate = 1e-3
        c.train.duration_images = 3_000 * BATCH
        # Alg. 1 starts both kinds of student at the teacher's EMA.
        if options["start"] == "teacher":
            c.init.run = teacher
        if PRESETS[variant].taught:
            # Distillation has a fixed point at tangent 0; a normalized tangent keeps
            # its length near it, and in 64 dimensions and few steps that is noise.
            # Training from data has no such point: sct keeps the paper's choice.
            if "tangent_normalization" in c.objective:
                c.objective.tangent_normalization = "none"
            c.teacher.source = "run"
            c.teacher.run = teacher
        if c.sampling.sampler != "map":
            c.sampling.sampler = "consistency"
        c.sampling.steps = 2
        c.eval.steps = (1, 2, 4)
    c.optimizer.decay_images = float(c.train.duration_images)
    if options["quick"]:
        c.network.width = 32
        c.network.depth = 1
        c.train.batch_size = 32
        c.train.duration_images = 20 * 32
        c.log.every_images = 5 * 32
        c.checkpoint.every_images = 10 * 32
        c.eval.evaluators = ()
        c.eval.num_seeds = 1
    return c
