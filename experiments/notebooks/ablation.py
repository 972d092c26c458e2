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
# # What each switch changes
#
# Runs of `experiments/sweeps/ablate_stabilizers.py`, or of any other sweep that
# switches something off over several seeds. Nothing is trained here: the cells read
# what the runs have left.

# %%
import os

import matplotlib.pyplot as plt

import scm_jax
from scm_jax.analysis.ablation import compare
from scm_jax.analysis.plots import ablation as ablation_plots
from scm_jax.analysis.plots import curves as curve_plots
from scm_jax.analysis.tables import settings

# %% [markdown]
# Which sweep (`SCM_JAX_ROOT` overrides it), which students, and which results.

# %% tags=["parameters"]
ROOT = os.environ.get("SCM_JAX_ROOT", "runs/ablate_stabilizers")
OBJECTIVE = "sct"
METRICS = ("1_steps/frechet_distance", "2_steps/frechet_distance")
CURVE = "loss"

# %% [markdown]
# ## What is there
#
# A comparison of the runs that happened to survive is another comparison: states first.

# %%
every = scm_jax.load_runs(ROOT)
runs = every[every["objective"] == OBJECTIVE]
print(runs["state"].value_counts().to_string())
print("duplicates:", runs["duplicate_of"].notna().sum())
print("commits:", ", ".join(sorted(set(runs["commit"].dropna()))))

# %% [markdown]
# The keys that were switched; all others are the same in all of these runs.

# %%
switches = settings.varying_keys(runs)
runs[["seed", "state", *switches]].fillna("–")

# %% [markdown]
# ## Differences by pairs of a seed
#
# Each run is compared with the baseline run of its own seed. Below a table stands how
# to read it; with three seeds an interval is wide, and honestly so.

# %%
found = {metric: compare.compare(runs, metric) for metric in METRICS}
found[METRICS[0]]

# %%
found[METRICS[1]]

# %% [markdown]
# As ratios, since one arm may be a hundred times as far off as another:

# %%
figure, axes = plt.subplots(len(METRICS), 1, figsize=(9, 3.2 * len(METRICS)))
for metric, ax in zip(METRICS, axes, strict=True):
    ablation_plots.plot_ablation(found[metric], ratio=True, axes=ax)
figure.tight_layout()
plt.show()

# %% [markdown]
# All numbers, with the bootstrap beside the t interval:

# %%
found[METRICS[-1]].to_frame().transpose()

# %% [markdown]
# ## For a paper

# %%
print(found[METRICS[-1]].to_latex())

# %% [markdown]
# ## During training
#
# Lines are means over seeds, bands reach from the least to the greatest. The losses of
# different weightings or tangents are different quantities: compare shapes, not
# heights.

# %%
curves = scm_jax.load_metrics(ROOT, [CURVE], list(runs.index))
figure, axes = plt.subplots(1, 2, figsize=(13, 4.2))
for x, ax in zip(("images", "flops"), axes, strict=True):
    curve_plots.plot_curves(curves, CURVE, runs, x=x, axes=ax)
figure.tight_layout()
plt.show()
