"""Weights of the FID network drawn from a seed; needs numpy only."""

import numpy as np


def tensors(shapes, seed=0):
    """Values for ``shapes``, under which activations keep their scale.

    Variances are small, so that the epsilon of batch norm is seen.
    """
    rng = np.random.default_rng(seed)
    state = {}
    for name, shape in shapes.items():
        if name.endswith("conv.weight"):
            scale = np.sqrt(2 * 0.05 / np.prod(shape[1:]))
            value = rng.standard_normal(shape, np.float32) * np.float32(scale)
        elif name == "fc.weight":
            value = rng.standard_normal(shape, np.float32) * np.float32(0.02)
        elif name.endswith("running_var"):
            value = rng.uniform(0.02, 0.08, shape)
        elif name.endswith("bn.weight"):
            value = rng.uniform(0.6, 1.4, shape)
        else:  # biases and running means
            value = rng.normal(0, 0.1, shape)
        state[name] = value.astype(np.float32)
    return state


def image(height, width, batch=2):
    """Normal ``(b, h, w, 3)``."""
    rng = np.random.default_rng(height)
    return rng.standard_normal((batch, height, width, 3), np.float32)


def pixels(side=64):
    """uint8 ``(1, side, side, 3)``, smooth enough to look like an image."""
    rng = np.random.default_rng(side)
    coarse = rng.uniform(0, 255, (1, 8, 8, 3))
    return np.repeat(np.repeat(coarse, side // 8, 1), side // 8, 2).astype(np.uint8)


def summary(x, count=64):
    """Mean, root mean square and ``count`` elements of a channels-last array."""
    x = np.asarray(x, np.float64).reshape(-1)
    chosen = np.random.default_rng(x.size).integers(0, x.size, count)
    return np.concatenate([[x.mean(), np.sqrt((x**2).mean())], x[chosen]])
