"""Precision and recall on point sets whose answer is known by hand."""

import numpy as np
import pytest

from scm_jax.evaluation.neighbours import covered, neighbour_radii, precision_recall

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


def test_the_same_set_scores_one():
    x = np.random.default_rng(0).standard_normal((50, 4))
    assert precision_recall(x, x[::-1]) == (1, 1)


def test_distant_sets_score_zero():
    assert precision_recall(LINE, LINE + 100) == (0, 0)


def test_a_lost_mode_costs_recall_only():
    left, right = np.random.default_rng(1).normal(
        ([[-50, 0]], [[50, 0]]), 1, (2, 40, 2)
    )
    assert precision_recall(np.concatenate([left, right]), left) == (1, 0.5)


def test_an_invented_mode_costs_precision_only():
    left, right = np.random.default_rng(1).normal(
        ([[-50, 0]], [[50, 0]]), 1, (2, 40, 2)
    )
    assert precision_recall(left, np.concatenate([left, right])) == (0.5, 1)


def test_hand_made_overlap():
    # Radii (k = 1): real 1, 1, 4; fake 1, 1, 100. Only 1.0 lies in a real ball's reach
    # besides 0.5; all of real lies within 10 of the fake point at 15.
    real, fake = np.array([[0.0], [1.0], [5.0]]), np.array([[0.5], [1.5], [15.0]])
    result = precision_recall(real, fake, k=1)
    assert result.precision == pytest.approx(2 / 3)
    assert result.recall == 1


def test_duplicates_are_neighbours():
    # Far from the origin, where |a|^2 + |b|^2 - 2ab would not give 0 for copies.
    copies = np.full((5, 3), 1e4) + np.array([0.1, 0.2, 0.3])
    np.testing.assert_array_equal(neighbour_radii(copies, 3), np.zeros(5))
    assert precision_recall(copies, copies + 1e-3) == (0, 0)
    assert precision_recall(copies, copies.copy()) == (1, 1)


@pytest.mark.parametrize("block_size", [1, 7, 64])
def test_blocks_do_not_matter(block_size):
    rng = np.random.default_rng(2)
    real, fake = rng.standard_normal((60, 3)), rng.standard_normal((45, 3)) * 1.3
    whole = precision_recall(real, fake, block_size=1000)
    assert 0 < whole.precision < 1
    assert 0 < whole.recall < 1
    assert precision_recall(real, fake, block_size=block_size) == whole


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"\(8, 1\) and \(3, 2\)"):
        precision_recall(LINE, np.ones((3, 2)))
    for k in (0, 8):
        with pytest.raises(ValueError, match=f"k = {k} "):
            precision_recall(LINE, LINE, k=k)
