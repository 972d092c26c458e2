"""Diffusion transformers from 20 million to 1.6 billion parameters on ImageNet 512.

Run:
  python -m scm_jax sweep plan --sweep=experiments/sweeps/scale_dit.py \\
    --root=runs/scale_dit

Expect: not yet measured; the paper has no transformers.

The argument is the patch size, 2 (default), 4 or 8. sCT from random parameters at
matched budgets, so that the compute of a run is all in its own account; the settings
are those of experiments/imagenet512.py for family=dit.
"""

from scm_jax.sweeps import cross, grid

BASE = "experiments/imagenet512.py:sct,family=dit,size=s"
METRICS = ("1_steps/validation_error", "2_steps/fid")

# Name -> size in the experiment, changes to it, kind of allocation.
SIZES = {
    "20m": ("s", {"network.width": 320, "network.depth": 10, "network.num_heads": 5}),
    "s": ("s", {}),
    "b": ("b", {}),
    "l": ("l", {}),
    "xl": ("xl", {}),
    "1p6b": ("1p6b", {}),
}
RESOURCES = {"l": "node", "xl": "node", "1p6b": "nodes_4"}
BUDGETS = (1e19, 3e19, 1e20)


def sweep(arg=""):
    """The patch size."""
    for name, (size, changes) in SIZES.items():
        common = {
            "base": f":sct,family=dit,size={size},patch={arg or 2}",
            "tags": ("dit", name),
            "resources": RESOURCES.get(name, "gpu"),
            "init.run": "",
            "eval.evaluators": ("fid", "validation"),
        }
        yield from cross([{**common, **changes}], grid({"train.flops": BUDGETS}))
