"""Synthetic studies with a known law."""

import os

import numpy as np

from scm_jax.analysis.laws.law import ChinchillaLaw, FlopsPerImage, Points

LAW = ChinchillaLaw(E=0.4, A=60.0, B=900.0, a=0.45, b=0.55)
COST = FlopsPerImage(12.0, 0.9)
# Coverage is measured over a few studies in the suite, over all of them every night.
NIGHTLY = "SCM_JAX_NIGHTLY" in os.environ

# Runs of ``study(seeds=1)`` and what their loss is multiplied with: the largest size at
# the smallest budget and the smallest at the largest carry the law, one lies inside.
DIVERGED = [(4, 500.0), (15, 2.0), (12, 50.0), (15, 0.02)]


def study(seeds=2, noise=0.0, seed=0, sizes=5, budgets=4):
    """N, D, FLOPs and loss of a grid of sizes and budgets, some seeds of each."""
    n, c = np.meshgrid(np.geomspace(3e4, 5e5, sizes), np.geomspace(2e11, 5e12, budgets))
    n, c = np.repeat(n.ravel(), seeds), np.repeat(c.ravel(), seeds)
    d = c / COST(n)
    rng = np.random.default_rng(seed)
    return n, d, c, LAW(n, d) * np.exp(noise * rng.normal(size=n.shape))


def measured(**settings):
    """The same as points of a law."""
    n, d, _, loss = study(**settings)
    return Points.of(ChinchillaLaw, loss, n, d)


def values(law):
    """The five numbers of a law."""
    return np.array([law.E, law.A, law.B, law.a, law.b])
