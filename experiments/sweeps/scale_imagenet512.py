"""The paper's scaling study on ImageNet 512: S to XXL, teacher, sCT and sCD of each.

Run (see docs/sweeps.md for profiles of clusters):
  python -m scm_jax sweep plan --sweep=experiments/sweeps/scale_imagenet512.py \\
    --root=runs/scale_imagenet512
  python -m scm_jax sweep submit --sweep=experiments/sweeps/scale_imagenet512.py \\
    --root=runs/scale_imagenet512 --launcher=slurm \\
    --profile=experiments/clusters/example.toml

Expect: the FIDs of experiments/imagenet512.py; not measured here.

The argument is a list of sizes such as ``s,m``; empty is all. Every size has the
settings of its row in the paper's tables. With teachers that exist already, imported or
trained, name them instead: ``--config`` keys do not apply to sweeps, so copy this file.
"""

from scm_jax.sweeps import run_dir

BASE = "experiments/imagenet512.py:sct,size=s"
METRICS = ("1_steps/fid", "2_steps/fid")

# Kind of allocation by size, a name in the launcher's profile.
SIZES = {"s": "node", "m": "node", "l": "node", "xl": "nodes_4", "xxl": "nodes_4"}


def sweep(arg=""):
    """Sizes, separated by commas."""
    for size in arg.split(",") if arg else SIZES:
        if size not in SIZES:
            raise ValueError(f"size {size!r}: legal are {', '.join(SIZES)}")
        common = {"resources": SIZES[size], "eval.evaluators": ("fid",)}
        teacher = run_dir(f"teacher_{size}")
        yield {
            **common,
            "base": f":teacher,size={size}",
            "label": teacher.label,
            "tags": ("teacher", size),
        }
        for kind in ("sct", "scd"):
            place = {"teacher.run": teacher} if kind == "scd" else {}
            yield {
                **common,
                **place,
                "base": f":{kind},size={size}",
                "tags": (kind, size),
                "init.run": teacher,
            }
