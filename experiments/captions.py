"""Captioned shapes, 32x32: text to image whose every word can be checked.

Run:
  python -m scm_jax train --config=experiments/captions.py:teacher \\
    --workdir=runs/captions_teacher
  python -m scm_jax train --config=experiments/captions.py:scd \\
    --workdir=runs/captions_scd
  python -m scm_jax train --config=experiments/captions.py:sct \\
    --workdir=runs/captions_sct
  python -m scm_jax sample --run=runs/captions_scd \\
    --prompt="a big red star on blue dots"

Expect: after 38,400 images, a teacher with ``space=latents`` follows the colours of a
caption (0.90) and no other word (shape 0.09, place 0.09): docs/text.md. Students and
``space=pixels``: not yet measured.

A U-Net whose attention reads the caption; the student of sCD takes the guidance scale
as an input. ``size=tiny`` (the default) trains on two CPU cores; ``small`` and ``base``
are for an accelerator. ``network=dit`` has cross-attention in place of the U-Net,
``quick`` is a smoke run of a few steps. ``space=latents`` trains on 8x8x8 latents of
the small autoencoder in data/captioned_shapes, which must be prepared first:

  python -m scm_jax data prepare --dataset=captioned_shapes
  python -m scm_jax data encode --dataset=captioned_shapes \\
    --out_name=captioned_shapes_latents \\
    --vae=data/captioned_shapes/autoencoder.safetensors
"""

from typing import NamedTuple

from scm_jax.config import base_config, parse_arg, shrink

VARIANTS = ("teacher", "sct", "scd")


class Size(NamedTuple):
    """A network and how long it is trained."""

    width: int
    channel_mult: tuple[int, ...]
    num_blocks: int
    depth: int  # of a transformer, which is 4 times as wide
    batch: int
    teacher_images: int
    student_images: int
    learning_rate: float  # of the teacher


# fmt: off
SIZES = {
    #              w       mult  b  d batch     teacher     student    lr
    "tiny":  Size( 32,    (1, 2), 1,  4,  64,    400_000,    200_000, 1e-2),
    "small": Size( 64, (1, 2, 2), 2,  8, 128,  4_000_000,  2_000_000, 1e-2),
    "base":  Size(128, (1, 2, 2), 3, 12, 256, 20_000_000, 10_000_000, 1e-2),
}
LATENTS = Size(80, (1,), 2, 4, 64, 400_000, 200_000, 1e-2)
# fmt: on


def get_config(arg: str = ""):
    """``teacher``, ``sct`` or ``scd``; options size, network, space and quick."""
    choices = {"network": ("unet", "dit"), "space": ("pixels", "latents")}
    variant, options = parse_arg(arg, VARIANTS, size=tuple(SIZES), **choices)
    name, network, quick = options["size"], options["network"], options["quick"]
    latents, student = options["space"] == "latents", variant != "teacher"
    size = LATENTS if latents else SIZES[name]

    def run_name(variant: str) -> str:
        parts = ["captions", variant] + [name] * (name != "tiny")
        parts += [network] * (network != "unet") + ["latents"] * latents
        return "_".join(parts + ["quick"] * quick)

    objective = "consistency" if student else "diffusion"
    dataset = "latents" if latents else "captioned_shapes"
    c = base_config(network, objective, dataset)
    c.name = run_name(variant)
    if latents:
        c.dataset.prepared = "captioned_shapes_latents"
        c.dataset.captioned = True
        c.dataset.questions = "shapes"
        c.sampling.decoder = "data/captioned_shapes/autoencoder.safetensors"
    else:
        c.dataset.num_items = 400_000
    learning_rate = shape_network(c, size, name, latents)
    c.optimizer.schedule = "cosine"
    c.optimizer.b2 = 0.99
    c.optimizer.rampup_images = 50.0 * size.batch
    c.ema.rel_std = (0.05, 0.10)
    c.train.batch_size = size.batch
    c.train.duration_images = size.student_images if student else size.teacher_images
    c.log.every_images = 50 * size.batch
    c.checkpoint.every_images = 500 * size.batch
    c.eval.evaluators = ("captions",)
    c.eval.split = "test"
    c.sampling.batch_size = 128
    c.sampling.guidance = 2.0
    c.optimizer.learning_rate = learning_rate / (5 if student else 1)
    if not student:
        c.objective.P_mean = -0.8
        c.objective.P_std = 1.4
        c.objective.label_dropout = 0.1  # for guidance
        c.eval.steps = (32,)
        c.sampling.steps = 32
    else:
        c.objective.dx_dt = "teacher" if variant == "scd" else "data"
        c.objective.P_mean = -1.0
        c.objective.P_std = 1.4
        c.objective.tangent_warmup_images = size.student_images // 10
        # As in digits.py: in short runs a learned weight drowns the low noise that
        # everything above builds on.
        c.objective.learned_weighting = False
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
        shorten(c, latents)
    c.optimizer.decay_images = float(c.train.duration_images)
    return c


def shorten(c, latents: bool) -> None:
    """Makes the experiment a smoke run of a few steps."""
    if not latents:
        c.dataset.num_items = 256
    c.eval.evaluators = ()
    c.eval.steps = (2,)
    c.sampling.steps = 2
    shrink(c, batch_size=16, writers=c.log.writers)
    if c.network.name == "dit" and not latents:
        c.network.patch = 8


def shape_network(c, size: Size, name: str, latents: bool) -> float:
    """Sets the sizes of the network; returns the learning rate of a teacher."""
    c.network.tower_width = 64
    if c.network.name == "unet":
        c.network.width = size.width
        c.network.channel_mult = size.channel_mult
        c.network.num_blocks = size.num_blocks
        c.network.attention_resolutions = (8,)
        c.network.head_channels = 20 if latents else 32
        if (
            name == "tiny" and not latents
        ):  # a core spends half of its time on the 32x32 level
            c.network.space_to_depth = 2
        learning_rate = size.learning_rate
    else:
        c.network.width = 4 * size.width
        c.network.depth = size.depth
        c.network.num_heads = c.network.width // 32
        c.network.patch = 1 if latents else 4 if name == "tiny" else 2
        learning_rate = 1e-3
    return learning_rate
