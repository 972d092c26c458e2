"""What each stabilizer of the paper does: all of them, and each switched off in turn.

Run (2 CPU cores):
  python -m scm_jax sweep submit --sweep=experiments/sweeps/ablate_stabilizers.py:sct \\
    --root=runs/ablate_stabilizers --max_parallel=2

Expect (64 runs, 42 minutes of a CPU core; docs/ablations.md): one step of sct 5.80,
with a raw tangent 8.87, without a learned weight 7.17, with EDM's c_noise 20.4,
Fourier features 419, plain AdaLN 4.53; no warmup and finite differences change nothing.

The argument is ``both``, ``sct`` or ``scd``, and ``quick`` for a smoke run with the
baseline and two arms. Three seeds each. An arm that changes the network or the reading
of time has a teacher of its own kind; the others share one. Digits, and a network as in
experiments/instability.py: what holds here at 8x8 pixels need not hold at scale.
"""

from scm_jax.sweeps import cross, run_dir, seeds
from scm_jax.sweeps.plan.studies import parse_kinds

BASE = "experiments/instability.py:sct"
METRICS = ("1_steps/frechet_distance", "2_steps/frechet_distance")

# Arm -> changes of the objective. "paper" is the baseline.
OBJECTIVES = {
    "paper": {},
    "no_tangent_normalization": {"objective.tangent_normalization": "none"},
    "tangent_clipping": {"objective.tangent_normalization": "clip"},
    "no_tangent_warmup": {"objective.tangent_warmup_images": 0},
    "no_learned_weighting": {"objective.learned_weighting": False},
    "no_prior_weighting": {"objective.prior_weighting": "none"},
    "finite_differences": {"objective.tangent": "finite_difference"},
}
# Arm -> changes of the network, which its teacher shares.
NETWORKS = {
    "edm_c_noise": {"parameterization": "edm"},
    "fourier_embedding": {"network.embedding": "fourier"},
    "no_double_norm": {"network.modulation": "adaptive"},
}


def sweep(arg=""):
    """``both``, ``sct`` or ``scd``, and ``quick``."""
    kinds, quick = parse_kinds(arg)
    objectives = dict(list(OBJECTIVES.items())[:2]) if quick else OBJECTIVES
    networks = dict(list(NETWORKS.items())[:1]) if quick else NETWORKS
    size = {"train.duration_images": 40 * 128, "network.width": 16} if quick else {}
    common = {**size, "log.writers": ("jsonl",), "log.every_images": 10 * 128}
    for name, changes in {"paper": {}, **networks}.items():
        yield {
            **common,
            **changes,
            "base": ":teacher",
            "label": f"teacher_{name}",
            "tags": ("teacher", name),
        }
    student = {
        "objective.tangent_warmup_images": 10 * 128 if quick else 100 * 128,
        "eval.every_images": 0,
        "eval.num_seeds": 2,
    }
    for kind in kinds:
        for name, changes in {**objectives, **networks}.items():
            teacher = run_dir(f"teacher_{name if name in networks else 'paper'}")
            tags = (kind, name, *(["baseline"] if name == "paper" else []))
            arm = {"base": f":{kind}", "tags": tags, "init.run": teacher}
            if kind == "scd":
                arm["teacher.run"] = teacher
            yield from cross([{**common, **student, **arm, **changes}], seeds(3))
