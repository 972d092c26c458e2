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
# # Getting started: a teacher, a two-step student and an ablation
#
# Handwritten digits, five minutes on two CPU cores. Copy this notebook and change it:
# every cell works in the same way for the larger experiments. Training resumes where it
# stopped, so a cell can be interrupted and run again.

# %%
import os
import pathlib

import matplotlib.pyplot as plt

import scm_jax
from scm_jax.analysis.ablation.compare import compare
from scm_jax.analysis.plots.curves import plot_bins, plot_curves
from scm_jax.runs.estimate.describe import describe
from scm_jax.sweeps.plan.sweep_file import load_module

# %% tags=["parameters"]
ROOT = pathlib.Path(os.environ.get("SCM_JAX_ROOT", "runs/getting_started"))
TEACHER_STEPS, STUDENT_STEPS, SEEDS = 650, 600, (0, 1)

# %% [markdown]
# ## A config
#
# An experiment file is plain Python. Its argument names a variant, and what it returns
# is an ordinary `ConfigDict`: print it, change it. A misspelled key is an error.

# %%
digits = load_module("experiments/digits.py")
config = digits.get_config("teacher")
config.train.duration_images = TEACHER_STEPS * config.train.batch_size
config.optimizer.decay_images = float(config.train.duration_images)
print(config.network, config.objective, sep="\n")

# %% [markdown]
# What it costs is counted on the traced program before anything is trained.

# %%
estimate = describe(config)
print(f"{estimate['parameters']:,} parameters")
print(f"{estimate['train_macs_per_image'] / 1e6:.1f} M multiply-adds per image")

# %% [markdown]
# ## A diffusion teacher
#
# A run is a directory: config, metrics, checkpoints, results. The object reads it fresh
# at every access, also while another process trains it.

# %%
scm_jax.train_and_evaluate(config, ROOT / "teacher")
teacher = scm_jax.load_run(ROOT / "teacher")
teacher.metrics[["images", "loss", "grad_norm"]].tail(3)

# %% [markdown]
# Eighteen Heun steps, 35 network evaluations per image:

# %%
teacher.sample(num=20, steps=18, seed=0)

# %% [markdown]
# ## Students: consistency training, with and without one stabilizer
#
# Each starts from the teacher's EMA. The paper normalizes the tangent; the other arm
# clips it. Two seeds each, the same for both arms.

# %%
for normalization in ("l2", "clip"):
    for seed in SEEDS:
        config = digits.get_config("sct")
        config.seed = seed
        config.init.run = str(ROOT / "teacher")
        config.objective.tangent_normalization = normalization
        config.train.duration_images = STUDENT_STEPS * config.train.batch_size
        config.optimizer.decay_images = float(config.train.duration_images)
        scm_jax.train_and_evaluate(config, ROOT / f"sct_{normalization}_{seed}")

# %% [markdown]
# One step, then two steps from the same noise:

# %%
student = scm_jax.load_run(ROOT / "sct_l2_0")
student.sample(num=20, steps=1, seed=0)

# %%
student.sample(num=20, steps=2, seed=0)

# %% [markdown]
# ## All runs as one table

# %%
runs = scm_jax.load_runs(ROOT)
keys = ["objective", "seed", "objective.tangent_normalization"]
runs[[*keys, "parameters", "device_hours", "2_steps/frechet_distance"]]

# %% [markdown]
# ## The ablation
#
# Differences are taken between runs of the same seed. Two seeds leave one degree of
# freedom, so the interval is wide: add seeds before you believe a difference.

# %%
students = runs[runs["objective"] == "sct"]
compare(
    students,
    "2_steps/frechet_distance",
    baseline={"objective.tangent_normalization": "l2"},
)

# %% [markdown]
# ## Curves
#
# A line per setting, a band over its seeds; and the tangent's norm over time t, which
# is where consistency training becomes unstable.

# %%
curves = scm_jax.load_metrics(ROOT, ["loss", "bins/tangent_norm"], list(students.index))
figure, axes = plt.subplots(1, 2, figsize=(12, 4))
plot_curves(curves, "loss", students, x="images", axes=axes[0])
one = curves[curves["run_id"] == students.index[0]]
plot_bins(one, "bins/tangent_norm", axes=axes[1])
figure.tight_layout()
plt.show()

# %% [markdown]
# ## Next
#
# The same from the shell, resumable and on a cluster: `docs/commands.md`,
# `docs/sweeps.md`. What each column and interval means: `docs/analysis.md`.
