"""Features of a tiny network on four devices; see test_feature_extraction.py.

python -m tests.multidevice.feature_extraction FILE
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np

from scm_jax.evaluation.features import extraction

BATCH, IMAGES = 6, 21


def apply(params, x):
    """A convolution over the image, so that a cut at the wrong axis is seen."""
    x = jax.lax.conv_general_dilated(
        x.astype(jnp.float32) / 255,
        params,
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return {"features": jax.nn.relu(x).mean(axis=(1, 2)), "row": x[:, 0]}


def inputs():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (IMAGES, 8, 8, 3), dtype=np.uint8)
    return rng.standard_normal((3, 3, 3, 5), np.float32), images


def outputs():
    params, images = inputs()
    net = extraction.FeatureNet("", "", "", apply, params, batch_size=BATCH)
    parts = list(net.batches(images))
    sizes = [len(part["features"]) for part in parts]
    joined = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
    return joined, sizes


def main(path):
    assert jax.device_count() == 4
    devices = []
    fetch = extraction._fetch

    def watched(outputs, count):
        devices.append(
            {s.data.shape[0] for s in outputs["features"].addressable_shards}
        )
        return fetch(outputs, count)

    extraction._fetch = watched
    everywhere, sizes = outputs()
    assert sizes == [8, 8, 5], sizes  # the next multiple of four
    assert devices == [{2}] * 3, devices  # two rows on each of the four
    np.savez(path, **everywhere)


if __name__ == "__main__":
    main(*sys.argv[1:])
