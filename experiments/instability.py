"""The instability laboratory: what the paper's stabilizers are there for, on digits.

Re-enacts Fig. 4 and 5 of arXiv 2410.11081v2 on 8x8 digits. One command trains all
variants and draws both figures:

Run:
  python benchmarks/instability.py --workdir=runs/instability --out=docs
  python -m scm_jax train --config=experiments/instability.py:sct,network=fourier16 \\
    --workdir=runs/sct_fourier16

Expect (measured; all numbers are in docs/instability.md, which that command writes):
the RMS of ``d_t f`` is 0.4 at most with TrigFlow, grows without end towards pi/2 with
EDM's ``c_noise`` (5.0 at sigma 80) and is 10.6 with Fourier features of scale 16, on
which consistency models learn nothing (Frechet distance above 400). EDM's ``c_noise``
costs a factor of 3 to 4 in the distance, a raw or clipped tangent costs sct 1.4. Plain
AdaLN, which the paper saw diverge, does not at this size: it learns faster.

``network``: ``trigflow`` (``c_noise(t) = t``, positional embedding, adaptive double
normalization), or one step back from it: ``c_noise`` (EDM's, ``log(sigma_data tan t)
/ 4``), ``fourier16`` (Fourier features of scale 16), ``adaln`` (scale and shift without
normalization). ``tangent``: ``l2`` (the paper's), ``clip``, ``none``.
"""

from scm_jax.config import base_config, parse_arg
from scm_jax.types import lookup

BATCH = 128

# One change each: (parameterization, embedding, modulation).
NETWORKS = {
    "trigflow": ("trigflow", "positional", "double_norm"),
    "c_noise": ("edm", "positional", "double_norm"),
    "fourier16": ("trigflow", "fourier", "double_norm"),
    "adaln": ("trigflow", "positional", "adaptive"),
}
TANGENTS = ("l2", "clip", "none")


def get_config(arg: str = ""):
    """``teacher``, ``sct`` or ``scd``; ``network=``, ``tangent=`` and ``quick``."""
    variant, options = parse_arg(
        arg, ("teacher", "sct", "scd"), network="trigflow", tangent="l2"
    )
    chosen = lookup(NETWORKS, options["network"], "experiment option network")
    c = base_config("dit", "diffusion" if variant == "teacher" else "consistency")
    c.name = f"{variant} {options['network']} {options['tangent']}".removesuffix(" l2")
    c.dataset.name = "digits"
    c.parameterization, c.network.embedding, c.network.modulation = chosen
    c.network.fourier_scale = 16.0
    c.network.patch = 4
    c.network.width = 64
    c.network.num_heads = 2
    c.optimizer.learning_rate = 1e-3
    c.ema.rel_std = (0.10,)
    c.train.batch_size = BATCH
    c.train.duration_images = 800 * BATCH
    c.log.every_images = 20 * BATCH
    c.eval.evaluators = ("digits",)
    if variant == "teacher":
        c.objective.P_mean = -0.8
        c.objective.P_std = 1.4
        c.eval.steps = (18,)
    else:
        c.objective.dx_dt = "teacher" if variant == "scd" else "data"
        c.objective.P_mean = -1.0
        c.objective.P_std = 1.4
        lookup(dict.fromkeys(TANGENTS), options["tangent"], "experiment option tangent")
        c.objective.tangent_normalization = options["tangent"]
        c.objective.tangent_warmup_images = 100 * BATCH
        teacher = f"runs/instability/teacher_{options['network']}"
        c.init.run = teacher
        if variant == "scd":
            c.teacher.source = "run"
            c.teacher.run = teacher
        c.sampling.sampler = "consistency"
        c.sampling.steps = 2
        c.eval.steps = (1, 2)
        c.eval.every_images = 200 * BATCH
    if options["quick"]:
        c.network.width = 32
        c.network.depth = 1
        c.train.batch_size = 32
        c.train.duration_images = 10 * 32
        c.log.every_images = 5 * 32
        c.eval.every_images = 0
        c.eval.evaluators = ()
    return c
