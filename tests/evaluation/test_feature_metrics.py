"""Every metric by name, on whole sets and on statistics alone."""

import numpy as np
import pytest

from scm_jax.evaluation.metrics import frechet, kernel, neighbours, wasserstein
from scm_jax.evaluation.metrics.feature_metrics import (
    OF_FEATURES,
    SETTINGS,
    FeatureSet,
    compare,
    inception_score,
    protocol_metric,
)


def feature_set(seed, num, shift, name):
    rng = np.random.default_rng(seed)
    outputs = {
        "features": rng.standard_normal((num, 4)) + shift,
        "spatial": rng.standard_normal((num, 8)) + 2 * shift,
        "logits": 3 * rng.standard_normal((num, 5)),
    }
    stats = {k: frechet.feature_stats(outputs[k]) for k in ("features", "spatial")}
    moments = {k: (s.mean, s.covariance) for k, s in stats.items()}
    return FeatureSet(name, moments, outputs)


REAL, FAKE = feature_set(0, 60, 0.0, "the data"), feature_set(1, 50, 0.4, "the samples")


def test_the_numbers_are_those_of_the_functions():
    row = compare(REAL, FAKE, list(SETTINGS))
    real, fake = REAL.outputs["features"], FAKE.outputs["features"]
    spatial = REAL.outputs["spatial"], FAKE.outputs["spatial"]
    score = inception_score(FAKE.outputs["logits"])
    names = ["kid", "kid_std", "kid_low", "kid_high"]
    expected = {
        "fid": frechet.feature_distance(real, fake),
        "sfid": frechet.feature_distance(*spatial),
        **dict(zip(names, kernel.kid(real, fake), strict=True)),
        **neighbours.precision_recall(real, fake)._asdict(),
        **neighbours.density_coverage(real, fake)._asdict(),
        "inception_score": score.mean,
        "inception_score_std": score.std,
        **dict(zip(["mind", "mind_error"], wasserstein.mind(real, fake), strict=True)),
    }
    assert row == pytest.approx(expected, rel=1e-12)
    assert all(type(value) is float for value in row.values())
    assert len({*row.values()}) == len(row)


def test_statistics_are_enough_for_the_frechet_distances():
    stored = FeatureSet("a file", REAL.moments)
    metrics = ["fid", "sfid", "is"]
    assert compare(stored, FAKE, metrics) == compare(REAL, FAKE, metrics)
    assert set(OF_FEATURES) == set(SETTINGS) - set(metrics)
    for metric in OF_FEATURES:
        match = f"{metric!r} needs outputs of 'features' of a file, which has moments"
        with pytest.raises(ValueError, match=match):
            compare(stored, FAKE, [metric])


@pytest.mark.parametrize("metric", list(SETTINGS))
def test_a_missing_part_is_named(metric):
    with pytest.raises(ValueError, match=f"{metric!r} needs .* of b, which has"):
        compare(REAL, FeatureSet("b"), [metric])


def test_unknown_metrics_are_refused():
    with pytest.raises(ValueError, match="sfid"):
        compare(REAL, FAKE, ["FID50k"])


def test_the_protocol_tells_the_settings():
    assert protocol_metric("fid") == "fid"
    assert protocol_metric("kid") == "kid(num_subsets=100,subset_size=1000,seed=0)"
    assert len({protocol_metric(metric) for metric in SETTINGS}) == len(SETTINGS)


# The Inception Score of predictions whose score is known.


@pytest.mark.parametrize("classes", [1, 7, 1008])
def test_certain_and_uniform_predictions_score_the_number_of_classes(classes):
    score = inception_score(1e4 * np.eye(classes, dtype=np.float32))
    assert score == (pytest.approx(classes, rel=1e-12), 0)


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


def test_bad_logits_are_refused():
    for shape in ((0, 3), (3,), (2, 2, 2)):
        with pytest.raises(ValueError, match=r"expected \(n, classes\)"):
            inception_score(np.zeros(shape))
    with pytest.raises(ValueError, match="not finite"):
        inception_score(np.array([[np.inf, 0.0]]))
    with pytest.raises(ValueError, match="split_size = 0"):
        inception_score(np.zeros((2, 2)), split_size=0)
