"""Text to sound in latents of Stable Audio Open's autoencoder (arXiv 2407.14358).

Run, with ``size`` one of 120m, 480m:
  python -m scm_jax train --config=experiments/audio_latents.py:teacher,size=480m \\
    --workdir=runs/audio_teacher_480m
  python -m scm_jax train --config=experiments/audio_latents.py:scd,size=480m \\
    --workdir=runs/audio_scd_480m
  python -m scm_jax describe --config=experiments/audio_latents.py:teacher,size=480m

Expect: not yet measured. MeanAudio (arXiv 2508.06098), which has these sizes and other
data and latents, reports on AudioCaps with 120M parameters FD 14.30, FAD 1.77 and CLAP
0.290 in 1 step, FD 13.38 in 25. No published run of sCT or sCD on sound is known.

The network is the transformer of ``networks/dit.py`` over 216 latents of 64 channels,
10 s of stereo at 44.1 kHz, with rotary positions and cross-attention to the caption:
121,082,432 and 489,663,552 parameters, 17.9 and 72.9 G multiply-adds in a forward pass.

``data=NAME`` are latents that were prepared under that name and ``states=NAME`` what
``data encode-text`` stored of their captions; without, the data are noise of the right
shapes. Latents become sound by ``networks.autoencoder.decode`` with the weights of
``networks.external.autoencoder.load_autoencoder``: ``data encode`` and the commands
that sample do neither yet. ``scd,quick`` is a smoke run, whose teacher is that of
``teacher,quick``.

The teacher has the batch, length, learning rate, times and captions of the flow that
MeanAudio begins with, as released. Times and tangent warmup of students are those of
the paper on latents (arXiv 2410.11081v2, App. G), their rate and length our choice.
"""

import math

from scm_jax.config import base_config, parse_arg, shrink
from scm_jax.networks import PRESETS as NETWORK_PRESETS

VARIANTS = ("teacher", "sct", "scd")
SIZES = ("120m", "480m")
SHAPE = (216, 64)  # 10.03 s: 2,048 samples to a latent
TOKENS, WIDTH, POOLED = 77, 1024, 512  # FLAN-T5 large, then CLAP for the whole
BATCH, TEACHER_STEPS, STUDENT_STEPS = 256, 200_000, 100_000
TEACHER_RATE, STUDENT_RATE = 1e-4, 1e-5
RAMPUP_STEPS, WARMUP_STEPS = 1_000, 10_000  # of the learning rate, of the tangent
GUIDANCE, GUIDANCE_RANGE = 4.5, (1.0, 6.0)
# Moments of log(sigma / sigma_data): a rectified flow with logit-normal (0, 1), and the
# paper's -0.8 for latents of standard deviation 0.5.
TEACHER_TIMES, STUDENT_TIMES = (0.0, 1.0), (-0.8 - math.log(0.5), 1.6)


def get_config(arg: str = ""):
    """``teacher``, ``sct``, ``scd``; options size, data, states, quick."""
    variant, options = parse_arg(arg, VARIANTS, size=SIZES, data="", states="")
    size, prepared, quick = options["size"], options["data"], options["quick"]
    student = variant != "teacher"

    def run_name(variant: str) -> str:
        return f"audio_{variant}_{size}" + "_quick" * quick

    objective = "consistency" if student else "diffusion"
    c = base_config("dit", objective, "latents" if prepared else "noise_latents")
    c.name = run_name(variant)
    if prepared:
        c.dataset.update({"prepared": prepared, "captioned": True})
        c.dataset.states = options["states"]
    else:
        c.dataset.sample_shape = SHAPE
        c.dataset.update({"length": TOKENS, "width": WIDTH, "pooled": POOLED})
    c.network.update(NETWORK_PRESETS["dit"][f"audio_{size}"])
    c.network.dtype = "bfloat16"
    c.train.batch_size = BATCH
    c.train.duration_images = BATCH * (STUDENT_STEPS if student else TEACHER_STEPS)
    c.optimizer.learning_rate = STUDENT_RATE if student else TEACHER_RATE
    c.optimizer.rampup_images = float(RAMPUP_STEPS * BATCH)
    c.objective.label_dropout = 0.0 if student else 0.1
    c.log.every_images = 100 * BATCH
    c.checkpoint.every_images = 5_000 * BATCH
    c.sampling.batch_size = 64
    c.sampling.guidance = GUIDANCE
    mean, std = STUDENT_TIMES if student else TEACHER_TIMES
    # Prepared latents are whitened to 0.5; the noise has a standard deviation of 1.
    c.objective.P_mean = mean + (math.log(0.5) if prepared else 0.0)
    c.objective.P_std = std
    if not student:
        c.sampling.update({"sampler": "ddim", "steps": 25, "shift": 1.0})
        c.eval.steps = (25,)
    else:
        c.objective.dx_dt = "teacher" if variant == "scd" else "data"
        c.objective.tangent_warmup_images = WARMUP_STEPS * BATCH
        c.init.run = f"runs/{run_name('teacher')}"
        if variant == "scd":
            c.network.use_guidance = True
            c.objective.guidance_range = GUIDANCE_RANGE
            c.teacher.source = "run"
            c.teacher.run = c.init.run
        else:  # consistency training has no guided velocity
            c.sampling.guidance = 1.0
        c.sampling.update({"sampler": "consistency", "steps": 2})
        c.eval.steps = (1, 2)
    if quick:
        if not prepared:
            c.dataset.sample_shape = (16, 4)
            c.dataset.update({"length": 6, "width": 32, "pooled": 16})
        shrink(c)
    return c
