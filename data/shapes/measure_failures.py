"""How far known failures are from ``shapes``, in the features of its frozen network.

Run: python data/shapes/measure_failures.py
Expect: the table of README.md, in a minute on 2 CPU cores.

Every failure is made of the same held-out items (the Gaussian of the moments of as many
training items), so the number of samples and the choice of items play no part.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from scm_jax.datasets.shapes import ShapeSource
from scm_jax.evaluation.features import shapes_classifier
from scm_jax.evaluation.metrics import frechet, neighbours

NUM_REAL = 4_000
NUM_SAMPLES = 2_000


def failures(
    held_out: np.ndarray, labels: np.ndarray, train: np.ndarray, seed: int = 0
) -> Iterator[tuple[str, np.ndarray]]:
    """Names and uint8 images, the held-out items themselves first.

    Args:
      held_out: uint8 ``(n, h, w, 3)``.
      labels: their classes.
      train: other items, ``(m, h, w, 3)``, whose moments the Gaussian has.
      seed: of the noise and of the pairs.
    """
    rng = np.random.default_rng(seed)
    real = held_out.astype(np.float32)
    noise = 127.5 * rng.standard_normal(real.shape, np.float32)
    yield "held-out items", held_out
    for level in (0.05, 0.1, 0.2):
        yield f"noise {level}", quantize(real + np.float32(level) * noise)
    yield "blur", quantize(blur(real))
    yield "colours permuted", held_out[..., [1, 2, 0]]
    yield "half of the classes", held_out[labels < 5]
    yield "means of pairs", quantize((real + rng.permutation(real)) / 2)
    yield "Gaussian of the pixels", quantize(gaussian(train, len(real), rng))


def quantize(pixels: np.ndarray) -> np.ndarray:
    """The nearest levels."""
    return np.rint(np.clip(pixels, 0, 255)).astype(np.uint8)


def blur(pixels: np.ndarray) -> np.ndarray:
    """0.6 of a pixel and 0.1 of each of its four neighbours, around the edges."""
    crosses = [np.roll(pixels, shift, axis) for shift in (1, -1) for axis in (1, 2)]
    return np.float32(0.6) * pixels + np.float32(0.1) * sum(crosses)


def gaussian(train: np.ndarray, num: int, rng: np.random.Generator) -> np.ndarray:
    """Images from the Gaussian with mean and covariance of ``train``.

    Random sums of the centred images have exactly their covariance.
    """
    flat = train.reshape(len(train), -1).astype(np.float32)
    mean = flat.mean(0)
    weights = rng.standard_normal((num, len(flat)), np.float32)
    images = mean + weights @ (flat - mean) / np.float32(np.sqrt(len(flat) - 1))
    return images.reshape(num, *train.shape[1:])


def coarse(pixels: np.ndarray) -> np.ndarray:
    """Means of 4x4 pixels in -1..1, flat: what no network has looked at."""
    n, side, _, channels = pixels.shape
    blocks = pixels.reshape(n, side // 4, 4, side // 4, 4, channels)
    return (blocks.mean((2, 4)) / 127.5 - 1).reshape(n, -1)


def main() -> None:
    weights = shapes_classifier.load_weights()
    train = ShapeSource("train", NUM_REAL).gather(np.arange(NUM_REAL))["image"]
    test = ShapeSource("test", NUM_SAMPLES).gather(np.arange(NUM_SAMPLES))
    real = shapes_classifier.features(weights, train)
    floor, spread = frechet.halves_floor(real)
    print(f"two halves of {NUM_REAL} training items: {floor:.4f} +- {spread:.4f}\n")
    print("| samples | distance | precision | recall | of 8x8 pixels |")
    print("|---|---|---|---|---|")
    for name, images in failures(test["image"], test["label"], train[:NUM_SAMPLES]):
        fake = shapes_classifier.features(weights, images)
        distance = frechet.feature_distance(real, fake)
        precision, recall = neighbours.precision_recall(real, fake)
        pixels = frechet.feature_distance(coarse(train), coarse(images))
        row = f"{distance:.3f} | {precision:.3f} | {recall:.3f} | {pixels:.3f}"
        print(f"| {name} | {row} |", flush=True)


if __name__ == "__main__":
    main()
