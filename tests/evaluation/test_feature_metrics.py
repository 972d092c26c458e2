"""Every metric by name, on whole sets and on statistics alone."""

import numpy as np
import pytest

from scm_jax.evaluation.metrics import frechet, kernel, neighbours, wasserstein
from scm_jax.evaluation.metrics.feature_metrics import (
    METRICS,
    SETTINGS,
    FeatureSet,
    compare,
    protocol_metric,
)
from scm_jax.evaluation.metrics.inception_score import inception_score


def feature_set(seed, num, shift, name):
    rng = np.random.default_rng(seed)
    return FeatureSet(
        features=rng.standard_normal((num, 4)) + shift,
        spatial=rng.standard_normal((num, 2, 2, 2)) + 2 * shift,
        logits=3 * rng.standard_normal((num, 5)),
        name=name,
    )


REAL, FAKE = feature_set(0, 60, 0.0, "the data"), feature_set(1, 50, 0.4, "the samples")


def test_the_numbers_are_those_of_the_functions():
    row = compare(REAL, FAKE, list(METRICS))
    real, fake = REAL.features, FAKE.features
    units = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (real, fake)]
    flat = [x.spatial.reshape(len(x.spatial), 8) for x in (REAL, FAKE)]
    score = inception_score(FAKE.logits)
    sliced, mind = (
        metric(real, fake)
        for metric in (wasserstein.sliced_wasserstein, wasserstein.mind)
    )
    expected = {
        "fid": frechet.feature_distance(real, fake),
        "sfid": frechet.feature_distance(*flat),
        **dict(
            zip(
                ["kid", "kid_std", "kid_low", "kid_high"],
                kernel.kid(real, fake),
                strict=True,
            )
        ),
        **dict(
            zip(
                ["cmmd", "cmmd_low", "cmmd_high"],
                kernel.rbf_mmd(*units, 10.0, biased=True, scale=1000),
                strict=True,
            )
        ),
        **neighbours.precision_recall(real, fake)._asdict(),
        **neighbours.density_coverage(real, fake)._asdict(),
        "inception_score": score.mean,
        "inception_score_std": score.std,
        "sliced_wasserstein": sliced.value,
        "sliced_wasserstein_error": sliced.standard_error,
        "mind": mind.value,
        "mind_error": mind.standard_error,
    }
    assert row == pytest.approx(expected, rel=1e-12)
    assert all(type(value) is float for value in row.values())
    assert len({*row.values()}) > len(row) - 3


def test_spatial_features_are_taken_with_channels_last():
    spatial = np.arange(24.0).reshape(2, 2, 2, 3)
    mean, _ = FeatureSet(spatial=spatial).moments("spatial", "sfid")
    np.testing.assert_array_equal(mean, np.arange(12.0) + 6)


def test_statistics_are_enough_for_the_frechet_distances():
    moments = [REAL.moments(field, "") for field in ("features", "spatial")]
    stored = FeatureSet(gaussian=moments[0], spatial_gaussian=moments[1], name="a file")
    metrics = ["fid", "sfid", "is"]
    assert compare(stored, FAKE, metrics) == compare(REAL, FAKE, metrics)
    for metric in set(METRICS) - set(metrics):
        with pytest.raises(ValueError, match=f"{metric!r} needs features of a file"):
            compare(stored, FAKE, [metric])


@pytest.mark.parametrize("metric", list(METRICS))
def test_a_missing_part_is_named(metric):
    with pytest.raises(
        ValueError, match=f"{metric!r} needs .* of b, which has nothing"
    ):
        compare(REAL, FeatureSet(name="b"), [metric])


def test_unknown_metrics_are_refused():
    with pytest.raises(ValueError, match="sfid"):
        compare(REAL, FAKE, ["FID50k"])


def test_the_protocol_tells_the_settings():
    assert list(SETTINGS) == list(METRICS)
    assert protocol_metric("fid") == "fid"
    assert protocol_metric("kid") == "kid(num_subsets=100,subset_size=1000,seed=0)"
    assert len({protocol_metric(metric) for metric in METRICS}) == len(METRICS)
