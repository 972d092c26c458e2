"""Text to image in latents with SD3's transformer (arXiv 2403.03206), at SD3's sizes.

Run, with ``model`` one of medium, sd35_medium, sd35_large:
  python -m scm_jax import --config=experiments/sd3.py:teacher,model=medium \\
    --weights=sd3_medium.safetensors --workdir=runs/sd3_teacher_medium
  python -m scm_jax train --config=experiments/sd3.py:scd,model=medium \\
    --workdir=runs/sd3_scd_medium
  python -m scm_jax describe --config=experiments/sd3.py:scd,model=sd35_large \\
    --mesh=fsdp=64

Expect: not yet measured. SANA-Sprint, whose settings these are as far as they were
published (arXiv 2503.09641, Sec. 4), has FID 6.50 and CLIP 28.45 in 2 steps on
MJHQ-30K at 1024x1024, with an adversarial loss besides; without it 8.93 and 27.51.

An imported teacher is used as it is; ``teacher`` also fine-tunes it (set ``init.run``)
or trains from random weights. ``data=NAME`` are latents that ``data encode`` made with
SD3's autoencoder, and ``states=NAME`` what ``data encode-text`` stored of their
captions; without, the data are noise of the right shapes. ``model=d15`` to ``d38`` are
the paper's ladder of depths with the changes of sCM, without published weights.
``scd,quick`` is a smoke run; its teacher is that of ``teacher,quick``.

What differs from SANA-Sprint: Adam in place of CAME, no clipping of gradients, the
guidance scale is uniform in [4, 5] in place of one of 4, 4.5, 5, and the published
networks keep their time input of 1000 s, which that paper replaces by fine-tuning.
"""

import math

from scm_jax.config import base_config, parse_arg, shrink
from scm_jax.networks import PRESETS as NETWORK_PRESETS
from scm_jax.trigflow import logit_normal_proposal

VARIANTS = ("teacher", "sct", "scd")
MODELS = {
    "medium": "sd3_medium",
    "sd35_medium": "sd35_medium",
    "sd35_large": "sd35_large",
    **{f"d{depth}": f"d{depth}" for depth in (15, 18, 24, 30, 38)},
}
TOKENS, WIDTH, POOLED = 154, 4096, 2048  # two CLIP encoders side by side, then T5
CHANNELS = 16

TEACHER_BATCH, TEACHER_STEPS, TEACHER_RATE = 1024, 5_000, 2e-5
STUDENT_BATCH, STUDENT_STEPS, STUDENT_RATE = 512, 20_000, 2e-6
WARMUP_STEPS = 4_000
GUIDANCE = 4.5
GUIDANCE_RANGE = (4.0, 5.0)
CAPTION_DROPOUT = 0.1
SHIFT = 3.0  # of SD3's times at 1024x1024, in proportion to the side
# SANA-Sprint's P_mean is for latents scaled to a standard deviation of 0.5, where the
# same time has half the noise level; ours have 1.
P_MEAN, P_STD = 0.2 + math.log(1 / 0.5), 1.6


def get_config(arg: str = ""):
    """``teacher``, ``sct``, ``scd``; options model, resolution, data, states, quick."""
    choices = {"model": tuple(MODELS), "resolution": (1024, 512, 256)}
    variant, options = parse_arg(arg, VARIANTS, **choices, data="", states="")
    model, side, quick = options["model"], options["resolution"], options["quick"]

    def run_name(variant: str) -> str:
        return f"sd3_{variant}_{model}" + ("_quick" if quick else "")

    student = variant != "teacher"
    objective = "consistency" if student else "diffusion"
    prepared = options["data"]
    c = base_config("mmdit", objective, "latents" if prepared else "noise_latents")
    c.name = run_name(variant)
    if prepared:
        c.dataset.update({"prepared": prepared, "captioned": True, "whitening": "sd3"})
        c.dataset.states = options["states"]
    else:
        c.dataset.sample_shape = (side // 8, side // 8, CHANNELS)
        c.dataset.update({"length": TOKENS, "width": WIDTH, "pooled": POOLED})
    c.network.update(NETWORK_PRESETS["mmdit"][MODELS[model]])
    c.network.dtype = "bfloat16"
    c.network.remat = "blocks"
    c.network.attention = "chunked"  # no 4,250 x 4,250 logits per head
    if model not in ("d15", "d18", "d24", "d30", "d38"):
        c.parameterization = "rectified_flow"
    c.optimizer.update({"name": "adam", "b1": 0.9, "b2": 0.99, "eps": 1e-15})
    batch = STUDENT_BATCH if student else TEACHER_BATCH
    c.train.batch_size = batch
    c.train.duration_images = batch * (STUDENT_STEPS if student else TEACHER_STEPS)
    c.ema.rel_std = (0.05,)  # each more costs a copy of the weights
    c.objective.label_dropout = 0.0 if student else CAPTION_DROPOUT
    c.log.every_images = 10 * batch
    c.checkpoint.every_images = 1_000 * batch
    c.sampling.batch_size = 16
    if not student:
        c.optimizer.learning_rate = TEACHER_RATE
        shift = max(1.0, SHIFT * side / 1024)
        c.objective.P_mean, c.objective.P_std = logit_normal_proposal(0.0, 1.0, shift)
        c.sampling.update({"sampler": "ddim", "steps": 28, "guidance": GUIDANCE})
        c.sampling.shift = shift
        c.eval.steps = (28,)
    else:
        c.optimizer.learning_rate = STUDENT_RATE
        c.objective.P_mean, c.objective.P_std = P_MEAN, P_STD
        c.objective.dx_dt = "teacher" if variant == "scd" else "data"
        c.objective.tangent_warmup_images = WARMUP_STEPS * batch
        c.init.run = f"runs/{run_name('teacher')}"
        if variant == "scd":
            c.network.use_guidance = True
            c.objective.guidance_range = GUIDANCE_RANGE
            c.teacher.source = "run"
            c.teacher.run = c.init.run
            c.sampling.guidance = GUIDANCE
        c.sampling.update({"sampler": "consistency", "steps": 2})
        c.eval.steps = (1,)
        c.eval.times = ((1.3,), (1.3, 1.1, 0.6))
    if quick:
        if not prepared:
            c.dataset.sample_shape = (8, 8, 4)
            c.dataset.update({"length": 6, "width": 32, "pooled": 16})
        shrink(c)
    return c
