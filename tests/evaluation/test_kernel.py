"""Kernel distances: by hand, without bias, in closed form, and their intervals."""

import numpy as np
import pytest

from scm_jax.evaluation.metrics import kernel
from scm_jax.evaluation.metrics.kernel import cubic, gaussian, kid, mmd2, rbf_mmd


def test_cubic_kernel_by_hand():
    x, y = np.array([[1.0, 2.0]]), np.array([[3.0, -1.0], [0.0, 0.0]])
    np.testing.assert_allclose(cubic(x, y), [[1.5**3, 1.0]], rtol=1e-14)


def test_gaussian_kernel_by_hand():
    x, y = np.array([[1.0, 2.0]]), np.array([[4.0, 6.0], [1.0, 2.0]])
    np.testing.assert_allclose(gaussian(5.0)(x, y), [[np.exp(-0.5), 1.0]], rtol=1e-14)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("values_in_memory", [1, 40, 10**6])
def test_mmd_is_the_sum_over_pairs(biased, values_in_memory, monkeypatch):
    monkeypatch.setattr(kernel, "_VALUES_IN_MEMORY", values_in_memory)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((5, 3)), rng.standard_normal((7, 3)) + 0.3

    def mean(a, b, itself=True):
        pairs = [
            (a[i : i + 1] @ b[j : j + 1].T / 3 + 1).item() ** 3
            for i in range(len(a))
            for j in range(len(b))
            if itself or i != j
        ]
        return np.mean(pairs)

    expected = mean(x, x, biased) + mean(y, y, biased) - 2 * mean(x, y)
    assert mmd2(x, y, cubic, biased=biased) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("k", [cubic, gaussian(1.5)])
def test_unbiased_under_the_null(k):
    rng = np.random.default_rng(1)
    values = [
        mmd2(rng.standard_normal((8, 3)) + 0.4, rng.standard_normal((6, 3)) + 0.4, k)
        for _ in range(1500)
    ]
    error = np.std(values, ddof=1) / np.sqrt(len(values))
    assert abs(np.mean(values)) < 4 * error
    # The biased form is far off, so that the test could tell.
    points = rng.standard_normal((2, 8, 3)) + 0.4
    assert mmd2(*points, k, biased=True) - mmd2(*points, k) > 20 * error


def gaussian_mean(mean, variance, sigma):
    """``E k`` for a difference of Gaussian vectors ``N(mean, diag(variance))``."""
    total = sigma**2 + variance
    return np.prod(np.sqrt(sigma**2 / total)) * np.exp(-0.5 * (mean**2 / total).sum())


def test_gaussian_kernel_of_gaussians_has_a_closed_form():
    mean, std_x, std_y = np.array([0.6, -0.2]), np.array([0.5, 1]), np.array([0.5, 2])
    zero, sigma = np.zeros(2), 1.5
    expected = (
        gaussian_mean(zero, 2 * std_x**2, sigma)
        + gaussian_mean(zero, 2 * std_y**2, sigma)
        - 2 * gaussian_mean(mean, std_x**2 + std_y**2, sigma)
    )
    rng = np.random.default_rng(2)
    values = [
        mmd2(
            rng.standard_normal((100, 2)) * std_x,
            rng.standard_normal((80, 2)) * std_y + mean,
            gaussian(sigma),
        )
        for _ in range(100)
    ]
    error = np.std(values, ddof=1) / 10
    assert error < expected / 20
    assert abs(np.mean(values) - expected) < 4 * error


@pytest.mark.parametrize("shift", [0.0, 0.25, 1.0])
def test_intervals_cover(shift):
    zero, mean, ones = np.zeros(2), np.full(2, shift), np.ones(2)
    truth = 2 * (gaussian_mean(zero, 2 * ones, 1) - gaussian_mean(mean, 2 * ones, 1))
    rng = np.random.default_rng(3)
    inside, lengths, values = 0, [], []
    for seed in range(200):
        x, y = rng.standard_normal((100, 2)), rng.standard_normal((100, 2)) + mean
        value, low, high = rbf_mmd(x, y, 1.0, seed=seed)
        inside += low <= truth <= high
        lengths.append(high - low)
        values.append(value)
    # 95 % of 200 is 190 with a standard deviation of 3; too wide is allowed.
    assert inside >= 190 - 9
    # Where the distributions clearly differ it is Student's: 2 * 2.26 with 10 blocks.
    if shift == 1:
        assert np.mean(lengths) / np.std(values) < 1.3 * 2 * 2.26


