"""Coloured shapes, 32x32 or 64x64, ten classes: images that need no download.

Run:
  python -m scm_jax train --config=experiments/shapes.py:teacher \\
    --workdir=runs/shapes_teacher
  python -m scm_jax train --config=experiments/shapes.py:scd --workdir=runs/shapes_scd
  python -m scm_jax train --config=experiments/shapes.py:sct --workdir=runs/shapes_sct

Expect: not yet measured.

``size=tiny`` (the default) trains on two CPU cores, half an hour a run; ``small``
and ``base`` are for an accelerator. ``resolution=64`` are larger images, ``quick`` is a
smoke run of a few steps.
"""

from scm_jax.config import base_config, parse_arg

VARIANTS = ("teacher", "sct", "scd")
# Transformers on patches of 4x4, 8x8 at resolution 64: 64 tokens each.
SIZES = {
    #         width depth heads batch  images
    "tiny": (128, 4, 2, 64, 128_000),
    "small": (256, 8, 4, 128, 5_000_000),
    "base": (512, 12, 8, 256, 20_000_000),
}


def get_config(arg: str = ""):
    """``teacher``, ``sct`` or ``scd``; options size, resolution and quick."""
    variant, options = parse_arg(arg, VARIANTS, size=tuple(SIZES), resolution=(32, 64))
    size, quick = options["size"], options["quick"]
    width, depth, heads, batch, images = SIZES[size]

    def run_name(variant: str) -> str:
        parts = ["shapes", variant]
        parts += [size] if size != "tiny" else []
        parts += ["64"] if options["resolution"] == 64 else []
        return "_".join(parts + ["quick"] * quick)

    student = variant != "teacher"
    c = base_config("dit", "consistency" if student else "diffusion", "shapes")
    c.name = run_name(variant)
    c.dataset.resolution = options["resolution"]
    c.network.patch = options["resolution"] // 8
    c.network.width = width
    c.network.depth = depth
    c.network.num_heads = heads
    c.optimizer.schedule = "cosine"
    c.optimizer.rampup_images = 100.0 * batch
    c.ema.rel_std = (0.05, 0.10)
    c.train.batch_size = batch
    c.train.duration_images = images
    c.eval.evaluators = ("shapes",)
    c.eval.num_seeds = 3
    c.eval.split = "test"
    c.sampling.batch_size = 256
    if not student:
        c.objective.P_mean = -0.8
        c.objective.P_std = 1.4
        c.optimizer.learning_rate = 1e-3
        c.eval.steps = (18,)
    else:
        c.objective.dx_dt = "teacher" if variant == "scd" else "data"
        c.objective.P_mean = -1.0
        c.objective.P_std = 1.4
        c.objective.tangent_warmup_images = images // 10
        # As in digits.py: in short runs a learned weight drowns the low noise that
        # everything above builds on.
        c.objective.learned_weighting = False
        c.optimizer.learning_rate = 5e-4
        # Alg. 1 starts both kinds of student at the teacher's average.
        c.init.run = f"runs/{run_name('teacher')}"
        if variant == "scd":
            c.teacher.source = "run"
            c.teacher.run = c.init.run
        c.sampling.sampler = "consistency"
        c.sampling.steps = 2
        c.eval.steps = (1, 2, 4)
    c.optimizer.decay_images = float(c.train.duration_images)
    if quick:
        c.dataset.num_items = 256
        c.network.width = 32
        c.network.depth = 1
        c.network.num_heads = 2
        c.train.batch_size = 16
        c.train.duration_images = 6 * 16
        if student:
            c.objective.tangent_warmup_images = 4 * 16
        c.log.every_images = 2 * 16
        c.checkpoint.every_images = 3 * 16
        c.eval.evaluators = ()
        c.eval.num_seeds = 1
        c.sampling.batch_size = 16
    return c
