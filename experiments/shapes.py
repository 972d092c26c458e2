"""Coloured shapes, 32x32 or 64x64, ten classes: images that need no download.

Run:
  python -m scm_jax train --config=experiments/shapes.py:teacher \\
    --workdir=runs/shapes_teacher
  python -m scm_jax train --config=experiments/shapes.py:scd --workdir=runs/shapes_scd
  python -m scm_jax train --config=experiments/shapes.py:sct --workdir=runs/shapes_sct

Expect (tiny; Frechet distance, floor 13.9, means of 3 sets of 1,000 samples; 2 busy CPU
cores, seed 0): patches of the right colours and no shapes yet, teacher and students
alike.
  teacher  18 Heun steps 2282
  scd      1 step 2598, 2 steps 2868; validation error 0.0041
  sct      1 step 2751, 2 steps 2893
Sizes small and base: not yet measured.

``size=tiny`` (the default) trains on two CPU cores, a quarter of an hour a run, to see
that everything works. ``small`` and ``base`` are for an accelerator. ``resolution=64``
are larger images, ``quick`` is a smoke run of a few steps.
"""

from typing import NamedTuple

from scm_jax.config import base_config, parse_arg, shrink

VARIANTS = ("teacher", "sct", "scd")


class Size(NamedTuple):
    """A U-Net and how long it is trained."""

    width: int
    num_blocks: int
    batch: int
    teacher_images: int
    student_images: int
    learning_rate: float  # of the teacher


# fmt: off
SIZES = {
    #            width blocks batch teacher_images student_images     lr
    "tiny":  Size(  32,     1,   32,        32_000,        16_000, 1e-2),
    "small": Size(  64,     2,  128,     2_000_000,     1_000_000, 1e-2),
    "base":  Size( 128,     3,  256,    20_000_000,    10_000_000, 1e-2),
}
# fmt: on


def get_config(arg: str = ""):
    """``teacher``, ``sct`` or ``scd``; options size, resolution and quick."""
    variant, options = parse_arg(arg, VARIANTS, size=tuple(SIZES), resolution=(32, 64))
    name, quick, large = options["size"], options["quick"], options["resolution"] == 64
    size = SIZES[name]

    def run_name(variant: str) -> str:
        parts = ["shapes", variant] + [name] * (name != "tiny") + ["64"] * large
        return "_".join(parts + ["quick"] * quick)

    student = variant != "teacher"
    c = base_config("unet", "consistency" if student else "diffusion", "shapes")
    c.name = run_name(variant)
    c.dataset.resolution = options["resolution"]
    c.network.width = size.width
    c.network.num_blocks = size.num_blocks
    c.network.channel_mult = (1, 1, 2, 2) if large else (1, 2, 2)
    c.network.attention_resolutions = (8,)
    c.network.head_channels = 32
    c.optimizer.schedule = "cosine"
    c.optimizer.b2 = 0.99
    c.optimizer.rampup_images = 50.0 * size.batch
    c.ema.rel_std = (0.05, 0.10)
    c.train.batch_size = size.batch
    c.train.duration_images = size.student_images if student else size.teacher_images
    c.log.every_images = 10 * size.batch
    c.eval.evaluators = ("shapes",)
    c.eval.num_seeds = 3
    c.eval.split = "test"
    c.sampling.batch_size = 256
    if not student:
        c.objective.P_mean = -0.8
        c.objective.P_std = 1.4
        c.optimizer.learning_rate = size.learning_rate
        c.eval.steps = (18,)
    else:
        c.objective.dx_dt = "teacher" if variant == "scd" else "data"
        c.objective.P_mean = -1.0
        c.objective.P_std = 1.4
        c.objective.tangent_warmup_images = size.student_images // 10
        # As in digits.py: in short runs a learned weight drowns the low noise that
        # everything above builds on.
        c.objective.learned_weighting = False
        c.optimizer.learning_rate = size.learning_rate / 5
        # Alg. 1 starts both kinds of student at the teacher's EMA.
        c.init.run = f"runs/{run_name('teacher')}"
        if variant == "scd":
            c.teacher.source = "run"
            c.teacher.run = c.init.run
        c.sampling.sampler = "consistency"
        c.sampling.steps = 2
        c.eval.steps = (1, 2, 4)
    if quick:
        c.dataset.num_items = 256
        c.eval.evaluators = ()
        c.eval.num_seeds = 1
        # The chosen size, on one level.
        one_level = {"channel_mult": (1,), "attention_resolutions": ()}
        shrink(c, batch_size=16, network=one_level, writers=c.log.writers)
    c.optimizer.decay_images = float(c.train.duration_images)
    return c
