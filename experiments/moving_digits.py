"""Moving digits, 8 frames of 16x16: clips in two steps, and no clip comes twice.

Run:
  python -m scm_jax train --config=experiments/moving_digits.py:teacher \\
    --workdir=runs/moving_digits_teacher
  python -m scm_jax train --config=experiments/moving_digits.py:scd \\
    --workdir=runs/moving_digits_scd
  python -m scm_jax train --config=experiments/moving_digits.py:sct \\
    --workdir=runs/moving_digits_sct
  python -m scm_jax sample --run=runs/moving_digits_scd --num=8 --out=clips.webp

Expect (clips with the digit that was asked for on a frame, residual of the path in
pixels; true clips 0.973, 0.065; one CPU core each, seed 0):
  teacher  32 Heun steps, guidance 2: 0.960, 0.42 (100 clips), 68 min; again from there
           (init.run, a learning rate of 5e-3): 0.971, 0.38; 49 min
  scd      of the latter, 1,000 clips: 1 step 0.697, 0.58; 2 steps 0.862, 0.48 (guidance
           2), 0.958, 0.47 (guidance 4, second step at 1.25); 30 min
  sct      2 steps 0.476, 0.54 (1,000 clips; at a learning rate of 2e-3, 80,000 clips)

A transformer over (t, h, w) with patches of 2x4x4 and rotary positions; the student of
sCD takes the guidance scale as an input. ``size=tiny`` (the default) trains on two CPU
cores, ``large`` are 16 frames of 32x32 for an accelerator; ``digits=2`` shows two
digits a clip. ``quick`` is a smoke run of a few steps.
"""

from typing import NamedTuple

from scm_jax.config import base_config, parse_arg, shrink

VARIANTS = ("teacher", "sct", "scd")


class Size(NamedTuple):
    """Clips, a network and how long it is trained."""

    frames: int
    side: int
    width: int
    depth: int
    batch: int
    teacher_images: int
    student_images: int


# fmt: off
SIZES = {
    #            t side    w  d batch     teacher    student
    "tiny":  Size( 8, 16, 128,  4,  64,   320_000,   128_000),
    "large": Size(16, 32, 512, 12, 256, 8_000_000, 4_000_000),
}
# fmt: on
PATCH = (2, 4, 4)


def get_config(arg: str = ""):
    """``teacher``, ``sct`` or ``scd``; options size, digits and quick."""
    variant, options = parse_arg(arg, VARIANTS, size=tuple(SIZES), digits=(1, 2))
    name, quick, digits = options["size"], options["quick"], options["digits"]
    size, student = SIZES[name], variant != "teacher"

    def run_name(variant: str) -> str:
        parts = ["moving_digits", variant] + [name] * (name != "tiny")
        return "_".join(parts + ["two"] * (digits == 2) + ["quick"] * quick)

    c = base_config("dit", "consistency" if student else "diffusion", "moving_digits")
    c.name = run_name(variant)
    c.dataset.update({"frames": size.frames, "side": size.side, "num_digits": digits})
    c.dataset.num_items = 100_000
    c.network.update({"width": size.width, "depth": size.depth, "patch_sides": PATCH})
    c.network.num_heads = size.width // 32
    c.network.positions = "rotary"
    c.network.use_frames = True
    c.objective.first_frames = size.frames // 2
    c.optimizer.name = "muon"
    # At 2e-3 distillation was unstable: tangents grew to four times their norm.
    c.optimizer.learning_rate = 5e-4 if student else 1e-2
    c.optimizer.schedule = "cosine"
    c.optimizer.b2 = 0.99
    c.optimizer.rampup_images = 50.0 * size.batch
    c.ema.rel_std = (0.05, 0.10)
    c.train.batch_size = size.batch
    c.train.duration_images = size.student_images if student else size.teacher_images
    c.log.every_images = 50 * size.batch
    if digits == 1:
        c.eval.evaluators = ("moving_digits",)
        c.eval.split = "test"
    c.checkpoint.every_images = 500 * size.batch
    c.sampling.batch_size = 64
    c.sampling.guidance = 2.0
    # As in digits.py: in short runs a learned weight drowns the low noise that
    # everything above builds on.
    c.objective.learned_weighting = False
    c.objective.P_mean = -1.0 if student else -0.8
    c.objective.P_std = 1.4
    if not student:
        c.objective.label_dropout = 0.1  # for guidance
        c.sampling.steps = 32
        c.eval.steps = (32,)
    else:
        c.objective.dx_dt = "teacher" if variant == "scd" else "data"
        c.objective.tangent_warmup_images = size.student_images // 5
        # Alg. 1 starts both kinds of student at the teacher's EMA.
        c.init.run = f"runs/{run_name('teacher')}"
        if variant == "scd":
            c.teacher.source = "run"
            c.teacher.run = c.init.run
            c.network.use_guidance = True
            c.objective.guidance_range = (1.0, 4.0)
        else:  # consistency training has no guided velocity
            c.sampling.guidance = 1.0
        c.sampling.sampler = "consistency"
        c.sampling.steps = 2
        c.eval.steps = (1, 2, 4)
    if quick:
        c.dataset.num_items = 256
        c.eval.evaluators = ()
        c.eval.steps = (2,)
        c.sampling.steps = 2
        shrink(c, batch_size=16, writers=c.log.writers)
    c.optimizer.decay_images = float(c.train.duration_images)
    return c
