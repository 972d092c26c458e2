"""Writes ``resize_tf1.npz``: pixels of images that TensorFlow resized to 299 x 299.

Needs tensorflow, which the test does not: ``python make_resize.py``. Images and places
are drawn as ``tests/evaluation/test_resize.py`` draws them.
"""

from pathlib import Path

import numpy as np
import tensorflow as tf

SIZES = [(32, 32), (64, 64), (256, 256), (512, 512), (48, 200), (400, 37), (299, 32)]
SIDE, CHANNELS, NUM_PIXELS = 299, 3, 1000

if __name__ == "__main__":
    pixels = {}
    for height, width in SIZES:
        rng = np.random.default_rng(height * 1000 + width)
        image = rng.integers(0, 256, (1, height, width, CHANNELS), dtype=np.uint8)
        places = rng.integers(0, SIDE * SIDE * CHANNELS, NUM_PIXELS)
        resized = tf.compat.v1.image.resize_bilinear(
            image.astype(np.float32),
            (SIDE, SIDE),
            align_corners=False,
            half_pixel_centers=False,
        )
        pixels[f"{height}x{width}"] = np.asarray(resized).reshape(-1)[places]
    np.savez(Path(__file__).parent / "resize_tf1.npz", **pixels)
