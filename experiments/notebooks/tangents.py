# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Tangents, learned weights and instability
#
# What the target of consistency training does over time and over training: its norm by
# TrigFlow time, the weight that was learned for it, and where a training jumped. Runs
# of any sweep with consistency models.

# %%
import os

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import scm_jax
from scm_jax.analysis.plots import curves as curve_plots
from scm_jax.analysis.tables import settings

# %% [markdown]
# Which sweep (`SCM_JAX_ROOT` overrides it), and which students.

# %% tags=["parameters"]
ROOT = os.environ.get("SCM_JAX_ROOT", "runs/ablate_stabilizers")
OBJECTIVES = ("sct", "scd")
BINS = ("bins/tangent_norm", "bins/log_weight")
NUM_SETTINGS = 3

# %%
runs = scm_jax.load_runs(ROOT)
runs = runs[runs["objective"].isin(OBJECTIVES)]
curves = scm_jax.load_metrics(ROOT, ["loss", "grad_norm", *BINS], list(runs.index))
names = settings.setting_names(runs, [*settings.varying_keys(runs)])
first = {name: run for run, name in reversed(names.items())}
print(runs["state"].value_counts().to_string())

# %% [markdown]
# ## By time, over training
#
# The norm of the raw tangent, before it is normalized, and the learned log-weight
# `w(t)`: left a line for each bin of t over training, right a line for each fifth of
# the training over t. The first run of some settings.

# %%
for name, run in list(first.items())[:NUM_SETTINGS]:
    own = curves[curves["run_id"] == run]
    for column in BINS:
        values = curve_plots.bin_values(own, column)[1]
        if not np.nanmax(np.abs(values)) > 0:
            print(f"{name}: {column} is 0, as this objective has none")
            continue
        figure, axes = plt.subplots(1, 2, figsize=(12, 3.8))
        for x, ax in zip(("images", "t"), axes, strict=True):
            curve_plots.plot_bins(own, column, x=x, axes=ax)
        figure.suptitle(f"{name} ({run})", fontsize=9)
        figure.tight_layout()
        plt.show()

# %% [markdown]
# ## Instability
#
# A spike is a gradient norm of more than three times the median of the twenty logged
# values before it. How many there are, by setting and summed over its seeds:

# %%
spikes = curve_plots.spikes(curves, "grad_norm")
settings = runs.assign(setting=names).groupby("setting").groups
pd.DataFrame(
    {
        "runs": {name: len(ids) for name, ids in settings.items()},
        "spikes": {
            name: int((spikes["run_id"].isin(ids) & spikes["finite"]).sum())
            for name, ids in settings.items()
        },
        "not finite": {
            name: int((spikes["run_id"].isin(ids) & ~spikes["finite"]).sum())
            for name, ids in settings.items()
        },
    }
)

# %%
shown = list(first.values())[:NUM_SETTINGS]
axes = plt.subplots(figsize=(9, 4))[1]
curve_plots.plot_spikes(curves[curves["run_id"].isin(shown)], "grad_norm", axes=axes)
plt.show()
