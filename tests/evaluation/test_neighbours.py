"""Precision and recall on point sets whose answer is known by hand."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from scm_jax.evaluation.metrics import neighbours
from scm_jax.evaluation.metrics.neighbours import (
    covered,
    density_coverage,
    neighbour_radii,
    precision_recall,
)

LINE = np.arange(8.0)[:, None]


def test_radii_reach_the_kth_other_point():
    np.testing.assert_array_equal(neighbour_radii(LINE, 1), np.ones(8))
    # At the ends the third neighbour is 3 away, one further in 2.
    np.testing.assert_array_equal(neighbour_radii(LINE, 3), [9, 4, 4, 4, 4, 4, 4, 9])


def test_a_ball_is_closed():
    centres, radii = np.array([[0.0], [10.0]]), np.array([4.0, 1.0])
    points = np.array([[2.0], [-2.0], [2.1], [9.0], [11.1]])
    expected = [True, True, False, True, False]
    np.testing.assert_array_equal(covered(points, centres, radii), expected)


def test_a_lost_mode_costs_recall_and_an_invented_one_precision():
    left, right = np.random.default_rng(1).normal(
        ([[-50, 0]], [[50, 0]]), 1, (2, 40, 2)
    )
    both = np.concatenate([left, right])
    assert precision_recall(both, left) == (1, 0.5)
    assert precision_recall(left, both) == (0.5, 1)


def test_duplicates_are_neighbours():
    # Far from the origin, where |a|^2 + |b|^2 - 2ab would not give 0 for copies.
    copies = np.full((5, 3), 1e4) + np.array([0.1, 0.2, 0.3])
    np.testing.assert_array_equal(neighbour_radii(copies, 3), np.zeros(5))
    assert precision_recall(copies, copies + 1e-3) == (0, 0)
    assert precision_recall(copies, copies.copy()) == (1, 1)


def test_overlap_by_hand():
    # Real radii (k = 1): 1, 1, 4. The sample 1.5 lies in the balls of 1 and 5, 0.5 in
    # those of 0 and 1, 15 in none. The ball around 15 holds all real points.
    real, fake = np.array([[0.0], [1.0], [5.0]]), np.array([[0.5], [1.5], [15.0]])
    assert precision_recall(real, fake, k=1) == (pytest.approx(2 / 3), 1)
    assert density_coverage(real, fake, k=1) == (4 / 3, 1)
    assert density_coverage(real, fake[2:], k=1) == (0, 0)
    assert density_coverage(real, fake[:1], k=1) == (2, pytest.approx(2 / 3))


def test_a_repeated_sample_raises_density_only():
    centre = np.array([[3.0]]).repeat(20, 0)
    # The 5 nearest others reach 3 or more: six balls of eight hold the point 3.
    held = (np.abs(LINE[:, 0] - 3) <= np.sqrt(neighbour_radii(LINE, 5))).sum()
    result = density_coverage(LINE, centre)
    assert held > 5
    assert result.density == pytest.approx(held / 5)
    assert result.coverage == pytest.approx(held / 8)


def test_density_and_coverage_of_equal_distributions():
    # Expectations: density 1, coverage 1 - C(2n-1-k, n) / C(2n-1, n), about 1 - 2^-k.
    real, fake = np.random.default_rng(3).standard_normal((2, 1500, 2))
    density, coverage = density_coverage(real, fake)
    assert density == pytest.approx(1, abs=0.05)
    assert coverage == pytest.approx(1 - 2**-5, abs=0.02)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_decisions_are_those_of_exact_distances(dtype, scale, offset):
    rng = np.random.default_rng(4)
    real = rng.standard_normal((120, 30)) + offset
    # Far from the others, so that products of points cannot resolve what is near.
    real[:30] += 3e4
    fake = real[rng.integers(0, 120, 150)] + 0.7 * rng.standard_normal((150, 30))
    # Radii that rounding cannot tell apart from the distances that they bound.
    fake[:50] = real[:50] * (1 + 1e-9)
    real[100:] = real[100]
    # The neighbours of real[60] are in doubt: all at nearly one distance.
    steps = rng.standard_normal((20, 30))
    steps *= (1 + 1e-7 * rng.standard_normal((20, 1))) / np.linalg.norm(
        steps, axis=1, keepdims=True
    )
    real[61:81] = real[60] + steps
    real, fake = (scale * real).astype(dtype), (scale * fake).astype(dtype)
    within, between = (
        cdist(a.astype(np.float64), b.astype(np.float64), "sqeuclidean")
        for a, b in ((real, real), (fake, real))
    )
    np.fill_diagonal(within, np.inf)
    for k in (1, 5):
        expected = np.sort(within, axis=1)[:, k - 1]
        np.testing.assert_allclose(neighbour_radii(real, k), expected, rtol=1e-12)
    radii = np.quantile(between, 0.05, axis=0)
    # Each ball ends at a point: just inside of it the point is out.
    radii[:50] = between[np.arange(50) + 50, np.arange(50)]
    for factor in (1 - 1e-12, 1 + 1e-12):
        np.testing.assert_array_equal(
            covered(fake, real, factor * radii),
            (between <= factor * radii).any(axis=1),
        )
        pairs = [
            np.stack(pair) for pair in neighbours._inside(fake, real, factor * radii)
        ]
        expected = np.argwhere(between <= factor * radii)
        np.testing.assert_array_equal(np.concatenate(pairs, axis=1).T, expected)


def test_few_pairs_are_computed_again(monkeypatch):
    counted = []
    exact = neighbours._squared_distances

    def count(a, b, rows, columns):
        counted.append(len(rows))
        return exact(a, b, rows, columns)

    monkeypatch.setattr(neighbours, "_squared_distances", count)
    x = np.random.default_rng(5).standard_normal((400, 256)) + 3
    radii = neighbour_radii(x, 3)
    assert 400 * 3 <= sum(counted) < 400 * 4
    counted.clear()
    assert covered(x + 1e-3, x, 2 * radii).all()
    assert sum(counted) < 400


@pytest.mark.parametrize("rows", [1, 7, 64])
def test_blocks_do_not_matter(rows, monkeypatch):
    rng = np.random.default_rng(2)
    real, fake = rng.standard_normal((60, 3)), rng.standard_normal((45, 3)) * 1.3
    whole = precision_recall(real, fake)
    assert 0 < min(whole) < max(whole) < 1
    monkeypatch.setattr(neighbours, "_BLOCK_ROWS", rows)
    assert precision_recall(real, fake) == whole


def test_bad_input_is_refused():
    for metric in (precision_recall, density_coverage):
        with pytest.raises(ValueError, match=r"\(8, 1\) and \(3, 2\)"):
            metric(LINE, np.ones((3, 2)))
        with pytest.raises(ValueError, match="not finite"):
            metric(LINE, LINE * np.nan)
        for k in (0, 8):
            with pytest.raises(ValueError, match=f"k = {k} "):
                metric(LINE, LINE, k=k)
