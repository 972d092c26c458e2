"""Sliced Wasserstein distance against couplings by hand and closed forms."""

import numpy as np
import pytest

from scm_jax.evaluation.metrics import wasserstein
from scm_jax.evaluation.metrics.wasserstein import directions, mind, squared_w2


def test_equal_sizes_pair_sorted_values():
    a, b = np.random.default_rng(0).standard_normal((2, 9, 4))
    expected = ((np.sort(a, axis=0) - np.sort(b, axis=0)) ** 2).mean(0)
    np.testing.assert_allclose(squared_w2(a, b), expected, rtol=1e-12)


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
def test_a_shift_costs_three_times_its_square(dim):
    rng = np.random.default_rng(2)
    a, shift = rng.standard_normal((50, dim)), rng.standard_normal(dim)
    value, error = mind(a, a + shift, 2000)
    # On each line the distance is exactly (v . shift)^2.
    lines = 3 * dim * (directions(dim, 2000) @ shift) ** 2
    assert value == pytest.approx(lines.mean(), rel=1e-9)
    assert error == pytest.approx(lines.std(ddof=1) / np.sqrt(2000), rel=1e-9)
    assert abs(value - 3 * (shift**2).sum()) < 5 * error


def test_blocks_do_not_matter(monkeypatch):
    rng = np.random.default_rng(5)
    a, b = rng.standard_normal((20, 6)).astype(np.float32), rng.standard_normal((30, 6))
    whole = mind(a, b, 16)
    monkeypatch.setattr(wasserstein, "_VALUES_IN_MEMORY", 7 * 6)
    np.testing.assert_allclose(mind(a, b, 16), whole, rtol=1e-12)
    assert mind(a, b, 16, seed=1).value != whole.value
    assert mind(a, a[::-1], 16) == (0, 0)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="num_projections = 0"):
        mind(np.ones((3, 2)), np.ones((3, 2)), 0)
