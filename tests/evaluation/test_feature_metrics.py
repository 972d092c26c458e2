"""Every metric by name, on whole sets and on statistics alone."""

import numpy as np
import pytest

from scm_jax.evaluation.metrics import frechet, kernel, neighbours
from scm_jax.evaluation.metrics.feature_metrics import (
    OF_FEATURES,
    SETTINGS,
    FeatureSet,
    compare,
    protocol_metric,
)
from scm_jax.evaluation.metrics.inception_score import inception_score


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
    expected = {
        "fid": frechet.feature_distance(real, fake),
        "sfid": frechet.feature_distance(*spatial),
        **dict(
            zip(
                ["kid", "kid_std", "kid_low", "kid_high"],
                kernel.kid(real, fake),
                strict=True,
            )
        ),
        **neighbours.precision_recall(real, fake)._asdict(),
        **neighbours.density_coverage(real, fake)._asdict(),
        "inception_score": score.mean,
        "inception_score_std": score.std,
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
