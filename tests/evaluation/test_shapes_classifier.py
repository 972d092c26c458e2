"""The frozen network for shapes is the recorded one, and its features rank failures."""

import numpy as np
import pytest

from scm_jax.datasets.shapes import ShapeSource
from scm_jax.evaluation import EVALUATORS, FEATURES, Subject
from scm_jax.evaluation.features import shapes_classifier
from scm_jax.evaluation.metrics.frechet import feature_distance

NUM = 512
FIRST = 50_000  # items that no table has been measured on


@pytest.fixture(scope="module")
def weights():
    return shapes_classifier.load_weights()


@pytest.fixture(scope="module")
def fresh():
    """Test items: pixels, and what the heads name."""
    source = ShapeSource("test", FIRST + NUM)
    indices = np.arange(FIRST, FIRST + NUM)
    return source.gather(indices)["image"], source.attributes(indices)


@pytest.fixture(scope="module")
def features(weights, fresh):
    return shapes_classifier.features(weights, fresh[0])


@pytest.fixture(scope="module")
def train():
    return ShapeSource("train", NUM).gather(np.arange(NUM))["image"]


@pytest.mark.parametrize(
    ("head", "least"), [("shape", 0.62), ("color", 0.96), ("background", 0.6)]
)
def test_accuracy_on_fresh_items(weights, fresh, features, head, least):
    named = shapes_classifier.logits(weights, features, head).argmax(-1)
    assert (named == getattr(fresh[1], head)).mean() > least


def convolved(x, kernel, bias, stride):
    """A convolution with rectified units by its definition, in float64."""
    size = kernel.shape[0]
    total = max(size - stride, 0) if stride > 1 else size - 1
    pad = (total // 2, total - total // 2)
    x = np.pad(x, ((0, 0), pad, pad, (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(1, 2))
    windows = windows[:, ::stride, ::stride]
    return np.maximum(np.einsum("nhwcij,ijcd->nhwd", windows, kernel) + bias, 0)


def averaged(x):
    n, height, width, channels = x.shape
    return x.reshape(n, height // 2, 2, width // 2, 2, channels).mean((2, 4))


def test_features_are_four_convolutions_and_a_dense_layer(weights, fresh, features):
    w = {name: array.astype(np.float64) for name, array in weights.items()}
    h = fresh[0][:5] / 127.5 - 1
    for layer, stride in (("conv0", 2), ("conv1", 2), ("conv2", 1), ("conv3", 1)):
        h = convolved(h, w[f"{layer}_kernel"], w[f"{layer}_bias"], stride)
    h = averaged(h).reshape(5, -1)
    expected = np.maximum(h @ w["dense_kernel"] + w["dense_bias"], 0)
    found = features[:5]
    assert found.shape == (5, shapes_classifier.NUM_FEATURES)
    # Five sums of up to 768 float32 products.
    atol = 5 * np.sqrt(768) * np.finfo(np.float32).eps * abs(expected).max()
    np.testing.assert_allclose(found, expected, atol=atol)


def test_features_do_not_depend_on_the_batch(weights, fresh, features):
    parts = [
        shapes_classifier.features(weights, part)
        for part in (fresh[0][:7], fresh[0][7:300])
    ]
    np.testing.assert_array_equal(np.concatenate(parts), features[:300])
    assert (features.std(axis=0) > 0).sum() > shapes_classifier.NUM_FEATURES / 2


def test_larger_images_are_averaged(weights, fresh, features):
    doubled = fresh[0][:4].repeat(2, axis=1).repeat(2, axis=2)
    found = shapes_classifier.features(weights, doubled)
    expected = features[:4]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)
    # Means of levels, not one of them.
    doubled[:, 1::2] = 0
    half = shapes_classifier.features(weights, doubled)
    assert abs(half - expected).max() > 1


def test_other_pixels_are_refused(weights):
    for shape, dtype in (
        ((2, 32, 32, 3), np.float32),
        ((2, 32, 32, 1), np.uint8),
        ((2, 48, 48, 3), np.uint8),
        ((32, 32, 3), np.uint8),
    ):
        with pytest.raises(ValueError, match=r"expected uint8 \(n, 32, 32, 3\)"):
            shapes_classifier.features(weights, np.zeros(shape, dtype))


def test_failures_are_farther_than_held_out_items(
    weights, fresh, train, failures_script
):
    reference = shapes_classifier.features(weights, train)
    distances = {
        name: feature_distance(reference, shapes_classifier.features(weights, images))
        for name, images in failures_script.failures(fresh[0], fresh[1].shape, train)
    }
    floor = distances["held-out items"]
    levels = [distances[f"noise {level}"] for level in (0.05, 0.1, 0.2)]
    assert floor < levels[0] < levels[1] < levels[2]
    for name in ("noise 0.2", "means of pairs", "Gaussian of the pixels"):
        assert distances[name] > 10 * floor, distances
    assert distances["half of the classes"] > 3 * floor
    assert distances["colours permuted"] > 3 * floor


def test_the_gaussian_has_the_moments_of_the_items(failures_script):
    rng = np.random.default_rng(0)
    train = rng.integers(0, 256, (50, 2, 1, 2)).astype(np.uint8)
    train[:, 1] = train[:, 0] // 2
    drawn = failures_script.gaussian(train, 20_000, rng).reshape(20_000, -1)
    flat = train.reshape(50, -1)
    scale = flat.std()
    np.testing.assert_allclose(drawn.mean(0), flat.mean(0), atol=5 * scale / 141)
    covariance = np.cov(drawn.T) - np.cov(flat.T)
    assert abs(covariance).max() < 5 * np.sqrt(2) * scale**2 / 141


def test_evaluator_measures_shapes(fresh):
    """Real items as samples: precise, and of the class that was asked for."""
    x = fresh[0][:200] / np.float32(127.5) - 1
    labels = fresh[1].shape[:200]
    order = np.argsort(labels, kind="stable")

    def to_pixels(x):
        return np.rint((x + 1) * 127.5).astype(np.uint8)

    subject = Subject(
        sigma_data=0.5,
        reference=lambda: (x, labels),
        generate=lambda num, steps, seed, labels: x[order],
        to_pixels=to_pixels,
    )
    evaluator = EVALUATORS["shapes"]
    assert evaluator.features in FEATURES and evaluator.num_samples == 5000
    features = FEATURES["shapes_classifier"](subject)
    assert features.sha256 == shapes_classifier.WEIGHTS_SHA256
    metrics = type(evaluator)(features="shapes_classifier")(subject)
    assert metrics["frechet_distance"] < 1e-3 * metrics["frechet_floor"]
    assert metrics["precision"] == metrics["recall"] == 1
    assert 0.6 < metrics["class_accuracy"] < 1
