"""InceptionV3 as the graph of 2015-12-05, the network of FID.

Not torchvision's: the epsilon of batch norm is 1e-3, average pools leave padding out of
their mean, the pool of ``Mixed_7c`` is a maximum, there are 1008 outputs. Layers have
the names of the PyTorch ports (pytorch-fid, torch-fidelity), which publish the weights
of that graph; ``inception_weights`` reads them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from scm_jax.evaluation.features.tf1_resize import tf1_bilinear

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


class Fork(NamedTuple):
    """Branches over one input, their channels concatenated in this order."""

    branches: tuple[tuple[Any, ...], ...]


DOWN, MAX, AVERAGE = Pool("max", 2), Pool("max", 1), Pool("average", 1)


def _chain(name: str, *convs: tuple[Any, ...]) -> tuple[Conv, ...]:
    """Convolutions ``NAME_1``, ``NAME_2`` ..., each given as the fields after name."""
    return tuple(Conv(f"{name}_{i}", *conv) for i, conv in enumerate(convs, 1))


def _block_a(pooled: int) -> Fork:
    return Fork(
        (
            (Conv("branch1x1", 64),),
            _chain("branch5x5", (48,), (64, (5, 5))),
            _chain("branch3x3dbl", (64,), (96, (3, 3)), (96, (3, 3))),
            (AVERAGE, Conv("branch_pool", pooled)),
        )
    )


def _block_b() -> Fork:
    down = (3, 3), 2, "VALID"
    return Fork(
        (
            (Conv("branch3x3", 384, *down),),
            _chain("branch3x3dbl", (64,), (96, (3, 3)), (96, *down)),
            (DOWN,),
        )
    )


def _block_c(width: int) -> Fork:
    row, column = (1, 7), (7, 1)
    return Fork(
        (
            (Conv("branch1x1", 192),),
            _chain("branch7x7", (width,), (width, row), (192, column)),
            _chain(
                "branch7x7dbl",
                *((width,), (width, column), (width, row), (width, column), (192, row)),
            ),
            (AVERAGE, Conv("branch_pool", 192)),
        )
    )


def _block_d() -> Fork:
    down = (3, 3), 2, "VALID"
    return Fork(
        (
            _chain("branch3x3", (192,), (320, *down)),
            _chain("branch7x7x3", (192,), (192, (1, 7)), (192, (7, 1)), (192, *down)),
            (DOWN,),
        )
    )


def _block_e(pool: Pool) -> Fork:
    def pair(name: str) -> Fork:
        return Fork(
            ((Conv(f"{name}a", 384, (1, 3)),), (Conv(f"{name}b", 384, (3, 1)),))
        )

    return Fork(
        (
            (Conv("branch1x1", 320),),
            (*_chain("branch3x3", (384,)), pair("branch3x3_2")),
            (*_chain("branch3x3dbl", (448,), (384, (3, 3))), pair("branch3x3dbl_3")),
            (pool, Conv("branch_pool", 192)),
        )
    )


# The network: name of a stage, and what it is. Sides of a 299 x 299 image behind it.
STAGES: dict[str, Conv | Pool | Fork] = {
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


class InceptionOutput(NamedTuple):
    """What metrics read.

    Attributes:
      pool3: ``(b, 2048)``, features of FID, KID, precision and recall.
      spatial: ``(b, 17, 17, 7)``, of sFID (arXiv 2103.03841): the first 7 channels of
        ``Mixed_6d.branch1x1``, which the TensorFlow graph calls ``mixed_6/conv``.
      logits_unbiased: ``(b, 1008)``, of the Inception Score: without the bias.
      stages: the output of every stage by name.
    """

    pool3: jax.Array
    spatial: jax.Array
    logits_unbiased: jax.Array
    stages: dict[str, jax.Array]


def apply(params: Params, x: jax.Array) -> InceptionOutput:
    """The network on images of any size from 75 x 75 on.

    Args:
      params: of ``inception_weights.load``.
      x: ``(b, h, w, 3)`` in [-1, 1); 299 x 299 gives the shapes of ``InceptionOutput``.
    """
    stages = {}
    for name in STAGES:
        x = stages[name] = run_stage(name, params, x)
    pool3 = x.mean(axis=(1, 2))
    return InceptionOutput(
        pool3=pool3,
        # branch1x1 is the first in the concatenation.
        spatial=stages["Mixed_6d"][..., :SPATIAL_CHANNELS],
        logits_unbiased=pool3 @ params["fc"]["kernel"],
        stages=stages,
    )


def features(params: Params, images: jax.Array) -> dict[str, jax.Array]:
    """uint8 images of any size -> what metrics read, by the name of ``FeatureNet``.

    Resized by ``tf1_bilinear``, then ``(x - 128) / 128``.

    Args:
      params: of ``inception_weights.load``.
      images: ``(b, h, w, 3)`` in 0..255.

    Returns:
      ``features`` ``(b, 2048)``; ``spatial`` ``(b, 2023)``, rows, then columns, then
      channels, as the stored statistics of ADM have them; ``logits`` ``(b, 1008)``,
      without the bias.
    """
    x = (tf1_bilinear(images, IMAGE_SIDE, IMAGE_SIDE) - 128) / 128
    out = apply(params, x)
    return {
        "features": out.pool3,
        "spatial": out.spatial.reshape(len(out.spatial), -1),
        "logits": out.logits_unbiased,
    }


def run_stage(name: str, params: Params, x: jax.Array) -> jax.Array:
    """One stage: ``(b, h, w, c)`` -> what ``STAGES[name]`` makes of it."""
    return _run(STAGES[name], params, name, x)


def _run(
    layer: Conv | Pool | Fork, params: Params, name: str, x: jax.Array
) -> jax.Array:
    match layer:
        case Conv():
            return _conv(layer, params[_join(name, layer.name)], x)
        case Pool():
            return _pool(layer, x)
        case Fork():
            outputs = []
            for branch in layer.branches:
                h = x
                for part in branch:
                    h = _run(part, params, name, h)
                outputs.append(h)
            return jnp.concatenate(outputs, axis=-1)


def _conv(layer: Conv, weights: dict[str, Any], x: jax.Array) -> jax.Array:
    strides = (layer.stride, layer.stride)
    x = jax.lax.conv_general_dilated(
        x,
        weights["kernel"],
        strides,
        layer.padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return jax.nn.relu(x + weights["bias"][None, None, None])


def _pool(layer: Pool, x: jax.Array) -> jax.Array:
    strides = (layer.stride, layer.stride)
    padding = "VALID" if layer.stride > 1 else "SAME"
    if layer.kind == "max":
        return nn.max_pool(x, (3, 3), strides, padding)
    return nn.avg_pool(x, (3, 3), strides, padding, count_include_pad=False)


def conv_shapes() -> dict[str, tuple[int, int, int, int]]:
    """Name of every convolution -> shape ``(height, width, in, out)`` of its kernel."""
    shapes = {}
    width = 3
    for name, stage in STAGES.items():
        for conv, inputs in _convs((stage,), width):
            shapes[_join(name, conv.name)] = (*conv.kernel, inputs, conv.width)
        width = _width((stage,), width)
    return shapes


def _convs(branch: tuple[Any, ...], width: int) -> Iterator[tuple[Conv, int]]:
    """Each convolution with the channels of its input; ``branch`` has ``width``."""
    for part in branch:
        match part:
            case Conv():
                yield part, width
            case Fork():
                for inner in part.branches:
                    yield from _convs(inner, width)
        width = _width((part,), width)


def _width(branch: tuple[Any, ...], width: int) -> int:
    """Channels behind a branch."""
    for part in branch:
        match part:
            case Conv():
                width = part.width
            case Fork():
                width = sum(_width(inner, width) for inner in part.branches)
    return width


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

    ``gamma (conv(x) - mean) / sqrt(variance + eps) + beta``, in float64.

    Args:
      weight: ``(out, in, height, width)``.
      gamma: ``(out,)``, like the others.
    """
    scale = gamma.astype(np.float64) / np.sqrt(variance.astype(np.float64) + BN_EPS)
    kernel = weight.transpose(2, 3, 1, 0) * scale
    bias = beta - mean * scale
    return {"kernel": kernel.astype(np.float32), "bias": bias.astype(np.float32)}
