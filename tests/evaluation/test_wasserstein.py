"""Sliced Wasserstein distance against couplings by hand and closed forms."""

import numpy as np
import pytest

from scm_jax.evaluation.metrics import wasserstein
from scm_jax.evaluation.metrics.wasserstein import (
    directions,
    mind,
    sliced_wasserstein,
    squared_w2,
)


def test_equal_sizes_pair_sorted_values():
    a, b = np.random.default_rng(0).standard_normal((2, 9, 4))
    expected = ((np.sort(a, axis=0) - np.sort(b, axis=0)) ** 2).mean(0)
    np.testing.assert_allclose(squared_w2(a, b), expected, rtol=1e-12)


def test_unequal_sizes_by_hand():
    # Thirds against halves: 1/3 of 0 -> 1, 1/6 of 3 -> 1, 1/6 of 3 -> 5, 1/3 of 6 -> 5.
    a, b = np.array([[6.0], [0.0], [3.0]]), np.array([[5.0], [1.0]])
    expected = 1 / 3 * 1 + 1 / 6 * 4 + 1 / 6 * 4 + 1 / 3 * 1
    assert squared_w2(a, b)[0] == pytest.approx(expected, rel=1e-12)
    assert squared_w2(b, a)[0] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("n", "m"), [(6, 9), (5, 7), (1, 8), (8, 4)])
def test_unequal_sizes_are_copies_to_a_common_size(n, m):
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((n, 3)), rng.standard_normal((m, 3))
    expected = squared_w2(a.repeat(m, 0), b.repeat(n, 0))
    np.testing.assert_allclose(squared_w2(a, b), expected, rtol=1e-12)


def test_directions_are_uniform_unit_vectors():
    vectors = directions(5, 4000)
    np.testing.assert_allclose((vectors**2).sum(1), 1, rtol=1e-12)
    # The entries of v v^T have a standard deviation of 0.25 at most.
    second = vectors.T @ vectors / 4000
    np.testing.assert_allclose(second, np.eye(5) / 5, atol=5 * 0.25 / np.sqrt(4000))


@pytest.mark.parametrize("dim", [3, 40])
def test_a_shift_costs_its_square_over_the_dimension(dim):
    rng = np.random.default_rng(2)
    a, shift = rng.standard_normal((50, dim)), rng.standard_normal(dim)
    value, error = sliced_wasserstein(a, a + shift, 2000)
    # On each line the distance is exactly (v . shift)^2.
    lines = (directions(dim, 2000) @ shift) ** 2
    assert value == pytest.approx(lines.mean(), rel=1e-9)
    assert error == pytest.approx(lines.std(ddof=1) / np.sqrt(2000), rel=1e-9)
    assert abs(value - (shift**2).sum() / dim) < 5 * error
    scaled = mind(a, a + shift, 2000)
    assert abs(scaled.value - 3 * (shift**2).sum()) < 5 * scaled.standard_error


def test_shifted_gaussians_of_unequal_size():
    rng = np.random.default_rng(3)
    a = rng.standard_normal((3000, 4)) * 0.5 + 0.3
    b = rng.standard_normal((2000, 4)) * 0.5 - 0.2
    value, error = sliced_wasserstein(a, b, 500)
    # Shift (0.5, 0.5, 0.5, 0.5) has square 1; sampling adds about 2 / 2000.
    assert value == pytest.approx(0.25, abs=5 * error + 0.03)


def test_one_dimension_is_the_distance_itself():
    rng = np.random.default_rng(4)
    a, b = rng.standard_normal((7, 1)), rng.standard_normal((5, 1))
    assert sliced_wasserstein(a, b, 3).value == pytest.approx(
        squared_w2(a, b)[0], rel=1e-12
    )


def test_blocks_do_not_matter(monkeypatch):
    rng = np.random.default_rng(5)
    a, b = rng.standard_normal((20, 6)).astype(np.float32), rng.standard_normal((30, 6))
    whole = sliced_wasserstein(a, b, 16)
    monkeypatch.setattr(wasserstein, "_VALUES_IN_MEMORY", 7 * 6)
    np.testing.assert_allclose(sliced_wasserstein(a, b, 16), whole, rtol=1e-12)
    assert sliced_wasserstein(a, b, 16, seed=1).value != whole.value
    assert sliced_wasserstein(a, a[::-1], 16) == (0, 0)


def test_bad_input_is_refused():
    good = np.ones((3, 2))
    for bad in (np.ones((3, 4)), np.ones(3), np.ones((0, 2))):
        with pytest.raises(ValueError, match="features have shapes"):
            sliced_wasserstein(good, bad)
    with pytest.raises(ValueError, match="not finite"):
        sliced_wasserstein(good, good * np.nan)
    with pytest.raises(ValueError, match="num_projections = 0"):
        sliced_wasserstein(good, good, 0)
