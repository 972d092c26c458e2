"""Text to video in latents with Wan2.1's transformer (arXiv 2503.20314), at its sizes.

Run, with ``model`` one of 1p3b, 14b:
  python -m scm_jax import --config=experiments/wan.py:teacher,model=1p3b \\
    --weights=diffusion_pytorch_model.safetensors --workdir=runs/wan_teacher_1p3b
  python -m scm_jax train --config=experiments/wan.py:scd,model=1p3b \\
    --workdir=runs/wan_scd_1p3b
  python -m scm_jax describe --config=experiments/wan.py:scd,model=14b \\
    --mesh=fsdp=64,tensor=4

Expect: not yet measured. rCM (arXiv 2510.08431), whose settings these are as far as
they fit, has VBench 84.09 in 2 steps and 84.43 in 4 with the 1.3B network on 81 frames
of 832x480, and Wan2.1 itself 83.02 in 50 guided steps.

An imported teacher is used as it is. ``data=NAME`` are latents that ``data encode``
made with Wan's autoencoder, and ``states=NAME`` what ``data encode-text`` stored of
their captions; without, the data are noise of the right shapes. The axis ``tensor`` of
a mesh splits the tokens of a clip (``mesh.sequence``). ``scd,quick`` is a smoke run,
whose teacher is that of ``teacher,quick``.

What differs from rCM: there is no second loss (0.01 DMD), without which fine detail of
videos stays soft by its account; the student takes the guidance scale as an input.
"""

import math

from scm_jax.config import base_config, parse_arg, shrink
from scm_jax.networks import PRESETS as NETWORK_PRESETS
from scm_jax.trigflow import logit_normal_proposal

VARIANTS = ("teacher", "sct", "scd")
# P_mean of rCM's released configs; its text has -0.8 + ln sqrt(21) = 0.72 for both.
P_MEAN = {"1p3b": 0.7, "14b": 1.5}
BATCH = {"1p3b": 256, "14b": 64}
RATE = {"1p3b": 2e-6, "14b": 1e-6}
WARMUP_STEPS = {"1p3b": 1_000, "14b": 200}
STEPS, TEACHER_STEPS, TEACHER_RATE = 10_000, 5_000, 1e-5
# 81 frames of 832x480 and 1280x720 as latents of 4x8x8 pixels.
SHAPES = {"480p": (21, 60, 104, 16), "720p": (21, 90, 160, 16)}
TOKENS, WIDTH = 512, 4096  # umT5-XXL
FRAME_RATE = 16.0
GUIDANCE, GUIDANCE_RANGE = 5.0, (4.0, 6.0)
SHIFT = {"480p": 3.0, "720p": 5.0}  # of the teacher's times


def get_config(arg: str = ""):
    """``teacher``, ``sct``, ``scd``; options model, size, data, states, quick."""
    choices = {"model": tuple(P_MEAN), "size": tuple(SHAPES)}
    variant, options = parse_arg(arg, VARIANTS, **choices, data="", states="")
    model, size, quick = options["model"], options["size"], options["quick"]
    student, prepared = variant != "teacher", options["data"]

    def run_name(variant: str) -> str:
        parts = ["wan", variant, model] + [size] * (size != "480p")
        return "_".join(parts + ["quick"] * quick)

    objective = "consistency" if student else "diffusion"
    c = base_config("wan", objective, "latents" if prepared else "noise_latents")
    c.name = run_name(variant)
    if prepared:
        c.dataset.update({"prepared": prepared, "captioned": True, "whitening": "wan"})
        c.dataset.states = options["states"]
    else:
        c.dataset.sample_shape = SHAPES[size]
        c.dataset.update({"length": TOKENS, "width": WIDTH, "pooled": 0})
        c.dataset.frame_rate = FRAME_RATE
    c.network.update(NETWORK_PRESETS["wan"][model])
    c.network.update({"dtype": "bfloat16", "remat": "blocks", "attention": "chunked"})
    c.parameterization = "rectified_flow"
    c.mesh.sequence = True
    batch = BATCH[model]
    c.train.batch_size = batch
    c.train.duration_images = batch * (STEPS if student else TEACHER_STEPS)
    c.optimizer.update({"name": "adam", "b1": 0.0, "b2": 0.999})
    c.optimizer.learning_rate = RATE[model] if student else TEACHER_RATE
    c.ema.rel_std = (0.05,)  # each more costs a copy of the weights
    c.objective.label_dropout = 0.0 if student else 0.1
    c.log.every_images = 10 * batch
    c.checkpoint.every_images = 500 * batch
    c.sampling.batch_size = 8
    c.sampling.guidance = GUIDANCE
    if not student:
        shift = SHIFT[size]
        c.objective.P_mean, c.objective.P_std = logit_normal_proposal(0.0, 1.0, shift)
        c.sampling.update({"sampler": "ddim", "steps": 50, "shift": shift})
        c.eval.steps = (50,)
    else:
        c.objective.P_mean, c.objective.P_std = P_MEAN[model], 1.6
        c.objective.dx_dt = "teacher" if variant == "scd" else "data"
        c.objective.tangent_warmup_images = WARMUP_STEPS[model] * batch
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
        c.eval.times = ((math.atan(5.0), math.atan(1.5), math.atan(0.5)),)
    if quick:
        if not prepared:
            c.dataset.sample_shape = (3, 8, 8, 4)
            c.dataset.update({"length": 6, "width": 32})
        c.network.update({"remat": "none", "attention": "einsum"})  # compiles faster
        shrink(c)
    return c
