"""InceptionV3 as the graph of 2015-12-05, the network of FID.

Unlike torchvision's, the epsilon of batch norm is 1e-3, average pools leave padding out
of their mean, the pool of ``Mixed_7c`` is a maximum, and there are 1008 outputs. Layers
have the names of the PyTorch ports (pytorch-fid, torch-fidelity).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

IMAGE_SIDE = 299
NUM_FEATURES = 2048
NUM_CLASSES = 1008
SPATIAL_CHANNELS = 7
BN_EPS = 1e-3

# Layer name -> {"kernel": (height, width, in, out), "bias": (out,)}; "fc" is (in, out).
Params = dict[str, dict[str, Any]]


class Conv(NamedTuple):
    """Convolution without bias, batch norm, ReLU. Strides come without padding."""

    name: str
    width: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str = "SAME"


class Pool(NamedTuple):
    """3 x 3 pooling: of stride 2 without padding, or of stride 1 with it."""

    kind: str
    stride: int


# A layer is one of these, or a list of branches over one input, whose channels are
# concatenated in this order. A branch is a tuple of layers.
Layer = Conv | Pool | list[tuple[Any, ...]]

DOWN, MAX, AVERAGE = Pool("max", 2), Pool("max", 1), Pool("average", 1)
_SHRINK = (3, 3), 2, "VALID"  # the end of a Conv that halves the sides


def _chain(name: str, *convs: tuple[Any, ...]) -> tuple[Conv, ...]:
    """Convolutions ``NAME_1``, ``NAME_2`` ..., each given as the fields after name."""
    return tuple(Conv(f"{name}_{i}", *conv) for i, conv in enumerate(convs, 1))


def _block_a(pooled: int) -> Layer:
    return [
        (Conv("branch1x1", 64),),
        _chain("branch5x5", (48,), (64, (5, 5))),
        _chain("branch3x3dbl", (64,), (96, (3, 3)), (96, (3, 3))),
        (AVERAGE, Conv("branch_pool", pooled)),
    ]


def _block_b() -> Layer:
    return [
        (Conv("branch3x3", 384, *_SHRINK),),
        _chain("branch3x3dbl", (64,), (96, (3, 3)), (96, *_SHRINK)),
        (DOWN,),
    ]


def _block_c(width: int) -> Layer:
    row, column = (1, 7), (7, 1)
    double = (width,), (width, column), (width, row), (width, column), (192, row)
    return [
        (Conv("branch1x1", 192),),
        _chain("branch7x7", (width,), (width, row), (192, column)),
        _chain("branch7x7dbl", *double),
        (AVERAGE, Conv("branch_pool", 192)),
    ]


def _block_d() -> Layer:
    long = (192, (1, 7)), (192, (7, 1))
    return [
        _chain("branch3x3", (192,), (320, *_SHRINK)),
        _chain("branch7x7x3", (192,), *long, (192, *_SHRINK)),
        (DOWN,),
    ]


def _block_e(pool: Pool) -> Layer:
    def pair(name: str) -> Layer:
        return [(Conv(f"{name}a", 384, (1, 3)),), (Conv(f"{name}b", 384, (3, 1)),)]

    return [
        (Conv("branch1x1", 320),),
        (*_chain("branch3x3", (384,)), pair("branch3x3_2")),
        (*_chain("branch3x3dbl", (448,), (384, (3, 3))), pair("branch3x3dbl_3")),
        (pool, Conv("branch_pool", 192)),
    ]


# The network: name of a stage, and what it is. Sides of a 299 x 299 image behind it.
STAGES: dict[str, Layer] = {
    "Conv2d_1a_3x3": Conv("", 32, (3, 3), 2, "VALID"),  # 149
    "Conv2d_2a_3x3": Conv("", 32, (3, 3), 1, "VALID"),
    "Conv2d_2b_3x3": Conv("", 64, (3, 3)),  # 147
    "MaxPool_1": DOWN,  # 73
    "Conv2d_3b_1x1": Conv("", 80),
    "Conv2d_4a_3x3": Conv("", 192, (3, 3), 1, "VALID"),
    "MaxPool_2": DOWN,  # 35
    "Mixed_5b": _block_a(32),
    "Mixed_5c": _block_a(64),
    "Mixed_5d": _block_a(64),
    "Mixed_6a": _block_b(),  # 17
    "Mixed_6b": _block_c(128),
    "Mixed_6c": _block_c(160),
    "Mixed_6d": _block_c(160),
    "Mixed_6e": _block_c(192),
    "Mixed_7a": _block_d(),  # 8
    "Mixed_7b": _block_e(AVERAGE),
    "Mixed_7c": _block_e(MAX),
}


def features(params: Params, images: jax.Array) -> dict[str, jax.Array]:
    """The outputs for uint8 images, resized by ``tf1_bilinear``; for ``FeatureNet``.

    Args:
      params: of ``inception_weights.load``.
      images: ``(b, h, w, 3)`` in 0..255.
    """
    x = (tf1_bilinear(images, IMAGE_SIDE, IMAGE_SIDE) - 128) / 128
    return outputs(params, stages(params, x))


def tf1_bilinear(images: jax.Array, height: int, width: int) -> jax.Array:
    """Bilinear resize as ``resize_bilinear`` of TensorFlow 1, the rule of FID.

    Pixel ``i`` of the result is read at ``i * in / out``: no half-pixel centres, no
    smoothing when the image gets smaller, and the last rows and columns are repeated.
    From ``(b, h, w, c)``, uint8 or float, to float32 in the same range.
    """
    x = jnp.asarray(images).astype(jnp.float32)
    if x.shape[1:3] == (height, width):
        return x
    left, right, across = _grid(x.shape[2], width)
    top, bottom, down = _grid(x.shape[1], height)
    x = _lerp(x[:, :, left], x[:, :, right], across[None, None, :, None])
    return _lerp(x[:, top], x[:, bottom], down[None, :, None, None])


def _grid(size: int, new_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The two source pixels of every new pixel, and the weight of the second."""
    # In float32 as TensorFlow has it (tensorflow/core/kernels/image/
    # resize_bilinear_op.cc): at large sizes the rounding is what is seen.
    scale = np.float32(size) / np.float32(new_size)
    source = np.arange(new_size, dtype=np.float32) * scale
    first = np.floor(source)
    second = np.minimum(first + 1, size - 1)
    return first.astype(np.int32), second.astype(np.int32), source - first


