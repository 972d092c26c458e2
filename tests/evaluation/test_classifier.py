"""The frozen weights are the recorded ones, and their features rank failures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scm_jax.evaluation.features import digits_classifier
from scm_jax.evaluation.metrics.frechet import feature_distance, halves_floor
from scm_jax.files.tensors import tensors_sha256


@pytest.fixture(scope="module")
def weights():
    return digits_classifier.load_weights()


def quantize(pixels):
    return np.rint(np.clip(pixels, 0, 255)).astype(np.uint8)


def test_held_out_accuracy(weights, digits, split, training_script):
    pixels, labels = digits
    _, held_out = split
    assert len(held_out) == 360
    accuracy = training_script.accuracy(weights, pixels[held_out], labels[held_out])
    assert accuracy >= 0.97


def test_features_are_two_dense_layers(weights, digits):
    pixels = digits[0][:32]
    h = pixels.reshape(32, 64) / 127.5
    for layer in ("dense0", "dense1"):
        kernel, bias = weights[f"{layer}_kernel"], weights[f"{layer}_bias"]
        h = np.clip(np.einsum("ni,ij->nj", h, kernel) + bias, 0, None)
    found = digits_classifier.features(weights, pixels)
    assert found.shape == (32, digits_classifier.NUM_FEATURES)
    np.testing.assert_allclose(found, h, atol=1e-10)
    single = {name: jnp.asarray(array, jnp.float32) for name, array in weights.items()}
    in_jax = jax.jit(lambda p: digits_classifier.features(single, p, jnp))(pixels)
    np.testing.assert_allclose(in_jax, found, atol=1e-6 * np.sqrt(128))


def test_wrong_shapes_are_refused(weights):
    for shape in ((2, 8, 8), (2, 8, 8, 3), (2, 28, 28, 1)):
        with pytest.raises(ValueError, match=r"expected \(n, 8, 8, 1\)"):
            digits_classifier.features(weights, np.zeros(shape, np.uint8))


@pytest.fixture(scope="module")
def distances(weights, digits, split):
    """Frechet distance from the training images, of held-out images and of failures.

    Every failure but the Gaussian is made of the held-out images, so that the number of
    samples and the choice of images play no part.
    """
    pixels, labels = digits
    seen, held_out = split
    rng = np.random.default_rng(0)
    real = pixels[held_out].astype(np.float64)
    noise = 127.5 * rng.standard_normal(real.shape)
    flat = pixels[seen].reshape(len(seen), -1).astype(np.float64)
    gaussian = rng.multivariate_normal(
        flat.mean(0), np.cov(flat.T), len(real), method="eigh"
    )
    crosses = [np.roll(real, shift, axis) for shift in (1, -1) for axis in (1, 2)]
    samples = {
        "held_out": real,
        "noise_0.1": real + 0.1 * noise,
        "noise_0.2": real + 0.2 * noise,
        "noise_0.4": real + 0.4 * noise,
        "gaussian": gaussian.reshape(real.shape),
        "pairs": (real + rng.permutation(real)) / 2,
        "five_classes": real[labels[held_out] < 5],
        "blur": 0.6 * real + 0.1 * sum(crosses),
    }
    reference = digits_classifier.features(weights, pixels[seen])
    return {
        name: feature_distance(
            digits_classifier.features(weights, quantize(x)), reference
        )
        for name, x in samples.items()
    }


def test_failures_are_far_from_real_data(distances):
    failures = ("noise_0.2", "gaussian", "pairs", "five_classes", "blur")
    ratio = {name: distances[name] / distances["held_out"] for name in failures}
    assert min(ratio.values()) > 2.5, ratio
    # What a pixel metric misses must stand out (a Gaussian with the data's moments).
    missed = {name: ratio[name] for name in ("gaussian", "pairs", "five_classes")}
    assert min(missed.values()) > 10, ratio
    names = ("held_out", "noise_0.1", "noise_0.2", "noise_0.4")
    values = [distances[name] for name in names]
    assert values == sorted(values)


def test_held_out_images_are_as_close_as_any(
    distances, weights, digits, training_script
):
    """Else a sampler that copies its training data would be rewarded."""
    pixels, labels = digits
    features = digits_classifier.features(weights, pixels)
    rng = np.random.default_rng(0)
    random_fifths = []
    for _ in range(10):
        rank = rng.random(len(labels))
        fifth = np.zeros(len(labels), bool)
        for label in range(10):
            rows = np.flatnonzero(labels == label)
            fifth[rows[np.argsort(rank[rows])[: len(rows) // 5]]] = True
        random_fifths.append(feature_distance(features[fifth], features[~fifth]))
    assert distances["held_out"] < np.mean(random_fifths) + 3 * np.std(random_fifths)


def test_floor_of_real_digits_is_the_recorded_one(weights, digits):
    """The floor stands in every table; it must not depend on machine or version."""
    floor, spread = halves_floor(digits_classifier.features(weights, digits[0]))
    assert floor == pytest.approx(1.8044912673076, rel=1e-6)
    assert 0 < spread < floor


def test_training_script_learns_and_repeats(training_script, digits, monkeypatch):
    monkeypatch.setattr(training_script, "NUM_STEPS", 60)
    pixels, labels = digits
    first = training_script.train(pixels, labels)
    assert training_script.accuracy(first, pixels, labels) > 0.7
    second = training_script.train(pixels, labels)
    assert tensors_sha256(first) == tensors_sha256(second)


def test_augmentation_shifts_by_at_most_a_pixel(training_script, monkeypatch):
    monkeypatch.setattr(training_script, "NOISE", 0.0)
    image = np.zeros((400, 8, 8, 1), np.float32)
    image[:, 3, 4] = 255
    moved = training_script.augment(image, np.random.default_rng(0))
    _, rows, columns, _ = np.nonzero(moved)
    assert len(rows) == 400
    assert set(rows - 3) == set(columns - 4) == {-1, 0, 1}
    stayed = ((rows == 3) & (columns == 4)).mean()
    p = training_script.SHIFT_PROBABILITY
    # One in nine shifts is no shift; three standard deviations of 400 draws.
    assert stayed == pytest.approx(1 - p * 8 / 9, abs=3 * np.sqrt(0.25 / 400))
