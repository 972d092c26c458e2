"""Tables, ablations, scaling laws and plots of runs, which are read and never run."""

import importlib
from types import ModuleType

# Modules that notebooks imported from here before they had rooms.
_MOVED = {
    "scaling_fit": "laws.fit",
    "power_sums": "laws.power_sums",
    "frontier": "laws.frontier",
    "proposals": "laws.proposals",
    "ratio": "laws.ratio",
    "law_plots": "plots.laws",
    "ablation_plots": "plots.ablation",
    "curve_plots": "plots.curves",
    "sampling_plots": "plots.sampling",
}


def __getattr__(name: str) -> ModuleType:
    """A module by its former name."""
    if name in _MOVED:
        return importlib.import_module(f"scm_jax.analysis.{_MOVED[name]}")
    raise AttributeError(f"module 'scm_jax.analysis' has no attribute {name!r}")
