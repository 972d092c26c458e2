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

Expect (500 captions of each kind, two CPU cores, seed 0; share of eight words that a
frozen network reads, real images 0.968):
  teacher  32 Heun steps, guidance 2: 0.848 seen, 0.845 held out (50 captions); 66 min
  scd      1 step 0.835, 0.840; 2 steps 0.849, 0.854 (guidance 2); 19 min
  sct      not yet measured

``model=latents`` (the default) is the reference run, for two CPU cores: a transformer
with cross-attention on 8x8x8 latents of the small autoencoder in data/captioned_shapes,
which must be prepared first:

  python -m scm_jax data prepare --dataset=captioned_shapes --num_items=100000
  python -m scm_jax data encode --dataset=captioned_shapes \\
    --out_name=captioned_shapes_latents --dtype=float16 --batch_size=64 \\
    --vae=data/captioned_shapes/autoencoder.safetensors

``model=unet`` (attention that reads the caption) and ``model=dit`` work on pixels, with
``size=small`` and ``base`` for an accelerator: not yet measured. The student of sCD
takes the guidance scale as an input. ``quick`` is a smoke run of a few steps on pixels.
"""

from typing import NamedTuple

from scm_jax.config import base_config, parse_arg, shrink

VARIANTS = ("teacher", "sct", "scd")


class Size(NamedTuple):
    """A network and how long it is trained."""

    width: int  # of the U-Net; a transformer is 4 times as wide
    channel_mult: tuple[int, ...]
    num_blocks: int
    depth: int  # of a transformer
    batch: int
    teacher_images: int
    student_images: int


# fmt: off
SIZES = {
    #              w       mult  b  d batch     teacher     student
    "tiny":  Size( 32,    (1, 2), 1,  4,  64,    420_000,     84_000),
    "small": Size( 64, (1, 2, 2), 2,  8, 128,  4_000_000,  2_000_000),
    "base":  Size(128, (1, 2, 2), 3, 12, 256, 20_000_000, 10_000_000),
}
# fmt: on


def get_config(arg: str = ""):
    """``teacher``, ``sct`` or ``scd``; options model, size and quick."""
    models = ("latents", "unet", "dit")
    variant, options = parse_arg(arg, VARIANTS, model=models, size=tuple(SIZES))
    name, model, quick = options["size"], options["model"], options["quick"]
    if quick and model == "latents":
        model = "unet"  # without data that must be prepared
    latents, student = model == "latents", variant != "teacher"
    size = SIZES[name]

    def run_name(variant: str) -> str:
        parts = ["captions", variant] + [name] * (name != "tiny")
        return "_".join(parts + [model] * (not latents) + ["quick"] * quick)

    objective = "consistency" if student else "diffusion"
    dataset = "latents" if latents else "captioned_shapes"
    c = base_config("unet" if model == "unet" else "dit", objective, dataset)
    c.name = run_name(variant)
    if latents:
        c.dataset.prepared = "captioned_shapes_latents"
        c.dataset.captioned = True
        c.dataset.questions = "shapes"
        c.sampling.decoder = "data/captioned_shapes/autoencoder.safetensors"
    else:
        c.dataset.num_items = 400_000
    shape_network(c, size, model)
    # After 32,000 latents the loss of the transformer was 0.40 with Muon and 0.53 with
    # Adam, that of the U-Net, whose weights are normalized, 0.60 and 0.54.
    c.optimizer.name = "adam" if model == "unet" else "muon"
    c.optimizer.learning_rate = 2e-3 if student else 1e-2
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
    # As in digits.py: in short runs a learned weight drowns the low noise that
    # everything above builds on.
    c.objective.learned_weighting = False
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
        if model == "dit":
            c.network.patch = 8
    c.optimizer.decay_images = float(c.train.duration_images)
    return c


def shape_network(c, size: Size, model: str) -> None:
    """Sets the sizes of the network."""
    c.network.tower_width = 64
    if model == "unet":
        c.network.width = size.width
        c.network.channel_mult = size.channel_mult
        c.network.num_blocks = size.num_blocks
        c.network.attention_resolutions = (8,)
        c.network.head_channels = 32
        if size.width == SIZES["tiny"].width:
            # A core spends half of its time on the 32x32 level.
            c.network.space_to_depth = 2
    else:
        c.network.width = 4 * size.width
        c.network.depth = size.depth
        c.network.num_heads = c.network.width // 32
        c.network.patch = 1 if model == "latents" else 4
