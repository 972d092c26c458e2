"""Inception Score from class logits (arXiv 1606.03498, Sec. 4)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import log_softmax

from scm_jax.evaluation.metrics.frechet import sample_std


class InceptionScore(NamedTuple):
    """Mean over the splits, and their unbiased standard deviation (0 for a single one).

    Most published deviations divide by the number of splits instead.
    """

    mean: float
    std: float


def inception_score(logits: np.ndarray, split_size: int = 5000) -> InceptionScore:
    """``exp(mean_x KL(p(y|x) || p(y)))`` of each split, with ``p(y)`` of that split.

    The published ImageNet numbers use the evaluator of arXiv 2105.05233: logits without
    the bias of the last layer, splits of 5,000 in the order of the samples, the last
    one shorter, and the mean over the splits. The score changes with the size of a
    split, and with the order of samples that are sorted by class.

    Example:
      >>> inception_score(np.diag([99.0, 99.0]))
      InceptionScore(mean=2.0, std=0.0)

    Args:
      logits: ``(n, classes)``, for Inception ``logits_unbiased`` with 1008 columns.
      split_size: samples in a split.

    Raises:
      ValueError: no samples, another shape, values that are not finite, or no split.
    """
    logits = np.asarray(logits)
    if logits.ndim != 2 or not logits.size:
        raise ValueError(f"logits have shape {logits.shape}: expected (n, classes)")
    if not np.isfinite(logits).all():
        raise ValueError("logits hold values that are not finite")
    if split_size < 1:
        raise ValueError(f"split_size = {split_size}: must be at least 1")
    splits = range(0, len(logits), split_size)
    scores = [_score(logits[i : i + split_size]) for i in splits]
    return InceptionScore(float(np.mean(scores)), sample_std(scores))


def _score(logits: np.ndarray) -> float:
    log_p = log_softmax(logits.astype(np.float64), axis=1)
    p = np.exp(log_p)
    marginal = p.mean(axis=0)
    # A class of probability 0 in every sample adds 0 log 0 = 0.
    log_marginal = np.log(np.where(marginal > 0, marginal, 1.0))
    divergence = (p * (log_p - log_marginal[None])).sum(axis=1)
    return float(np.exp(divergence.mean()))