def _lerp(a: jax.Array, b: jax.Array, weight: np.ndarray) -> jax.Array:
    return a + (b - a) * jnp.asarray(weight)


def stages(params: Params, x: jax.Array) -> dict[str, jax.Array]:
    """What every stage gives for ``(b, h, w, 3)`` in [-1, 1), from 75 x 75 on."""
    found = {}
    for name, stage in STAGES.items():
        x = found[name] = run(name, stage, params, x)
    return found


def outputs(params: Params, stages: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """What metrics read.

    Returns:
      ``features`` ``(b, 2048)``, pool3, of FID, KID, precision and recall; ``spatial``
      ``(b, 2023)``, of sFID (arXiv 2103.03841): the first 7 channels of
      ``Mixed_6d.branch1x1``, which the TensorFlow graph calls ``mixed_6/conv``, rows,
      then columns, then channels, as in ADM's statistics; ``logits`` ``(b, 1008)``, of
      the Inception Score, without the bias.
    """
    pool3 = stages["Mixed_7c"].mean(axis=(1, 2))
    # branch1x1 is the first in the concatenation.
    spatial = stages["Mixed_6d"][..., :SPATIAL_CHANNELS]
    return {
        "features": pool3,
        "spatial": spatial.reshape(len(spatial), -1),
        "logits": pool3 @ params["fc"]["kernel"],
    }


def run(name: str, layer: Layer, params: Params, x: jax.Array) -> jax.Array:
    """A stage ``name``, or a layer in it, of ``(b, h, w, c)``."""
    match layer:
        case Conv(stride=stride):
            weights = params[_join(name, layer.name)]
            x = jax.lax.conv_general_dilated(
                x,
                weights["kernel"],
                (stride, stride),
                layer.padding,
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
            return jax.nn.relu(x + weights["bias"][None, None, None])
        case Pool("max", stride):
            padding = "VALID" if stride > 1 else "SAME"
            return nn.max_pool(x, (3, 3), (stride, stride), padding)
        case Pool():
            return nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)
        case branches:
            outputs = []
            for branch in branches:
                h = x
                for part in branch:
                    h = run(name, part, params, h)
                outputs.append(h)
            return jnp.concatenate(outputs, axis=-1)


def conv_shapes() -> dict[str, tuple[int, int, int, int]]:
    """Name of every convolution -> shape ``(height, width, in, out)`` of its kernel."""
    shapes: dict[str, tuple[int, int, int, int]] = {}
    width = 3
    for name, stage in STAGES.items():
        width = _add_shapes(shapes, name, stage, width)
    return shapes


def _add_shapes(shapes: dict[str, Any], name: str, layer: Layer, width: int) -> int:
    """Adds the kernels in a layer of ``width`` inputs; returns its output channels."""
    match layer:
        case Conv():
            shapes[_join(name, layer.name)] = (*layer.kernel, width, layer.width)
            return layer.width
        case Pool():
            return width
        case branches:
            outputs = 0
            for branch in branches:
                inner = width
                for part in branch:
                    inner = _add_shapes(shapes, name, part, inner)
                outputs += inner
            return outputs


def _join(stage: str, name: str) -> str:
    return f"{stage}.{name}" if name else stage


def fold_batch_norm(
    weight: np.ndarray,
    gamma: np.ndarray,
    beta: np.ndarray,
    mean: np.ndarray,
    variance: np.ndarray,
) -> dict[str, np.ndarray]:
    """One convolution with bias for a convolution and its batch norm.

    ``gamma (conv(x) - mean) / sqrt(variance + eps) + beta``, in float64. The weight is
    ``(out, in, height, width)``, the others are ``(out,)``.
    """
    scale = gamma.astype(np.float64) / np.sqrt(variance.astype(np.float64) + BN_EPS)
    kernel = weight.transpose(2, 3, 1, 0) * scale
    bias = beta - mean * scale
    return {"kernel": kernel.astype(np.float32), "bias": bias.astype(np.float32)}
