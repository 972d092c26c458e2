"""Emoji from their names, 32x32 or 64x64: text to images that needs no download.

Needs `pip install 'scm_jax[emoji]'`. Pictures: OpenMoji, CC BY-SA 4.0; name it beside
grids that you show.

Run:
  python -m scm_jax train --config=experiments/emoji.py:teacher \\
    --workdir=runs/emoji_teacher
  python -m scm_jax train --config=experiments/emoji.py:scd --workdir=runs/emoji_scd
  python -m scm_jax train --config=experiments/emoji.py:sct --workdir=runs/emoji_sct

Expect: not yet measured. There are 2,898 pictures, which can be learned by heart: read
retrieval_seen as memory, retrieval_held_out beside copy_distance_held_out as more.

``size=tiny`` (the default) trains on two CPU cores, to see that everything works, and
``small`` and ``base`` on an accelerator. ``resolution=64`` are larger images, ``quick``
is a smoke run.
"""

from typing import NamedTuple

from scm_jax.config import base_config, parse_arg, shrink

VARIANTS = ("teacher", "sct", "scd")


class Size(NamedTuple):
    """A U-Net with its text tower, and how long it is trained."""

    width: int
    num_blocks: int
    tower_width: int
    batch: int
    teacher_images: int
    student_images: int
    learning_rate: float  # of the teacher


# fmt: off
SIZES = {
    #            width blocks tower batch teacher_images student_images     lr
    "tiny":  Size(  32,     1,   64,   32,        64_000,        32_000, 1e-2),
    "small": Size(  64,     2,  128,  128,     2_000_000,     1_000_000, 1e-2),
    "base":  Size( 128,     3,  256,  256,    20_000_000,    10_000_000, 1e-2),
}
# fmt: on


def get_config(arg: str = ""):
    """``teacher``, ``sct`` or ``scd``; options size, resolution and quick."""
    variant, options = parse_arg(arg, VARIANTS, size=tuple(SIZES), resolution=(32, 64))
    name, quick, large = options["size"], options["quick"], options["resolution"] == 64
    size = SIZES[name]

    def run_name(variant: str) -> str:
        parts = ["emoji", variant] + [name] * (name != "tiny") + ["64"] * large
        return "_".join(parts + ["quick"] * quick)

    student = variant != "teacher"
    c = base_config("unet", "consistency" if student else "diffusion", "emoji")
    c.name = run_name(variant)
    c.dataset.resolution = options["resolution"]
    c.network.width = size.width
    c.network.num_blocks = size.num_blocks
    c.network.tower_width = size.tower_width
    c.network.channel_mult = (1, 1, 2, 2) if large else (1, 2, 2)
    c.network.attention_resolutions = (16, 8)  # where captions are read as well
    c.network.head_channels = 32
    c.optimizer.schedule = "cosine"
    c.optimizer.b2 = 0.99
    c.optimizer.rampup_images = 50.0 * size.batch
    c.ema.rel_std = (0.05, 0.10)
    c.train.batch_size = size.batch
    c.train.duration_images = size.student_images if student else size.teacher_images
    c.log.every_images = 10 * size.batch
    c.eval.evaluators = ("emoji",)
    c.eval.split = "test"
    c.sampling.batch_size = 256
    if not student:
        c.objective.P_mean = -0.8
        c.objective.P_std = 1.4
        c.objective.label_dropout = 0.1  # for guidance
        c.optimizer.learning_rate = size.learning_rate
        c.eval.steps = (18,)
    else:
        c.objective.dx_dt = "teacher" if variant == "scd" else "data"
        c.objective.P_mean = -1.0
        c.objective.P_std = 1.4
        c.objective.tangent_warmup_images = size.student_images // 10
        # As in shapes.py: in short runs a learned weight drowns the low noise.
        c.objective.learned_weighting = False
        c.optimizer.learning_rate = size.learning_rate / 5
        c.init.run = f"runs/{run_name('teacher')}"
        if variant == "scd":
            c.teacher.source = "run"
            c.teacher.run = c.init.run
        c.sampling.sampler = "consistency"
        c.sampling.steps = 2
        c.eval.steps = (1, 2, 4)
    if quick:
        c.eval.evaluators = ()
        # The chosen size, on one level.
        one_level = {"channel_mult": (1,), "attention_resolutions": ()}
        shrink(c, batch_size=16, network=one_level, writers=c.log.writers)
    c.optimizer.decay_images = float(c.train.duration_images)
    return c
