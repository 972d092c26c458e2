"""ImageNet 512x512 in latents, as in the paper (Sec. 5, App. G of arXiv 2410.11081v2).

Run, with ``size`` one of s, m, l, xl, xxl:
  python -m scm_jax train --config=experiments/imagenet512.py:teacher,size=xxl \\
    --workdir=runs/imagenet512_teacher_xxl
  python -m scm_jax train --config=experiments/imagenet512.py:sct,size=xxl \\
    --workdir=runs/imagenet512_sct_xxl
  python -m scm_jax train --config=experiments/imagenet512.py:scd,size=xxl \\
    --workdir=runs/imagenet512_scd_xxl

Expect (FID of 50,000 samples at the best guidance; published, not measured here):
                                S      M      L     XL    XXL
  teacher, 63 x 2 evaluations   2.29   2.00   1.87   1.80   1.73
  sct, 1 step                  10.13   5.84   5.15   4.33   4.29
  sct, 2 steps                  9.86   5.53   4.65   3.73   3.76
  scd, 1 step                   3.07   2.75   2.55   2.40   2.28
  scd, 2 steps                  2.50   2.26   2.04   1.93   1.88
  scd_vsd, 1 step               3.37   2.67   2.26   2.39   2.16
  scd_vsd, 2 steps              2.70   2.29   1.99   2.01   1.89
  guidance: teacher and scd of 2 steps 1.4 (S) and 1.2; scd of 1 step 1.5 (S) and 1.3

The data: ``data/imagenet512/README.md``. ``size=xs`` is EDM2's XS, for which the
paper has no row. ``family=dit,size=xl,patch=2`` trains a transformer with the
settings of the U-Net of about its size; the paper has no numbers for that, either.
``scd,quick`` is a smoke run on noise; its teacher is that of ``teacher,quick`` in
``runs/imagenet512_teacher_s_quick``. ``describe`` needs neither data nor teacher.
"""

from typing import NamedTuple

from scm_jax.config import base_config, parse_arg, shrink
from scm_jax.networks import PRESETS as NETWORK_PRESETS
from scm_jax.types import lookup

VARIANTS = ("teacher", "sct", "scd", "scd_vsd")
BATCH = 2048
DECAY_ITERATIONS = 70_000  # t_ref of the learning rate
RAMPUP_IMAGES = 10e6  # EDM2's
WARMUP_ITERATIONS = 10_000  # H of the tangent's warmup
DROPOUT_MAX_RESOLUTION = 16  # of students
TEACHER_LABEL_DROPOUT = 0.1
GUIDANCE_RANGE = (1.0, 2.0)  # of sCD, drawn per sample


class Row(NamedTuple):
    """One column of the paper's table for ImageNet 512."""

    iterations: int
    learning_rate: float  # reference of the schedule
    dropout: float  # of students only at sides of at most 16
    P_mean: float
    P_std: float
    ema: float  # relative width of the EMA that samples
    guidance: float  # that samples best: teacher, or student in 2 steps


class VSDRow(NamedTuple):
    """What adaptive VSD (App. C) adds to sCD; F_phi models the student's samples."""

    iterations: int
    phi_learning_rate: float
    phi_dropout: float
    phi_P_mean: float  # of its diffusion loss
    phi_P_std: float
    vsd_P_mean: float  # of the loss of the student
    vsd_P_std: float
    vsd_weight: float


# fmt: off
PRESETS = {
    #                      iterations      lr  dropout P_mean P_std    EMA guidance
    ("teacher", "s"):   Row(1_048_000, 1.0e-2,  0.00,   -0.4,  1.0, 0.025, 1.4),
    ("teacher", "m"):   Row(1_048_000, 9.0e-3,  0.10,   -0.4,  1.0, 0.030, 1.2),
    ("teacher", "l"):   Row(  696_000, 8.0e-3,  0.10,   -0.4,  1.0, 0.015, 1.2),
    ("teacher", "xl"):  Row(  598_000, 7.0e-3,  0.10,   -0.4,  1.0, 0.020, 1.2),
    ("teacher", "xxl"): Row(  376_000, 6.5e-3,  0.10,   -0.4,  1.0, 0.015, 1.2),
    ("sct", "s"):       Row(  100_000, 1.0e-4,  0.25,   -0.8,  1.6, 0.050, 1.0),
    ("sct", "m"):       Row(  100_000, 9.0e-5,  0.35,   -0.8,  1.6, 0.050, 1.0),
    ("sct", "l"):       Row(  100_000, 8.0e-5,  0.35,   -0.8,  1.6, 0.050, 1.0),
    ("sct", "xl"):      Row(  100_000, 7.0e-5,  0.35,   -0.8,  1.6, 0.050, 1.0),
    ("sct", "xxl"):     Row(  100_000, 6.5e-5,  0.35,   -0.8,  1.6, 0.050, 1.0),
    ("scd", "s"):       Row(  200_000, 1.0e-4,  0.00,   -0.8,  1.6, 0.050, 1.4),
    ("scd", "m"):       Row(  200_000, 9.0e-5,  0.10,   -0.8,  1.6, 0.050, 1.2),
    ("scd", "l"):       Row(  200_000, 8.0e-5,  0.10,   -0.8,  1.6, 0.050, 1.2),
    ("scd", "xl"):      Row(  200_000, 7.0e-5,  0.10,   -0.8,  1.6, 0.050, 1.2),
    ("scd", "xxl"):     Row(  200_000, 6.5e-5,  0.10,   -0.8,  1.6, 0.050, 1.2),
    # Not in the paper: EDM2's XS, and students after the pattern of the other sizes.
    ("teacher", "xs"):  Row(1_048_000, 1.2e-2,  0.00,   -0.4,  1.0, 0.045, 1.4),
    ("sct", "xs"):      Row(  100_000, 1.2e-4,  0.25,   -0.8,  1.6, 0.050, 1.0),
    ("scd", "xs"):      Row(  200_000, 1.2e-4,  0.00,   -0.8,  1.6, 0.050, 1.4),
}
# sCD + adaptive VSD: everything else is as in the row of sCD, to which the VSD loss is
# added. F_phi starts at the teacher, whose dropout it has, is updated once per update
# of the student and has no EMA; the student's one-step samples start at
# arctan(80 / sigma_data).
VSD_PRESETS = {
    #                            F_phi:                      VSD loss:
    #             iterations     lr  dropout P_mean P_std  P_mean P_std  weight
    "s":   VSDRow(    20_000, 1.0e-4,  0.00,   -0.8,  1.6,    0.4,  2.0,    1.0),
    "m":   VSDRow(    20_000, 9.0e-5,  0.10,   -0.8,  1.6,    0.4,  2.0,    1.0),
    "l":   VSDRow(    20_000, 8.0e-5,  0.10,   -0.8,  1.6,    0.4,  2.0,    1.0),
    "xl":  VSDRow(    20_000, 7.0e-5,  0.10,   -0.8,  1.6,    0.4,  2.0,    1.0),
    "xxl": VSDRow(    20_000, 6.5e-5,  0.10,   -0.8,  1.6,    0.4,  2.0,    1.0),
}
# fmt: on

