"""ImageNet 64x64 in pixels, as in the paper (Sec. 5, App. G of arXiv 2410.11081v2).

Run, with ``size`` one of s, m, l, xl:
  python -m scm_jax train --config=experiments/imagenet64.py:teacher,size=s \\
    --workdir=runs/imagenet64_teacher_s
  python -m scm_jax train --config=experiments/imagenet64.py:sct,size=s \\
    --workdir=runs/imagenet64_sct_s
  python -m scm_jax train --config=experiments/imagenet64.py:scd,size=s \\
    --workdir=runs/imagenet64_scd_s

Expect (FID of 50,000 samples without guidance; published, not measured here):
                          S     M     L    XL
  teacher, 63 evaluations 1.70  1.55  1.44  1.38
  sct, 1 step             3.23  2.25  2.08  2.04
  sct, 2 steps            2.93  1.81  1.57  1.48
  scd, 1 step             2.97  2.79  2.43  2.44
  scd, 2 steps            2.07  1.89  1.70  1.66

The data: ``data/imagenet64/README.md``. ``family=dit,size=xl,patch=2`` trains a
transformer with the settings of the U-Net of about its size; the paper has no numbers
for it. ``scd,quick`` is a smoke run on noise; its teacher is that of ``teacher,quick``
in ``runs/imagenet64_teacher_s_quick``. ``describe`` needs neither data nor teacher.
"""

from typing import NamedTuple

from scm_jax.config import base_config, parse_arg, shrink
from scm_jax.networks import PRESETS as NETWORK_PRESETS
from scm_jax.types import lookup

VARIANTS = ("teacher", "sct", "scd")
BATCH = 2048
DECAY_ITERATIONS = 35_000  # t_ref of the learning rate
RAMPUP_IMAGES = 10e6  # EDM2's
WARMUP_ITERATIONS = 10_000  # H of the tangent's warmup
DROPOUT_MAX_RESOLUTION = 16  # of students


class Row(NamedTuple):
    """One column of the paper's Table for ImageNet 64."""

    iterations: int
    learning_rate: float  # reference of the schedule
    dropout: float  # of students only at sides of at most 16
    P_mean: float
    P_std: float
    ema: float  # relative width of the EMA that samples


# fmt: off
PRESETS = {
    #                    iterations      lr  dropout P_mean P_std    EMA
    ("teacher", "s"):  Row(1_048_000, 1.0e-2,  0.00,   -0.8,  1.6, 0.075),
    ("teacher", "m"):  Row(1_486_000, 9.0e-3,  0.10,   -0.8,  1.6, 0.060),
    ("teacher", "l"):  Row(  761_000, 8.0e-3,  0.10,   -0.8,  1.6, 0.040),
    ("teacher", "xl"): Row(  540_000, 7.0e-3,  0.10,   -0.8,  1.6, 0.040),
    ("sct", "s"):      Row(  400_000, 1.0e-4,  0.45,   -1.0,  1.6, 0.050),
    ("sct", "m"):      Row(  400_000, 9.0e-5,  0.45,   -1.0,  1.6, 0.050),
    ("sct", "l"):      Row(  400_000, 8.0e-5,  0.45,   -1.0,  1.6, 0.050),
    ("sct", "xl"):     Row(  400_000, 7.0e-5,  0.45,   -1.0,  1.6, 0.050),
    ("scd", "s"):      Row(  400_000, 1.0e-4,  0.00,   -1.0,  1.6, 0.050),
    ("scd", "m"):      Row(  400_000, 9.0e-5,  0.00,   -1.0,  1.6, 0.050),
    ("scd", "l"):      Row(  400_000, 8.0e-5,  0.00,   -1.0,  1.6, 0.050),
    ("scd", "xl"):     Row(  400_000, 7.0e-5,  0.00,   -1.0,  1.6, 0.050),
}
# fmt: on

# The row of each size. Transformers take that of the U-Net of about their size.
SIZES = {
    "unet": {"s": "s", "m": "m", "l": "l", "xl": "xl"},
    "dit": {"s": "s", "b": "s", "l": "m", "xl": "l", "1p6b": "xl"},
}
# Not the paper's: plain weights need smaller steps than normalized ones.
DIT_LEARNING_RATE = {"teacher": 1e-4, "sct": 1e-5, "scd": 1e-5}


def get_config(arg: str = ""):
    """``teacher``, ``sct`` or ``scd``; options size, family, patch and quick."""
    variant, options = parse_arg(
        arg, VARIANTS, family=("unet", "dit"), size="s", patch=(2, 4, 8)
    )
    family, size, quick = options["family"], options["size"], options["quick"]
    row_size = lookup(SIZES[family], size, f"experiment option size of family={family}")
    row = PRESETS[variant, row_size]

    def run_name(variant: str) -> str:
        backbone = f"dit_{size}_{options['patch']}" if family == "dit" else size
        return f"imagenet64_{variant}_{backbone}" + ("_quick" if quick else "")

    c = base_config(
        family,
        "diffusion" if variant == "teacher" else "consistency",
        "noise_images" if quick else "imagenet64",
    )
    c.name = run_name(variant)
    c.network.update(NETWORK_PRESETS[family][size])
    c.network.dtype = "bfloat16"
    c.optimizer.name = "adam"
    c.optimizer.b1 = 0.9
    c.optimizer.b2 = 0.99
    c.optimizer.eps = 1e-11
    c.optimizer.schedule = "inverse_sqrt"
    c.optimizer.decay_images = float(DECAY_ITERATIONS * BATCH)
    c.optimizer.rampup_images = RAMPUP_IMAGES
    if family == "unet":
        c.network.dropout = row.dropout
        c.optimizer.learning_rate = row.learning_rate
    else:
        c.network.patch = options["patch"]
        c.optimizer.learning_rate = DIT_LEARNING_RATE[variant]
    c.objective.P_mean = row.P_mean
    c.objective.P_std = row.P_std
    # The first one samples; two of them allow any width after the training, if
    # ema.snapshot_images (EDM2's are 8 * 2**20 apart) is set.
    c.ema.rel_std = (row.ema, 0.10)
    c.train.batch_size = BATCH
    c.train.duration_images = row.iterations * BATCH
    c.log.every_images = 100 * BATCH
    c.checkpoint.every_images = 2_500 * BATCH
    c.eval.split = "" if quick else "validation"  # of validation errors
    c.sampling.batch_size = 64
    if variant == "teacher":
        c.sampling.sampler = "heun"
        c.sampling.steps = 32  # 63 evaluations
        c.eval.steps = (32,)
    else:
        if family == "unet":
            c.network.dropout_max_resolution = DROPOUT_MAX_RESOLUTION
        c.objective.dx_dt = "teacher" if variant == "scd" else "data"
        c.objective.tangent_normalization = "l2"
        c.objective.tangent_norm_eps = 0.1
        c.objective.tangent_warmup_images = WARMUP_ITERATIONS * BATCH
        c.objective.learned_weighting = True
        # Alg. 1 starts both kinds of student at the teacher's EMA.
        c.init.run = f"runs/{run_name('teacher')}"
        c.init.ema = f"{PRESETS['teacher', row_size].ema:g}"
        if variant == "scd":
            c.teacher.source = "run"
            c.teacher.run = c.init.run
            c.teacher.ema = c.init.ema
        c.sampling.sampler = "consistency"
        c.sampling.steps = 2
        c.eval.steps = (1, 2)
    if quick:
        c.dataset.sample_shape = (16, 16, 3)
        c.dataset.num_classes = 10
        shrink(c)
    return c