def test_kid_over_subsets():
    rng = np.random.default_rng(4)
    x, y = rng.standard_normal((60, 5)), 1.2 * rng.standard_normal((50, 5)) + 0.2
    result = kid(x, y, num_subsets=300, subset_size=20)
    # Subsets are unbiased for the statistic of all points.
    whole = mmd2(x, y, cubic)
    assert abs(result.value - whole) < 4 * result.std / np.sqrt(300)
    assert result.low < result.value < result.high
    assert kid(x, y, num_subsets=300, subset_size=20) == result
    assert kid(x, y, num_subsets=300, subset_size=20, seed=1).value != result.value
    # Smaller sets are used whole, and no subset differs from another.
    all_points = kid(x, y, num_subsets=2)
    assert all_points.value == pytest.approx(whole, rel=1e-12)
    assert all_points.std == pytest.approx(0, abs=1e-12)


def test_kid_interval_is_that_of_all_points():
    rng = np.random.default_rng(5)
    inside, seeds = 0, 60
    for _ in range(seeds):
        x, y = rng.standard_normal((2, 120, 2))
        _, _, low, high = kid(x, y, num_subsets=20, subset_size=30)
        inside += low <= 0 <= high
    assert inside >= 0.95 * seeds - 5  # three standard deviations of 1.7


def test_cmmd_form():
    rng = np.random.default_rng(6)
    x, y = rng.standard_normal((40, 4)), rng.standard_normal((45, 4)) + 1
    x, y = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, y))
    biased = rbf_mmd(x, y, biased=True, scale=1000)
    unbiased = rbf_mmd(x, y, scale=1000)
    exact = 1000 * mmd2(x, y, gaussian(10.0), biased=True)
    assert biased.value == pytest.approx(exact, rel=1e-10)
    assert biased[1:] == unbiased[1:]
    assert unbiased.low < unbiased.value < unbiased.high
    assert unbiased.value < biased.value


def test_float32_features_are_summed_in_float64():
    rng = np.random.default_rng(7)
    x, y = rng.standard_normal((2, 50, 8)).astype(np.float32) + 2
    exact = [v.astype(np.float64) for v in (x, y)]
    assert mmd2(x, y, cubic) == pytest.approx(mmd2(*exact, cubic), rel=1e-13)
    assert kid(x, y, 3, 20) == pytest.approx(kid(*exact, 3, 20), rel=1e-13)


def test_blocks_are_disjoint_and_complete():
    x, y = np.arange(47.0)[:, None], np.arange(102.0)[:, None]
    cut = list(kernel._blocks(x, y, 0))
    assert len(cut) == kernel.MIN_BLOCKS
    for side, whole in enumerate((x, y)):
        together = np.concatenate([pair[side] for pair in cut])
        np.testing.assert_array_equal(np.sort(together, axis=0), whole)
    many = np.zeros((3500, 1))
    assert len(list(kernel._blocks(np.zeros((13000, 1)), many, 0))) == 13


def test_bad_input_is_refused():
    good = np.random.default_rng(8).standard_normal((50, 2))
    with pytest.raises(ValueError, match=r"\(50, 2\) and \(50, 3\)"):
        kid(good, np.ones((50, 3)))
    with pytest.raises(ValueError, match="not finite"):
        rbf_mmd(good, good * np.inf)
    with pytest.raises(ValueError, match="39 and 50 features: an interval needs 40"):
        kid(good[:39], good)
    with pytest.raises(ValueError, match="num_subsets = 1"):
        kid(good, good, num_subsets=1)
    with pytest.raises(ValueError, match="subset_size = 1"):
        kid(good, good, subset_size=1)
    with pytest.raises(ValueError, match="sigma = 0"):
        rbf_mmd(good, good, sigma=0)