# The row of each size. Transformers take that of the U-Net of about their size.
SIZES = {
    "unet": {size: size for size in ("xs", "s", "m", "l", "xl", "xxl")},
    "dit": {"s": "xs", "b": "xs", "l": "m", "xl": "l", "1p6b": "xxl"},
}
# Not the paper's: plain weights need smaller steps than normalized ones.
DIT_LEARNING_RATE = {"teacher": 1e-4, "sct": 1e-5, "scd": 1e-5}


def add_vsd(c, size: str):
    """The settings of adaptive VSD on top of sCD's."""
    row = VSD_PRESETS.get(size, VSD_PRESETS["s"])  # XS is not in the paper
    c.train.duration_images = row.iterations * BATCH
    c.critic.learning_rate = row.phi_learning_rate
    c.matching.critic_P_mean, c.matching.critic_P_std = row.phi_P_mean, row.phi_P_std
    c.matching.P_mean, c.matching.P_std = row.vsd_P_mean, row.vsd_P_std
    c.matching.weight = row.vsd_weight
    c.sampling.guidance = 1.2 if size == "s" else 1.0


def get_config(arg: str = ""):
    """``teacher``, ``sct``, ``scd``, ``scd_vsd``; size, family, patch and quick."""
    variant, options = parse_arg(
        arg, VARIANTS, family=("unet", "dit"), size="s", patch=(2, 4, 8)
    )
    family, size, quick = options["family"], options["size"], options["quick"]
    row_size = lookup(SIZES[family], size, f"experiment option size of family={family}")
    row = PRESETS[variant.removesuffix("_vsd"), row_size]

    def run_name(variant: str) -> str:
        backbone = f"dit_{size}_{options['patch']}" if family == "dit" else size
        return f"imagenet512_{variant}_{backbone}" + ("_quick" if quick else "")

    c = base_config(
        family,
        "diffusion" if variant == "teacher" else variant,
        "noise_images" if quick else "imagenet512_latents",
    )
    c.name = run_name(variant)
    c.network.update(NETWORK_PRESETS[family][size])
    c.network.dtype = "bfloat16"
    c.optimizer.update({"name": "adam", "b1": 0.9, "b2": 0.99, "eps": 1e-11})
    c.optimizer.schedule = "inverse_sqrt"
    c.optimizer.decay_images = float(DECAY_ITERATIONS * BATCH)
    c.optimizer.rampup_images = RAMPUP_IMAGES
    if family == "unet":
        c.network.dropout = row.dropout
        c.optimizer.learning_rate = row.learning_rate
    else:
        c.network.patch = options["patch"]
        c.optimizer.learning_rate = DIT_LEARNING_RATE[variant.removesuffix("_vsd")]
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
    c.sampling.guidance = row.guidance
    if variant == "teacher":
        c.objective.label_dropout = TEACHER_LABEL_DROPOUT
        c.sampling.sampler = "heun"
        c.sampling.steps = 32  # 63 evaluations, twice where guided
        c.eval.steps = (32,)
    else:
        if family == "unet":
            c.network.dropout_max_resolution = DROPOUT_MAX_RESOLUTION
        c.objective.tangent_normalization = "l2"
        c.objective.tangent_norm_eps = 0.1
        c.objective.tangent_warmup_images = WARMUP_ITERATIONS * BATCH
        c.objective.learned_weighting = True
        # Alg. 1 starts both kinds of student at the teacher's EMA.
        c.init.run = f"runs/{run_name('teacher')}"
        c.init.ema = f"{PRESETS['teacher', row_size].ema:g}"
        if variant != "sct":
            c.network.use_guidance = True
            c.objective.guidance_range = GUIDANCE_RANGE
            c.teacher.source = "run"
            c.teacher.run = c.init.run
            c.teacher.ema = c.init.ema
        c.sampling.sampler = "consistency"
        c.sampling.steps = 2
        c.eval.steps = (1, 2)
    if variant == "scd_vsd":
        add_vsd(c, row_size)
    if quick:
        c.dataset.sample_shape = (16, 16, 4)
        c.dataset.num_classes = 10
        shrink(c)
    return c
