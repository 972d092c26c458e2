"""Methods by their names in the field: an objective and the config keys they set.

Settings are those of the papers where these are about the method itself; batch, rates,
lengths and proposals belong to an experiment.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Preset(NamedTuple):
    """An objective and further config keys, by their dotted names."""

    objective: str
    changes: dict[str, Any]

    @property
    def taught(self) -> bool:
        """Whether it learns from a teacher's velocity or score."""
        by_teacher = self.changes.get("objective.dx_dt") == "teacher"
        return by_teacher or self.objective == "matching"


_TEACHER = {"objective.dx_dt": "teacher"}
_TWO_TIMES = {"network.use_dt": True, "sampling.sampler": "map"}
_GAP = {"objective.pairs": "gap", "objective.tangent_normalization": "l2"}
_DMD = {
    "matching.form": "dmd",
    "matching.P_mean": 0.0,
    "matching.P_std": 1.6,
    "matching.critic_P_mean": 0.0,
    "matching.learned_weighting": False,
    "critic.student_every": 5,
}

PRESETS: dict[str, Preset] = {
    # Consistency models, arXiv 2410.11081.
    "sct": Preset("consistency", {}),
    "scd": Preset("consistency", _TEACHER),
    "scd_segments": Preset(
        "consistency", {**_TEACHER, "objective.segments": 4, "sampling.sampler": "map"}
    ),
    # Discrete: 2303.01469 (its grid is drawn uniformly, here log-normally), 2310.14189,
    # 2406.14548.
    "cd": Preset(
        "discrete",
        {
            **_TEACHER,
            "objective.solver": "heun",
            "objective.intervals": (18, 18),
            "objective.huber": 0.0,
            "objective.gap_weighting": False,
        },
    ),
    "ict": Preset("discrete", {}),
    "ect": Preset("discrete", {"objective.grid": "ratio", "objective.huber": 1e-6}),
    # Average velocity: 2505.13447, 2512.02012.
    "meanflow": Preset("mean_flow", _TWO_TIMES),
    "imf": Preset(
        "mean_flow",
        {
            **_TWO_TIMES,
            "objective.tangent_velocity": "own",
            "objective.diagonal_share": 0.5,
        },
    ),
    # Distilled flow maps: 2506.14603; 2511.19428 without its second term.
    "emd": Preset(
        "mean_flow",
        {
            **(_TEACHER | _TWO_TIMES | _GAP),
            "objective.P_mean": -0.8,
            "objective.diagonal_share": 0.0,
            "objective.tangent_warmup_end": 0.99,
            "objective.adaptive_power": 0.0,
        },
    ),
    "lmd": Preset(
        "lagrangian",
        {
            **(_TEACHER | _TWO_TIMES | _GAP),
            "objective.map_every": 1,
            "objective.differentiate": False,
            "objective.learned_weighting": False,
        },
    ),
    "free_flow": Preset(
        "lagrangian",
        {
            **(_TEACHER | _TWO_TIMES),
            "objective.pairs": "start",
            "objective.map_every": 1,
            "objective.differentiate": False,
            "objective.adaptive_power": 1.0,
            "objective.learned_weighting": False,
        },
    ),
    # Self-distilled flow maps: 2505.18825, 2410.12557.
    "lsd": Preset("lagrangian", _TWO_TIMES),
    "psd": Preset(
        "semigroup",
        {
            **_TWO_TIMES,
            "objective.pairs": "uniform",
            "objective.map_every": 4,
            "objective.learned_weighting": True,
        },
    ),
    "shortcut": Preset("semigroup", _TWO_TIMES),
    # Two networks: App. C of 2410.11081, 2405.14867, 2510.08431.
    "vsd": Preset("matching", {}),
    "dmd2": Preset(
        "matching",
        {k.replace("matching.", "objective."): v for k, v in _DMD.items()},
    ),
    "scd_vsd": Preset("consistency", {**_TEACHER, "matching.weight": 1.0}),
    "rcm": Preset(
        "consistency",
        {
            **(_TEACHER | _DMD),
            "objective.tangent_warmup_form": "rcm",
            "matching.weight": 1.0,
            "matching.simulated": 4,
        },
    ),
}
