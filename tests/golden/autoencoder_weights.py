"""Weights of a tiny autoencoder, drawn by numpy so that nobody has to store them."""

import zlib

import numpy as np

# What diffusers' AutoencoderKL calls its settings.
CONFIG = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": [8, 12, 16],
    "layers_per_block": 2,
    "norm_num_groups": 4,
    "act_fn": "silu",
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
}


def draw(shapes):
    """Name -> float32 tensor, each from its own name; ``shapes`` is name -> shape.

    The residual stream stays small, so that the epsilon of the norms shows, and queries
    and keys large, so that the attention is not an average.
    """
    return {name: _tensor(name, shape) for name, shape in shapes.items()}


def _tensor(name, shape):
    seed = zlib.crc32(name.encode())
    numbers = np.random.default_rng(seed).standard_normal(shape)
    if len(shape) > 1:
        gain = 3.0 if "to_q." in name or "to_k." in name else 0.05
        numbers *= gain / np.sqrt(np.prod(shape[1:]))
    elif name.endswith("weight"):
        numbers = 1 + 0.2 * numbers
    else:
        numbers *= 0.2 if "norm" in name else 0.01
    return numbers.astype(np.float32)


def image():
    """``(1, 8, 12, 3)`` in [-1, 1]."""
    numbers = np.random.default_rng(7).uniform(-1, 1, (1, 8, 12, 3))
    return numbers.astype(np.float32)


def latent():
    """``(1, 2, 3, 4)``."""
    return np.random.default_rng(8).standard_normal((1, 2, 3, 4)).astype(np.float32)
