"""Time and error of the Frechet distance at the size of Inception features.

    python -m benchmarks.frechet [--quick] [--no-sqrtm]

Two covariances with a common basis, whose distance has a closed form, and two of random
features of fewer items than dimensions. ``scipy.linalg.sqrtm`` of the product, which
most published numbers come from, is timed on the first pair beside it.
"""

from __future__ import annotations

import argparse

import numpy as np
import scipy.linalg

from benchmarks import common
from scm_jax.evaluation.metrics import frechet

DIM, QUICK_DIM = 2048, 256
LIMIT_SECONDS = 60


def commuting(dim: int) -> tuple[tuple[np.ndarray, ...], float]:
    """Moments of two Gaussians with spectra over eight decades; their distance."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
    a, b = np.logspace(0, -8, dim), rng.permutation(np.logspace(0.3, -7.7, dim))
    mean_a, mean_b = 0.1 * rng.standard_normal((2, dim))
    exact = ((mean_a - mean_b) ** 2).sum() + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    moments = mean_a, (basis * a) @ basis.T, mean_b, (basis * b) @ basis.T
    return moments, float(exact)


def rank_deficient(dim: int) -> tuple[tuple[np.ndarray, ...], float]:
    """Moments of two sets of ``dim / 4`` features; their distance by the small side."""
    x, y = np.abs(np.random.default_rng(1).standard_normal((2, dim // 4, dim)))
    y += 0.1
    (stats_x, stats_y), scale = map(frechet.feature_stats, (x, y)), dim // 4 - 1
    centred_x, centred_y = x - stats_x.mean, y - stats_y.mean
    cross = np.linalg.svd(centred_x @ centred_y.T, compute_uv=False).sum()
    traces = (centred_x**2).sum() + (centred_y**2).sum() - 2 * cross
    exact = ((stats_x.mean - stats_y.mean) ** 2).sum() + traces / scale
    moments = stats_x.mean, stats_x.covariance, stats_y.mean, stats_y.covariance
    return moments, float(exact)


def by_sqrtm(
    mean_a: np.ndarray, cov_a: np.ndarray, mean_b: np.ndarray, cov_b: np.ndarray
) -> float:
    """The same distance by the root of a product that is not symmetric."""
    root = scipy.linalg.sqrtm(cov_a @ cov_b)
    distance = ((mean_a - mean_b) ** 2).sum() + np.trace(cov_a + cov_b)
    return float(distance - 2 * np.trace(root).real)


def measure(name, distance, moments, exact, repeats: int) -> float:
    """Emits one line; seconds of the median call."""
    values = []
    seconds = common.seconds(
        lambda: values.append(distance(*moments)), repeats, warmup=0
    )
    common.emit(
        benchmark="frechet",
        case=name,
        dim=len(moments[0]),
        seconds=seconds,
        relative_error=abs(values[0] / exact - 1),
    )
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_DIM} dimensions")
    parser.add_argument("--no-sqrtm", action="store_true", help="leave scipy out")
    args = parser.parse_args()
    dim = QUICK_DIM if args.quick else DIM
    case, deficient = commuting(dim), rank_deficient(dim)
    ours = measure("commuting", frechet.gaussian_frechet, *case, repeats=3)
    measure("rank deficient", frechet.gaussian_frechet, *deficient, repeats=3)
    if not args.no_sqrtm:
        theirs = measure("commuting, sqrtm", by_sqrtm, *case, repeats=1)
        common.ratio("frechet / scipy sqrtm, seconds", ours / theirs, limit=1.0)
    if not args.quick:
        common.ratio("frechet, seconds / 60", ours / LIMIT_SECONDS, limit=1.0)


if __name__ == "__main__":
    main()
