"""Feature statistics and the Frechet distance, in float64 on the host."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class FeatureStats:
    """Count, mean and centred second moments of a set of features; mergeable.

    Attributes:
      count: number of features seen.
      mean: ``(d,)`` float64.
      scatter: ``(d, d)`` float64, the sum of ``(x - mean)(x - mean)^T``.
    """

    count: int
    mean: np.ndarray
    # Centred, because raw sums of squares lose all digits when the mean is large.
    scatter: np.ndarray

    @property
    def covariance(self) -> np.ndarray:
        """Unbiased covariance ``scatter / (count - 1)``, ``(d, d)``."""
        if self.count < 2:
            raise ValueError(f"a covariance needs 2 features or more, got {self.count}")
        return self.scatter / (self.count - 1)


def empty_stats(dim: int) -> FeatureStats:
    """Statistics of no features: the neutral element of ``merge_stats``."""
    return FeatureStats(0, np.zeros(dim), np.zeros((dim, dim)))


def feature_stats(features: np.ndarray) -> FeatureStats:
    """Statistics of ``(n, d)`` features.

    Example:
      >>> feature_stats(np.array([[1.0, 0.0], [3.0, 0.0]])).covariance.tolist()
      [[2.0, 0.0], [0.0, 0.0]]

    Raises:
      ValueError: not two axes, or values that are not finite.
    """
    features = np.asarray(features, np.float64)
    check_features(features)
    if not len(features):
        return empty_stats(features.shape[1])
    mean = features.mean(0)
    centred = features - mean
    return FeatureStats(len(features), mean, centred.T @ centred)


def check_features(*sets: np.ndarray) -> None:
    """Raises ValueError unless all are ``(n, d)`` of one ``d``, and finite."""
    shapes = [np.shape(x) for x in sets]
    if any(len(shape) != 2 or shape[1] != shapes[0][-1] for shape in shapes):
        found = " and ".join(map(str, shapes))
        raise ValueError(f"features have shape {found}: expected (n, d) with one d")
    if not all(np.isfinite(x).all() for x in sets):
        raise ValueError("features hold values that are not finite")


def merge_stats(a: FeatureStats, b: FeatureStats) -> FeatureStats:
    """Statistics of the union of two disjoint sets (Chan, Golub and LeVeque, 1979)."""
    _check_dimensions(a.mean, b.mean)
    count = a.count + b.count
    if not count:
        return a
    shift = b.mean - a.mean
    mean = a.mean + shift * (b.count / count)
    between = np.outer(shift, shift) * (a.count * b.count / count)
    return FeatureStats(count, mean, a.scatter + b.scatter + between)


def gaussian_frechet(
    mean_a: np.ndarray, cov_a: np.ndarray, mean_b: np.ndarray, cov_b: np.ndarray
) -> float:
    """``|mean_a - mean_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2)`` (1706.08500, Eq. 6).

    Example:
      >>> gaussian_frechet(np.zeros(1), np.eye(1), np.ones(1), 4 * np.eye(1))
      2.0

    Args:
      mean_a, mean_b: ``(d,)``.
      cov_a, cov_b: ``(d, d)``, symmetric, positive semi-definite; may lack full rank.

    Raises:
      ValueError: different dimensions, or values that are not finite.
    """
    _check_dimensions(mean_a, mean_b)
    mean_a, cov_a, mean_b, cov_b = (
        np.asarray(v, np.float64) for v in (mean_a, cov_a, mean_b, cov_b)
    )
    if not all(np.isfinite(v).all() for v in (mean_a, cov_a, mean_b, cov_b)):
        raise ValueError("feature statistics hold values that are not finite")
    # The trace of the root is the sum of the singular values of A^1/2 B^1/2. The
    # eigenvalues of A^1/2 B A^1/2 are their squares: an error of eps in each leaves
    # 1e-8 after the root, which is more than the distance of two similar Gaussians
    # whose spectra fall over ten decades.
    product = _root(cov_a).T @ _root(cov_b)
    trace_root = np.linalg.svd(product, compute_uv=False).sum()
    distance = ((mean_a - mean_b) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b)
    # Rounding can leave two equal Gaussians at -1e-14.
    return max(float(distance - 2 * trace_root), 0.0)


def feature_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Squared Frechet distance of two sets of features, ``(n, d)`` and ``(m, d)``."""
    x, y = feature_stats(a), feature_stats(b)
    return gaussian_frechet(x.mean, x.covariance, y.mean, y.covariance)


def halves_floor(features: np.ndarray, num_splits: int = 10) -> tuple[float, float]:
    """Frechet distance of two random halves of one set: the scale of "no difference".

    The distance of finite samples of one distribution is about proportional to
    ``1/n + 1/m``. A perfect sampler with as many samples as ``features`` therefore
    scores about half of this floor, or less if its class proportions are exact.

    Args:
      features: ``(n, d)`` features of real data.
      num_splits: number of random splits.

    Returns:
      Mean and standard deviation over the splits.
    """
    rng = np.random.default_rng(0)  # fixed, so that all rows have the same floor
    half = len(features) // 2
    distances = []
    for _ in range(num_splits):
        order = rng.permutation(len(features))
        halves = features[order[:half]], features[order[half:]]
        distances.append(feature_distance(*halves))
    return float(np.mean(distances)), sample_std(distances)


def sample_std(values: list[float]) -> float:
    """Unbiased standard deviation of a few numbers; 0 for a single one."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def _root(covariance: np.ndarray) -> np.ndarray:
    """A matrix ``R`` with ``R R^T = covariance``: eigenvectors, scaled."""
    eigenvalues, vectors = np.linalg.eigh(covariance)
    # What is left out is rounding: its square roots would be 1e-8. A few samples in
    # many dimensions leave few columns.
    largest = np.max(eigenvalues, initial=0.0)
    kept = eigenvalues > len(eigenvalues) * np.finfo(np.float64).eps * largest
    return np.sqrt(eigenvalues[kept]) * vectors[:, kept]


def _check_dimensions(mean_a: np.ndarray, mean_b: np.ndarray) -> None:
    if np.shape(mean_a) != np.shape(mean_b):
        raise ValueError(
            f"features of {np.shape(mean_a)} and {np.shape(mean_b)} cannot be compared:"
            " use one extractor for both"
        )
