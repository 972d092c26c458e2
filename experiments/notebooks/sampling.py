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
# # How samples are drawn
#
# Quality against evaluations, guidance and intermediate time, and what the same noise
# becomes. Runs of `experiments/sweeps/sampling_times.py`, or any that were measured
# with `python -m scm_jax evaluate --run=... --steps=... --times=... --guidance=...`,
# and `--sampler=map,consistency` for a map with a second time.

# %%
import os

import matplotlib.pyplot as plt

import scm_jax
from scm_jax.analysis.plots import sampling

# %% [markdown]
# Which sweep (`SCM_JAX_ROOT` overrides it), which students, and which metric.

# %% tags=["parameters"]
ROOT = os.environ.get("SCM_JAX_ROOT", "runs/sampling_times")
OBJECTIVES = ("sct", "scd", "lagrangian")
METRIC = "frechet_distance"
STEPS = (1, 2, 4)
NUM = 8

# %% [markdown]
# ## What was measured

# %%
runs = scm_jax.load_runs(ROOT)
print(runs["state"].value_counts().to_string())
students = runs[runs["objective"].isin(OBJECTIVES)]
results = scm_jax.load_results(ROOT)
results = results.join(students[["objective"]], on="run_id", how="inner")
keys = ["objective", "sampler", "steps", "times", "guidance"]
results.groupby(keys, dropna=False)[METRIC].agg(["mean", "std", "count"])

# %% [markdown]
# ## Quality against each setting
#
# The sampler `consistency` goes to the data in each step and adds noise again, `map`
# goes from time to time in a chain.
#
# Whiskers reach over training seeds where there are several, else they are the standard
# deviation over sets of samples. A setting that was not swept has no picture.

# %%
for x in sampling.SETTINGS:
    try:
        lines = sampling.sampling_lines(results, METRIC, x, ["objective"])
    except ValueError as error:
        print(f"{x}: {error}")
        continue
    if max(map(len, lines.values())) < 2:
        print(f"{x}: measured at one point only")
        continue
    axes = plt.subplots(figsize=(7, 4))[1]
    sampling.plot_sampling(results, METRIC, x, by=["objective"], axes=axes)
    plt.show()

# %% [markdown]
# ## The same noise, more steps
#
# One run of each kind, the same seeds in every row: what further steps change, and what
# they leave.

# %%
for kind, group in students[students["state"] == "done"].groupby("objective"):
    run = scm_jax.load_run(group["path"].iloc[0])
    figure, axes = plt.subplots(len(STEPS), 1, figsize=(NUM, 1.2 * len(STEPS)))
    for steps, ax in zip(STEPS, axes, strict=True):
        picture = run.sample(NUM, steps=steps, seed=0).grid(columns=NUM)
        ax.imshow(picture, cmap="gray")
        ax.set_ylabel(f"{steps} step{'s' * (steps > 1)}", rotation=0, ha="right")
        ax.set(xticks=[], yticks=[])
    figure.suptitle(f"{kind}: {run.name}", fontsize=9)
    figure.tight_layout()
    plt.show()
