"""Frechet distance against closed forms; statistics against one pass over all data."""

import numpy as np
import pytest

from scm_jax.evaluation.metrics import frechet
from scm_jax.evaluation.metrics.frechet import (
    feature_distance,
    feature_stats,
    gaussian_frechet,
    merge_stats,
)


def rotation(dim, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((dim, dim)))[0]


def rotated(*spectra):
    """The distance of Gaussians of mean 0 whose covariances have one basis."""
    basis, zero = rotation(len(spectra[0])), np.zeros(len(spectra[0]))
    a, b = ((basis * spectrum) @ basis.T for spectrum in spectra)
    return gaussian_frechet(zero, a, zero, b)


def covariance(dim, seed):
    root = np.random.default_rng(seed).standard_normal((dim, 2 * dim))
    return root @ root.T / (2 * dim)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize(("mean", "std"), [(0.3, 0.2), (-1.5, 2.0), (0.3, 0.0)])
def test_one_dimension(mean, std, scale):
    def moments(mean, std):
        return np.array([scale * mean]), np.array([[(scale * std) ** 2]])

    distance = gaussian_frechet(*moments(0.7, 0.5), *moments(mean, std))
    expected = (0.7 - mean) ** 2 + (0.5 - std) ** 2
    assert distance == pytest.approx(scale**2 * expected, rel=1e-10)


def test_commuting_covariances():
    a, b = np.random.default_rng(1).uniform(0.1, 3, (2, 24))
    expected = ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    assert rotated(a, b) == pytest.approx(expected, rel=1e-10)


def test_equal_means_and_covariances_that_do_not_commute():
    a, b = covariance(16, 2), covariance(16, 3)
    assert np.abs(a @ b - b @ a).max() > 0.1
    # The eigenvalues of A B are those of A^1/2 B A^1/2.
    roots = np.sqrt(np.linalg.eigvals(a @ b).real)
    expected = np.trace(a) + np.trace(b) - 2 * roots.sum()
    mean = np.ones(16)
    assert gaussian_frechet(mean, a, mean, b) == pytest.approx(expected, rel=1e-10)


def test_rank_deficient_covariances():
    a, b = np.zeros((2, 12))
    a[:2], b[1:3] = (4.0, 1.0), (9.0, 25.0)
    assert rotated(a, b) == pytest.approx(4 + (1 - 3) ** 2 + 25, rel=1e-10)


@pytest.mark.parametrize("factor", [10.0, 1.01])
def test_spectra_over_ten_decades(factor):
    # Eigenvalues of features fall fast, and good samples are near the data.
    a = np.logspace(0, -10, 96)
    expected = (np.sqrt(a) * (np.sqrt(factor) - 1)) ** 2
    assert rotated(a, factor * a) == pytest.approx(expected.sum(), rel=1e-8)


@pytest.mark.parametrize("ranks", [(0, 5), (5, 0), (0, 0)])
def test_points_without_spread(ranks):
    a, b = (np.diag([2.0] * rank + [0.0] * (6 - rank)) for rank in ranks)
    distance = gaussian_frechet(np.zeros(6), a, np.full(6, 0.5), b)
    assert distance == pytest.approx(6 * 0.25 + 2.0 * sum(ranks), rel=1e-10)


def test_fewer_features_than_dimensions():
    rng = np.random.default_rng(5)
    a, b = rng.standard_normal((5, 40)), rng.standard_normal((7, 40)) + 0.3
    centred_a, centred_b = a - a.mean(0), b - b.mean(0)
    # tr (A B)^1/2 is the nuclear norm of the product of the two factors.
    cross = np.linalg.svd(centred_a @ centred_b.T, compute_uv=False).sum()
    expected = (
        ((a.mean(0) - b.mean(0)) ** 2).sum()
        + (centred_a**2).sum() / 4
        + (centred_b**2).sum() / 6
        - 2 * cross / np.sqrt(4 * 6)
    )
    assert feature_distance(a, b) == pytest.approx(expected, rel=1e-10)


