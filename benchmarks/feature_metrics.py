"""Time and memory of the metrics over features at the size of published tables.

    python -m benchmarks.feature_metrics [--quick]

10,000 real against 50,000 generated features of 2048 dimensions: positive, of lower
rank, with copies, as those of a good sampler. The last line compares the exact nearest
neighbours with the distances by ``scipy.spatial.distance.cdist``, on 2,000 of each.
"""

from __future__ import annotations

import argparse
import resource
from collections.abc import Callable

import numpy as np
from scipy.spatial.distance import cdist

from benchmarks import common
from scm_jax.evaluation.metrics import kernel, neighbours, wasserstein

SIZES, QUICK_SIZES = (10_000, 50_000, 2048), (500, 1_000, 256)
NUM_COMPARED = 2_000

METRICS: dict[str, Callable] = {
    "precision_recall": neighbours.precision_recall,
    "density_coverage": neighbours.density_coverage,
    "kid": kernel.kid,
    "mind": wasserstein.mind,
}


def features(num_real: int, num_fake: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Real features, and noisy copies of them, float32."""
    rng = np.random.default_rng(0)
    mix = 0.1 * rng.standard_normal((64, dim), np.float32)
    real = rng.standard_normal((num_real, 64), np.float32) @ mix + 0.4
    real += 0.1 * rng.standard_normal(real.shape, np.float32)
    fake = np.maximum(real, 0)[rng.integers(0, num_real, num_fake)]
    fake += 0.1 * rng.standard_normal(fake.shape, np.float32)
    return np.maximum(real, 0), np.maximum(fake, 0)


def by_cdist(real: np.ndarray, k: int = 3) -> np.ndarray:
    """Squared radii by the whole matrix of distances in float64."""
    distances = cdist(real.astype(np.float64), real.astype(np.float64), "sqeuclidean")
    np.fill_diagonal(distances, np.inf)
    return np.partition(distances, k - 1, axis=1)[:, k - 1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sets")
    args = parser.parse_args()
    sizes = QUICK_SIZES if args.quick else SIZES
    real, fake = features(*sizes)
    for name, metric in METRICS.items():
        results = []
        seconds = common.seconds(
            lambda metric=metric, results=results: results.append(metric(real, fake)),
            repeats=1,
            warmup=0,
        )
        common.emit(
            benchmark="feature_metrics",
            metric=name,
            num_real=sizes[0],
            num_fake=sizes[1],
            dim=sizes[2],
            seconds=seconds,
            peak_gigabytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
            result=results[0]._asdict(),
        )
    part = real[:NUM_COMPARED]
    ours, theirs = neighbours.neighbour_radii(part), by_cdist(part)
    times = common.paired(
        lambda: neighbours.neighbour_radii(part),
        lambda: by_cdist(part),
        repeats=3,
        warmup=0,
    )
    common.ratio(
        "neighbour radii / cdist, seconds",
        times.ratio,
        limit=1.0,
        largest_relative_difference=float(np.abs(ours / theirs - 1).max()),
    )


if __name__ == "__main__":
    main()
