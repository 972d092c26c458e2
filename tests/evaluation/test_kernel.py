"""Kernel distances: by hand, without bias, and their intervals."""

import numpy as np
import pytest

from scm_jax.evaluation.metrics import kernel
from scm_jax.evaluation.metrics.kernel import cubic, kid, mmd2


def test_cubic_kernel_by_hand():
    x, y = np.array([[1.0, 2.0]]), np.array([[3.0, -1.0], [0.0, 0.0]])
    np.testing.assert_allclose(cubic(x, y), [[1.5**3, 1.0]], rtol=1e-14)


def mean_by_pairs(a, b, itself=True):
    pairs = [
        (a[i : i + 1] @ b[j : j + 1].T / 3 + 1).item() ** 3
        for i in range(len(a))
        for j in range(len(b))
        if itself or i != j
    ]
    return np.mean(pairs)


@pytest.mark.parametrize("values_in_memory", [1, 40, 10**6])
def test_mmd_is_the_sum_over_pairs(values_in_memory, monkeypatch):
    monkeypatch.setattr(kernel, "_VALUES_IN_MEMORY", values_in_memory)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((5, 3)), rng.standard_normal((7, 3)) + 0.3
    expected = mean_by_pairs(x, x, False) + mean_by_pairs(y, y, False)
    expected -= 2 * mean_by_pairs(x, y)
    assert mmd2(x, y) == pytest.approx(expected, rel=1e-12)


def test_unbiased_under_the_null():
    rng = np.random.default_rng(1)
    sets = rng.standard_normal((1500, 2, 8, 3)) + 0.4
    values = [mmd2(x, y) for x, y in sets]
    error = np.std(values, ddof=1) / np.sqrt(len(values))
    assert abs(np.mean(values)) < 4 * error
    # The pairs of a point with itself are far off, so that the test could tell.
    itself = [np.trace(cubic(x, x)) / 8 - cubic(x, x).mean() for x, _ in sets[:20]]
    assert np.mean(itself) > 20 * error


def test_kid_over_subsets():
    rng = np.random.default_rng(4)
    x, y = rng.standard_normal((60, 5)), 1.2 * rng.standard_normal((50, 5)) + 0.2
    result = kid(x, y, num_subsets=300, subset_size=20)
    # Subsets are unbiased for the statistic of all points.
    whole = mmd2(x, y)
    assert abs(result.value - whole) < 4 * result.std / np.sqrt(300)
    assert result.low < result.value < result.high
    assert kid(x, y, num_subsets=300, subset_size=20) == result
    assert kid(x, y, num_subsets=300, subset_size=20, seed=1).value != result.value
    # Smaller sets are used whole, and no subset differs from another.
    all_points = kid(x, y, num_subsets=2)
    assert all_points.value == pytest.approx(whole, rel=1e-12)
    assert all_points.std == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("shift", [0.0, 1.5])
def test_kid_intervals_cover(shift):
    """Intervals of 10 blocks; not too wide where the distributions clearly differ."""
    rng = np.random.default_rng(5)
    # The kernel compares moments: those of N(mean, 1) minus those of N(0, 1).
    mean, one = np.full(2, shift), np.eye(2)
    second = np.einsum("i,j->ij", mean, mean)
    third = np.einsum("i,jk->ijk", mean, second + one)
    third += np.einsum("j,ik->ijk", mean, one) + np.einsum("k,ij->ijk", mean, one)
    parts = [(moment**2).sum() for moment in (mean, second, third)]
    truth = 3 / 2 * parts[0] + 3 / 4 * parts[1] + 1 / 8 * parts[2]
    inside, lengths, values, seeds = 0, [], [], 60
    for _ in range(seeds):
        x, y = rng.standard_normal((2, 120, 2))
        value, _, low, high = kid(x, y + shift, num_subsets=2, subset_size=120)
        inside += low <= truth <= high
        lengths.append(high - low)
        values.append(value)
    assert inside >= 0.95 * seeds - 5  # three standard deviations of 1.7
    if shift:
        # Student's with 10 blocks, which vary more than a tenth of the points each.
        assert np.mean(lengths) / np.std(values) < 1.5 * 2 * 2.26


def test_float32_features_are_summed_in_float64():
    rng = np.random.default_rng(7)
    x, y = rng.standard_normal((2, 50, 8)).astype(np.float32) + 2
    exact = [v.astype(np.float64) for v in (x, y)]
    assert mmd2(x, y) == pytest.approx(mmd2(*exact), rel=1e-13)
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
    for sets, settings, message in (
        ((good, np.ones((50, 3))), {}, r"\(50, 2\) and \(50, 3\)"),
        ((good, good * np.inf), {}, "not finite"),
        ((good[:39], good), {}, "39 and 50 features: an interval needs 40"),
        ((good, good), {"num_subsets": 1}, "num_subsets = 1"),
        ((good, good), {"subset_size": 1}, "subset_size = 1"),
    ):
        with pytest.raises(ValueError, match=message):
            kid(*sets, **settings)
