"""Images of one's own, prepared with ``data prepare`` under some name: docs/data.md.

Run (for images that were prepared as ``flowers``):
  python -m scm_jax train --config=experiments/images.py:teacher,name=flowers \\
    --workdir=runs/flowers_teacher_s
  python -m scm_jax train --config=experiments/images.py:sct,name=flowers \\
    --workdir=runs/flowers_sct_s
  python -m scm_jax train --config=experiments/images.py:scd,name=flowers \\
    --workdir=runs/flowers_scd_s

Expect: not yet measured. The settings are the paper's for ImageNet 64, with a batch of
256 and the length of 40,000 steps: lengths, dropout and rates are for you to choose.

``size=xs|s|m|l|xl`` of the U-Net needs sides that 8 divides; ``family=dit`` with
``size=s|b|l|xl|1p6b`` and ``patch=2|4|8`` sides that the patch divides. ``quick`` is a
smoke run of a few steps, on noise where no name is given.
"""

from scm_jax.config import base_config, parse_arg, shrink
from scm_jax.networks import PRESETS as NETWORK_PRESETS
from scm_jax.types import lookup

VARIANTS = ("teacher", "sct", "scd")
BATCH = 256
STEPS = 40_000
PAPER_BATCH = 2048
# Reference rates of the U-Net's schedule for batches of 2048; students take 1/100.
LEARNING_RATE = {"xs": 1.0e-2, "s": 1.0e-2, "m": 9.0e-3, "l": 8.0e-3, "xl": 7.0e-3}
# Plain weights need smaller steps than normalized ones.
DIT_LEARNING_RATE = {"teacher": 1e-4, "sct": 1e-5, "scd": 1e-5}
SIZES = {
    "unet": dict.fromkeys(LEARNING_RATE),
    "dit": dict.fromkeys(NETWORK_PRESETS["dit"]),
}


def get_config(arg: str = ""):
    """``teacher``, ``sct`` or ``scd``; options name, family, size, patch and quick."""
    variant, options = parse_arg(
        arg, VARIANTS, name="", family=("unet", "dit"), size="s", patch=(2, 4, 8)
    )
    name, family, size = options["name"], options["family"], options["size"]
    quick = options["quick"]
    lookup(SIZES[family], size, f"experiment option size of family={family}")

    def run_name(variant: str) -> str:
        backbone = f"dit_{size}_{options['patch']}" if family == "dit" else size
        return f"{name or 'images'}_{variant}_{backbone}" + ("_quick" if quick else "")

    student = variant != "teacher"
    c = base_config(
        family,
        "consistency" if student else "diffusion",
        "noise_images" if quick and not name else "images",
    )
    c.name = run_name(variant)
    if "prepared" in c.dataset:
        c.dataset.prepared = name
    c.network.update(NETWORK_PRESETS[family][size])
    c.network.dtype = "bfloat16"
    c.optimizer.b1 = 0.9
    c.optimizer.b2 = 0.99
    c.optimizer.eps = 1e-11
    c.optimizer.schedule = "inverse_sqrt"
    c.optimizer.decay_images = STEPS * BATCH / 4
    c.optimizer.rampup_images = STEPS * BATCH / 40
    if family == "unet":
        # Adam's noise grows as the root of what the batch shrinks by.
        rate = LEARNING_RATE[size] * (BATCH / PAPER_BATCH) ** 0.5
        c.optimizer.learning_rate = rate / 100 if student else rate
    else:
        c.network.patch = options["patch"]
        c.optimizer.learning_rate = DIT_LEARNING_RATE[variant]
    c.objective.P_mean = -1.0 if student else -0.8
    c.objective.P_std = 1.6
    c.train.batch_size = BATCH
    c.train.duration_images = STEPS * BATCH
    c.log.every_images = 100 * BATCH
    c.checkpoint.every_images = 1_000 * BATCH
    c.sampling.batch_size = 64
    if not student:
        c.sampling.steps = 18
        c.eval.steps = (18,)
    else:
        c.objective.dx_dt = "teacher" if variant == "scd" else "data"
        c.objective.tangent_warmup_images = STEPS * BATCH // 10
        # Alg. 1 starts both kinds of student at the teacher's EMA.
        c.init.run = f"runs/{run_name('teacher')}"
        if variant == "scd":
            c.teacher.source = "run"
            c.teacher.run = c.init.run
        c.sampling.sampler = "consistency"
        c.sampling.steps = 2
        c.eval.steps = (1, 2)
    if quick:
        shrink(c)
    return c
