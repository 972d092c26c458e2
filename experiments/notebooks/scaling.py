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
# # From an isoFLOP sweep to a law and a prediction
#
# Runs of `experiments/sweeps/isoflop_digits.py`, or of any other sweep over sizes and
# budgets. Nothing is trained here: the cells read what the runs have left.

# %%
import os

import matplotlib.pyplot as plt

import scm_jax
from scm_jax.analysis.laws import fit as scaling_fit
from scm_jax.analysis.laws import frontier, proposals, ratio
from scm_jax.analysis.plots import laws as law_plots

# %% [markdown]
# Which sweep (`SCM_JAX_ROOT` overrides it), which column is the loss of the laws, and
# which ones compare students with teachers. A law needs an error at fixed data, noise
# and times: it changes with the parameters alone, while samples have noise of their
# own. Errors of sCT and sCD are not to be compared with each other.

# %% tags=["parameters"]
ROOT = os.environ.get("SCM_JAX_ROOT", "runs/isoflop_digits")
LOSS = "1_steps/validation_error"
QUALITY = "2_steps/frechet_distance"
TEACHER_QUALITY = "18_steps/frechet_distance"

# %% [markdown]
# ## What is there
#
# States first: a law of half a sweep is another law.

# %%
runs = scm_jax.load_runs(ROOT)
print(runs["state"].value_counts().to_string())
print(
    f"{runs['device_hours'].sum():.2f} device hours on {set(runs['device'].dropna())}"
)

# %%
students = runs[runs["objective"].isin(["sct", "scd"])]
budgets = [f"{flops:.1e} FLOPs" for flops in students["flops"]]
sizes = students.assign(budget=budgets).groupby(["objective", "parameters", "budget"])

# %% [markdown]
# Means over seeds of the loss that is fitted, and of the quality of samples:

# %%
sizes[LOSS].mean().unstack().map("{:.4g}".format)

# %%
sizes[QUALITY].mean().unstack().map("{:.4g}".format)

# %% [markdown]
# ## The laws
#
# `L = E + A / N^a + B / D^b` over parameters N and training images D, by variable
# projection and a Huber loss on log L; intervals by a bootstrap over configurations.
# FLOPs per image are counted, not 6N. The last line of each block is the one to look at
# first: what the law without the largest budget says about it.

# %%
kinds = [k for k in ("sct", "scd") if (students["objective"] == k).any()]
fits = {
    kind: scaling_fit.fit_scaling(students[students["objective"] == kind], LOSS)
    for kind in kinds
}
for kind, fit in fits.items():
    print(f"{kind}\n{fit}\n")

# %% [markdown]
# The same for the distance of samples, which is what one wants to know in the end:

# %%
for kind in kinds:
    rows = students[students["objective"] == kind]
    print(f"{kind}\n{scaling_fit.fit_scaling(rows, QUALITY)}\n")


# %%
def panels(draw, title):
    """One panel per kind of student."""
    figure, axes = plt.subplots(
        1, len(fits), figsize=(6 * len(fits), 4.2), squeeze=False
    )
    for ax, (kind, fit) in zip(axes[0], fits.items(), strict=True):
        draw(fit, ax)
        ax.set_title(f"{kind}: {title}", fontsize=10)
    figure.tight_layout()
    plt.show()


panels(lambda fit, ax: law_plots.plot_law(fit, axes=ax), "runs and law")

# %%
panels(lambda fit, ax: law_plots.plot_residuals(fit, axes=ax), "what the law misses")

# %% [markdown]
# ## Valleys of equal compute
#
# The second approach needs no law over D: at each budget a parabola in log N. A lowest
# point at the edge of the sizes is no optimum, and is said to be none.

# %%
panels(
    lambda fit, ax: fit.isoflop and law_plots.plot_isoflop(fit.isoflop, LOSS, axes=ax),
    "equal compute",
)

# %%
panels(lambda fit, ax: law_plots.plot_optimum(fit, axes=ax), "optimal size")

# %% [markdown]
# ## Is it worth anything? The largest budget, predicted from the others

# %%
panels(
    lambda fit, ax: (
        fit.extrapolation
        and law_plots.plot_extrapolation(fit.extrapolation, LOSS, axes=ax)
    ),
    "largest budget left out",
)
for kind, fit in fits.items():
    best = fit.optimum(10 * fit.flops.max())
    print(f"{kind}, ten times the largest budget: ", end="")
    print(", ".join(f"{name} {value}" for name, value in best.items()))

# %% [markdown]
# ## Student and teacher
#
# How much worse than its teacher is a student of its size, and does that change with
# size? Grey: the paper's sCD with two steps on ImageNet 512, refitted from its table.

# %%
has_teachers = TEACHER_QUALITY in runs and runs["teacher_id"].isin(runs.index).any()
own = None
if has_teachers:
    longest = runs["flops"] == runs.groupby(["objective", "parameters"])[
        "flops"
    ].transform("max")
    own = ratio.ratio_by_size(runs[longest], QUALITY, TEACHER_QUALITY)
    print(f"these runs, longest of each size: ratio {own.ratio}, slope {own.slope}")
paper = ratio.published_ratio("imagenet512", "fid")
print(f"paper, ImageNet 512, FID: ratio {paper.ratio}, slope {paper.slope}")
law_plots.plot_ratio(own, {"sCD, 2 steps (paper)": paper}, axes=plt.subplots()[1])
plt.show()

# %% [markdown]
# ## What a sample costs

# %%
metric = QUALITY.partition("/")[2]
figure, axes = plt.subplots(1, 2, figsize=(12, 4.2))
points = frontier.sampling_points(students, metric)
law_plots.plot_frontier(points, "sampling_compute", metric, axes=axes[0])
law_plots.plot_frontier(students, "flops", QUALITY, axes=axes[1])
figure.tight_layout()
plt.show()

# %% [markdown]
# ## What to run next
#
# Half of the budget around the predicted optimum of a larger budget, half where a run
# tells most about it. `write_proposals` makes a sweep file of it.

# %%
kind = kinds[0]
rows = students[students["objective"] == kind].drop_duplicates("parameters")
candidates = [
    proposals.Candidate(row["parameters"], {"network.width": int(row["network.width"])})
    for _, row in rows.iterrows()
]
budget = 10 * fits[kind].flops.max()
try:
    for run in proposals.propose(fits[kind], candidates, budget):
        print(
            f"{run.candidate.parameters:9,.0f} parameters  {run.flops:.2e} FLOPs  "
            f"seed {run.seed}  loss {run.expected_loss:.3g} expected  ({run.reason})"
        )
except ValueError as error:  # a fit that is too poor to propose anything
    print(f"no proposal: {error}")
