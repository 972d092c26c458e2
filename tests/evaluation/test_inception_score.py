"""Inception Score of predictions whose score is known."""

import numpy as np
import pytest

from scm_jax.evaluation.metrics.inception_score import inception_score


@pytest.mark.parametrize("classes", [1, 7, 1008])
def test_certain_and_uniform_predictions_score_the_number_of_classes(classes):
    mean, std = inception_score(1e4 * np.eye(classes, dtype=np.float32))
    assert mean == pytest.approx(classes, rel=1e-12)
    assert std == 0


def test_a_class_that_never_occurs_adds_nothing():
    logits = np.zeros((4, 3))
    logits[:2, 0] = logits[2:, 1] = 1e5
    assert inception_score(logits).mean == pytest.approx(2, rel=1e-12)


def test_equal_predictions_score_one():
    row = np.random.default_rng(0).standard_normal((1, 20))
    assert inception_score(row.repeat(50, 0)).mean == pytest.approx(1, rel=1e-12)


def test_by_hand():
    # p = (3/4, 1/4) and (1/2, 1/2): the marginal is (5/8, 3/8).
    logits = np.log([[3.0, 1.0], [1.0, 1.0]])
    first = 0.75 * np.log(6 / 5) + 0.25 * np.log(2 / 3)
    divergence = (first + 0.5 * np.log(4 / 5) + 0.5 * np.log(4 / 3)) / 2
    assert inception_score(logits).mean == pytest.approx(np.exp(divergence), rel=1e-12)
    shifted = inception_score(logits + np.array([[800.0], [-800.0]]))
    assert shifted.mean == pytest.approx(np.exp(divergence), rel=1e-12)


def test_splits_keep_the_order_and_the_short_rest():
    # Two splits of two classes each, then one sample alone: 2, 2, 1.
    logits = 1e4 * np.eye(4)[[0, 1, 2, 3, 0]]
    mean, std = inception_score(logits, split_size=2)
    assert mean == pytest.approx(5 / 3, rel=1e-12)
    assert std == pytest.approx(np.sqrt(1 / 3), rel=1e-12)
    assert inception_score(logits[[0, 0, 1, 1]], split_size=2).mean == 1


def test_float32_logits_are_averaged_in_float64():
    logits = np.random.default_rng(1).standard_normal((500, 30)).astype(np.float32)
    exact = inception_score(logits.astype(np.float64))
    assert inception_score(logits).mean == pytest.approx(exact.mean, rel=1e-13)


def test_bad_input_is_refused():
    for shape in ((0, 3), (3,), (2, 2, 2)):
        with pytest.raises(ValueError, match=r"expected \(n, classes\)"):
            inception_score(np.zeros(shape))
    with pytest.raises(ValueError, match="not finite"):
        inception_score(np.array([[np.inf, 0.0]]))
    with pytest.raises(ValueError, match="split_size = 0"):
        inception_score(np.zeros((2, 2)), split_size=0)
