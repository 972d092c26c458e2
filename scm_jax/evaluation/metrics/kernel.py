"""Maximum mean discrepancy: the Kernel Inception Distance and the Gaussian kernel.

All estimates come with an interval for the discrepancy of the two distributions. Three
facts decide how it is made.

* The standard deviation over random subsets, which is printed beside most published
  kernel distances, is no interval: it is the error of 1,000 samples, not of all, and
  the subsets share their points.
* The bootstrap of a degenerate U-statistic is inconsistent, and the statistic is
  degenerate exactly where the two distributions are equal.
* Values of disjoint blocks are independent and unbiased whatever the distributions, so
  that their mean has an honest Student interval (the B-test, arXiv 1307.1954). The
  U-statistic over all points is the mean of this over all ways to cut blocks, hence has
  no larger variance (Rao-Blackwell).

So the error here is that of the mean over disjoint blocks, plus what is left from
choosing subsets at random: exact to first order where the distributions differ, too
wide where they are equal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from scipy.stats import t as student

Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]

# Disjoint blocks behind an interval: their least number, and the size aimed at.
MIN_BLOCKS, BLOCK_SIZE = 10, 1000
MIN_POINTS = 4 * MIN_BLOCKS

# Kernel values held at a time: 128 MiB in float64.
_VALUES_IN_MEMORY = 2**24


class Kid(NamedTuple):
    """Kernel distance.

    Attributes:
      value: mean over the subsets; unbiased, hence negative at times.
      std: standard deviation over the subsets, as published. No interval.
      low: lower end of the 95 % interval of the distance of the two distributions.
      high: its upper end.
    """

    value: float
    std: float
    low: float
    high: float


class Mmd(NamedTuple):
    """Squared discrepancy and the 95 % interval of that of the two distributions."""

    value: float
    low: float
    high: float


def cubic(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """``(x.y / d + 1)^3`` of all pairs, ``(n, m)`` (arXiv 1801.01401, Sec. 4)."""
    base = x @ y.T / x.shape[1] + 1
    return base * base * base  # numpy's power takes four times as long


def gaussian(sigma: float) -> Kernel:
    """``exp(-|x - y|^2 / (2 sigma^2))`` of all pairs."""
    if not sigma > 0:
        raise ValueError(f"sigma = {sigma}: must be above 0")

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        norms = (x**2).sum(1)[:, None] + (y**2).sum(1)[None]
        # Rounding can leave a point at a distance below 0 from itself.
        distances = np.maximum(norms - 2 * x @ y.T, 0)
        return np.exp(distances / (-2 * sigma**2))

    return kernel


def kid(
    real: np.ndarray,
    fake: np.ndarray,
    num_subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
) -> Kid:
    """Kernel Inception Distance: ``mmd2`` with ``cubic`` over random subsets.

    Args:
      real: ``(n, d)`` features.
      fake: ``(m, d)`` features.
      num_subsets: subsets, each drawn without replacement from both sets.
      subset_size: points of a subset on each side; a smaller set is used whole.
      seed: of the subsets.

    Raises:
      ValueError: different dimensions, values that are not finite, fewer than
        ``MIN_POINTS`` on a side, or settings out of range.
    """
    real, fake = _check(real, fake)
    for name, given in {"num_subsets": num_subsets, "subset_size": subset_size}.items():
        if given < 2:
            raise ValueError(f"{name} = {given}: must be at least 2")
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(num_subsets):
        x, y = (
            points[rng.choice(len(points), min(subset_size, len(points)), False)]
            for points in (real, fake)
        )
        values.append(mmd2(x, y, cubic))
    value, std = float(np.mean(values)), float(np.std(values, ddof=1))
    margin = _margin(real, fake, cubic, seed, std / np.sqrt(num_subsets))
    return Kid(value, std, value - margin, value + margin)


def rbf_mmd(
    real: np.ndarray,
    fake: np.ndarray,
    sigma: float = 10.0,
    *,
    biased: bool = False,
    scale: float = 1.0,
    seed: int = 0,
) -> Mmd:
    """Squared discrepancy of all points with the ``gaussian`` kernel.

    ``sigma=10, biased=True, scale=1000`` on normalized CLIP embeddings is CMMD (arXiv
    2401.09603). The biased form, with the pairs of each point with itself, exceeds the
    unbiased one by about ``(1 - mean k) (1/n + 1/m)``. The interval is always for the
    distributions, around the unbiased form: for few samples the biased value lies
    above it.

    Args:
      real: ``(n, d)`` features.
      fake: ``(m, d)`` features.
      sigma: width of the kernel.
      biased: whether pairs of a point with itself count.
      scale: factor of all three results.
      seed: of the blocks behind the interval.

    Raises:
      ValueError: see ``kid``.
    """
    real, fake = _check(real, fake)
    kernel = gaussian(sigma)
    unbiased, with_self = _both_forms(real, fake, kernel)
    margin = _margin(real, fake, kernel, seed, 0.0)
    return Mmd(
        scale * (with_self if biased else unbiased),
        scale * (unbiased - margin),
        scale * (unbiased + margin),
    )


def mmd2(
    x: np.ndarray, y: np.ndarray, kernel: Kernel, *, biased: bool = False
) -> float:
    """Squared maximum mean discrepancy (Gretton et al., JMLR 2012, Eqs. 3 and 5).

    ``mean k(x, x') + mean k(y, y') - 2 mean k(x, y)``; unless ``biased``, the first two
    means leave out the pairs of a point with itself.

    Example:
      >>> points = np.array([[0.0], [1.0]])
      >>> mmd2(points, points, cubic), mmd2(points, points, cubic, biased=True)
      (-3.5, 0.0)
    """
    return _both_forms(x, y, kernel)[biased]


def _both_forms(x: np.ndarray, y: np.ndarray, kernel: Kernel) -> tuple[float, float]:
    """``mmd2`` without and with the pairs of a point with itself."""
    x, y = x.astype(np.float64, copy=False), y.astype(np.float64, copy=False)
    cross, _ = _sums(x, y, kernel)
    unbiased = biased = -2 * cross / (len(x) * len(y))
    for points in (x, y):
        n = len(points)
        every, itself = _sums(points, points, kernel)
        unbiased += (every - itself) / (n * (n - 1))
        biased += every / n**2
    return unbiased, biased


def _sums(x: np.ndarray, y: np.ndarray, kernel: Kernel) -> tuple[float, float]:
    """Sums of the kernel over all pairs, and over the pairs of equal index."""
    rows = max(1, _VALUES_IN_MEMORY // len(y))
    every = equal = 0.0
    for i in range(0, len(x), rows):
        values = kernel(x[i : i + rows], y)
        every += float(values.sum())
        equal += float(np.trace(values, offset=i))
    return every, equal


def _margin(
    real: np.ndarray,
    fake: np.ndarray,
    kernel: Kernel,
    seed: int,
    subset_error: float,
) -> float:
    """Half the width of the 95 % interval; see the top of the file."""
    values = [mmd2(x, y, kernel) for x, y in _blocks(real, fake, seed)]
    variance = np.var(values, ddof=1) / len(values) + subset_error**2
    return float(student.ppf(0.975, len(values) - 1) * np.sqrt(variance))


def _blocks(
    real: np.ndarray, fake: np.ndarray, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Both sets, shuffled and cut into equally many disjoint blocks."""
    rng = np.random.default_rng(seed)
    sizes = len(real), len(fake)
    count = max(MIN_BLOCKS, min(-(-max(sizes) // BLOCK_SIZE), min(sizes) // 4))
    cut = [np.array_split(rng.permutation(len(x)), count) for x in (real, fake)]
    for rows, columns in zip(*cut, strict=True):
        yield real[rows], fake[columns]


def _check(real: np.ndarray, fake: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    real, fake = np.asarray(real), np.asarray(fake)
    if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1]:
        raise ValueError(f"features have shapes {real.shape} and {fake.shape}")
    if not (np.isfinite(real).all() and np.isfinite(fake).all()):
        raise ValueError("features hold values that are not finite")
    if min(len(real), len(fake)) < MIN_POINTS:
        raise ValueError(
            f"{len(real)} and {len(fake)} features: an interval needs {MIN_POINTS}"
            " or more on each side"
        )
    return real, fake