def test_distance_does_not_see_rotation_order_or_a_common_shift():
    rng = np.random.default_rng(6)
    a, b = rng.standard_normal((300, 6)), rng.standard_normal((200, 6)) * 1.5 + 0.2
    distance = feature_distance(a, b)
    turn = rotation(6)
    others = (b, a), (a @ turn, b @ turn), (a + 7, b + 7), (a[::-1], rng.permutation(b))
    for other in others:
        assert feature_distance(*other) == pytest.approx(distance, rel=1e-10)
    assert feature_distance(3 * a, 3 * b) == pytest.approx(9 * distance, rel=1e-10)
    assert feature_distance(a, a) < 1e-10


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_streaming_merging_and_batch_agree(offset):
    x = np.random.default_rng(7).standard_normal((1000, 5)) * [1, 2, 3, 4, 5] + offset
    whole = feature_stats(x)
    np.testing.assert_allclose(whole.covariance, np.cov(x.T), rtol=1e-9, atol=1e-9)
    stream = frechet.empty_stats(5)
    for rows in np.split(x, [1, 2, 300, 300, 777]):
        stream = merge_stats(stream, feature_stats(rows))
    halves = merge_stats(feature_stats(x[600:]), feature_stats(x[:600]))
    # A mean is rounded to eps * offset; raw sums of squares would lose eps * offset^2.
    rounding = 50 * np.finfo(np.float64).eps * max(offset, 1)
    for stats in (stream, halves):
        assert stats.count == 1000
        np.testing.assert_allclose(stats.mean, whole.mean, atol=rounding)
        np.testing.assert_allclose(stats.covariance, whole.covariance, atol=rounding)


def test_many_small_blocks_agree_to_ten_digits():
    rng = np.random.default_rng(12)
    x = np.abs(rng.standard_normal((3000, 24))).astype(np.float32)
    whole, stream = feature_stats(x), frechet.empty_stats(24)
    for rows in np.split(x, range(7, 3000, 7)):
        stream = merge_stats(stream, feature_stats(rows))
    for name in ("mean", "scatter"):
        got, expected = getattr(stream, name), getattr(whole, name)
        np.testing.assert_allclose(got, expected, atol=1e-10 * np.abs(expected).max())


def test_float32_features_are_summed_in_float64():
    x = np.full((4096, 1), 0.1, np.float32)
    stats = feature_stats(x)
    assert stats.mean.dtype == stats.scatter.dtype == np.float64
    assert stats.mean[0] == pytest.approx(float(np.float32(0.1)), rel=1e-14)


def test_floor_halves_when_the_data_double():
    x = np.random.default_rng(9).standard_normal((4000, 8))
    small, small_std = frechet.halves_floor(x[:2000], num_splits=20)
    large, _ = frechet.halves_floor(x, num_splits=20)
    # Both ends are means over 20 splits with a spread of about a tenth each.
    assert large / small == pytest.approx(0.5, rel=0.2)
    assert 0 < small_std < small
    assert frechet.halves_floor(x[:2000], num_splits=20) == (small, small_std)
    assert frechet.halves_floor(x, num_splits=1)[1] == 0


def test_bad_input_is_refused():
    rng = np.random.default_rng(10)
    good = feature_stats(rng.standard_normal((9, 3)))
    with pytest.raises(ValueError, match=r"\(3,\) and \(4,\)"):
        gaussian_frechet(np.zeros(3), np.eye(3), np.zeros(4), np.eye(4))
    with pytest.raises(ValueError, match=r"\(3,\) and \(4,\)"):
        merge_stats(good, feature_stats(rng.standard_normal((9, 4))))
    for few in (0, 1):
        with pytest.raises(ValueError, match=f"2 features or more, got {few}"):
            feature_distance(np.ones((9, 3)), np.ones((few, 3)))
    with pytest.raises(ValueError, match="not finite"):
        feature_stats(np.array([[0.0, np.nan]]))
    with pytest.raises(ValueError, match="not finite"):
        gaussian_frechet(np.zeros(1), np.eye(1), np.zeros(1), np.array([[np.inf]]))
    with pytest.raises(ValueError, match=r"expected \(n, d\)"):
        feature_stats(np.ones((4, 2, 2)))
