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
# # Which few-step method?
#
# Runs of `experiments/sweeps/methods.py`: the same network, batch and data, equal
# training FLOPs. Nothing is trained here: the cells read what the runs have left.

# %%
import os

import matplotlib.pyplot as plt
import pandas as pd

import scm_jax
from scm_jax.analysis.ablation import compare, statistics
from scm_jax.analysis.plots import ablation as ablation_plots
from scm_jax.analysis.plots import axes as style

# %% [markdown]
# Which sweep (`SCM_JAX_ROOT` overrides it), and which metric.

# %% tags=["parameters"]
ROOT = os.environ.get("SCM_JAX_ROOT", "docs/methods_digits")
METRIC = "frechet_distance"
STEPS = (1, 2, 4, 8)

# %% [markdown]
# ## What is there
#
# A student's budget is a number of diffusion steps that cost as much. The teacher's own
# training is a row of its own: add it to the distilled methods for a comparison from
# nothing.

# %%
every = scm_jax.load_runs(ROOT)
print(every["state"].value_counts().to_string())
runs = every[every["state"] == "done"].copy()
tags = runs["tags"].map(list)
runs["track"] = tags.map(lambda names: names[0])
students = runs[runs["track"] != "teacher"].copy()
students["method"] = tags.map(lambda names: names[1:2]).str[0]
students["budget"] = tags.map(lambda names: names[2:3]).str[0]
teacher = runs[runs["track"] == "teacher"].iloc[0]
budgets = sorted(students["budget"].unique(), key=lambda name: int(name.split("_")[1]))
flops = students.groupby("budget")["flops"].mean()
print({name: f"{flops[name]:.3g} FLOPs" for name in budgets})
shown = {k: teacher[k] for k in teacher.index if k.endswith(f"steps/{METRIC}")}
print(f"teacher, {teacher['flops']:.3g} FLOPs:", pd.Series(shown).dropna().to_dict())
students.groupby(["track", "budget"]).size().unstack()

# %% [markdown]
# ## Mean over seeds, with 95 % intervals of Student's t

# %%
columns = {steps: f"{steps}_steps/{METRIC}" for steps in STEPS}


def table(budget: str) -> pd.DataFrame:
    """Texts, a row a method, those that are best in two steps first."""
    rows, chosen = {}, students[students["budget"] == budget]
    order = chosen.groupby(["track", "method"])[columns[2]].mean()
    order = order.sort_values().sort_index(level=0, sort_remaining=False)
    for key in order.index:
        group = chosen[(chosen["track"] == key[0]) & (chosen["method"] == key[1])]
        found = {n: statistics.estimate(group[c].dropna()) for n, c in columns.items()}
        rows[key] = {n: e.text() for n, e in found.items()}
        rows[key]["learning rate"] = group["optimizer.learning_rate"].iloc[0]
        for name in ("precision", "recall"):
            rows[key][f"{name} at 2"] = round(group[f"2_steps/{name}"].mean(), 2)
    return pd.DataFrame(rows).T


for budget in budgets:
    print(budget)
    display(table(budget))  # noqa: F821

# %% [markdown]
# ## More evaluations
#
# Lines are means over seeds, whiskers reach from the least to the greatest.

# %%
tracks = ("scratch", "distilled")
figure, grid = plt.subplots(len(budgets), 2, figsize=(13, 5 * len(budgets)))
for row, budget in zip(grid, budgets, strict=True):
    for ax, track in zip(row, tracks, strict=True):
        chosen = students[(students["budget"] == budget) & (students["track"] == track)]
        for number, (method, group) in enumerate(chosen.groupby("method", sort=False)):
            values = group[list(columns.values())].to_numpy(float)
            mean = values.mean(axis=0)
            ends = abs(pd.DataFrame([values.min(axis=0), values.max(axis=0)]) - mean)
            marks = {"label": method, "color": style.colour(number), "capsize": 2}
            marks["linestyle"] = "-" if number < len(style.COLOURS) else "--"
            ax.errorbar(STEPS, mean, ends, marker="o", markersize=4, **marks)
        ax.set(xscale="log", yscale="log", title=f"{track}, {budget}")
        style.plain_ticks(ax.xaxis, STEPS)
        style.plain_ticks(ax.yaxis)
        style.tidy(ax, "evaluations", METRIC.replace("_", " "), legend=True)
figure.tight_layout()
plt.show()

# %% [markdown]
# ## Differences by pairs of a seed
#
# Each method against one baseline of its track; the same seed is the same noise and
# order of data. With three pairs an interval is wide.

# %%
BASELINES = {"scratch": "sct", "distilled": "scd"}
for budget in budgets:
    for track, baseline in BASELINES.items():
        chosen = students[(students["budget"] == budget) & (students["track"] == track)]
        for steps in (1, 2):
            against = {"factors": ["method"], "baseline": {"method": baseline}}
            found = compare.compare(chosen, columns[steps], shared=[], **against)
            print(budget, track)
            display(found)  # noqa: F821

# %% [markdown]
# The large budget in two evaluations, in one picture:

# %%
figure, pair = plt.subplots(1, 2, figsize=(15, 3.6))
for ax, (track, baseline) in zip(pair, BASELINES.items(), strict=True):
    chosen = students[students["budget"] == budgets[-1]]
    chosen = chosen[(chosen["track"] == track) & (chosen["method"] != "scd_segments")]
    against = {"factors": ["method"], "baseline": {"method": baseline}}
    found = compare.compare(chosen, columns[2], shared=[], **against)
    ablation_plots.plot_ablation(found, axes=ax)
figure.tight_layout()
plt.show()

# %% [markdown]
# Eulerian or Lagrangian distillation, and what a critic adds:

# %%
for method, baseline in (("lmd", "emd"), ("dmd2", "scd"), ("rcm", "scd")):
    for budget in budgets:
        chosen = students[students["budget"] == budget]
        chosen = chosen[chosen["method"].isin((method, baseline))]
        for steps in STEPS:
            against = {"factors": ["method"], "baseline": {"method": baseline}}
            found = compare.compare(chosen, columns[steps], shared=[], **against)
            arm = found.arms[0]
            difference = arm.difference.text("+")
            print(f"{budget}, {steps} steps: {method} - {baseline} = {difference}")
