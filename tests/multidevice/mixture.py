"""The smallest config whose training has every part: see test_hosts.py."""

from scm_jax.config import base_config


def get_config(arg: str = ""):
    """``long`` does not end by itself."""
    c = base_config("mlp", "consistency", "mixture")
    c.name = "hosts"
    c.objective.learned_weighting = False
    c.objective.dx_dt = "data"
    c.objective.tangent_warmup_images = 64
    c.network.width = 8
    # Cut where the mesh has an axis fsdp, although it is small.
    c.mesh.rules = (("block_0_in.kernel", (None, "fsdp")), (".*", "replicate"))
    c.network.depth = 1
    c.train.batch_size = 16
    c.train.duration_images = 16 * (1_000_000 if arg == "long" else 12)
    c.log.every_images = 16 * 3
    c.log.writers = ("jsonl",)
    c.checkpoint.every_images = 16 * 6
    c.sampling.sampler = "consistency"
    c.eval.evaluators = ("mixture_consistency",)
    c.eval.steps = (1,)
    c.eval.every_images = 16 * 6
    return c
