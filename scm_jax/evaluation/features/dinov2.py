"""DINOv2 (arXiv 2304.07193): the features of FD-DINOv2 (arXiv 2306.04675, 2312.02696).

A vision transformer with LayerScale and without register tokens, read from the public
weight files. The feature of an image is its class token after the last LayerNorm.
Sizes follow from the shapes of the weights; FD-DINOv2 is defined with ViT-L/14 at 224
pixels: patches of 14, depth 24, 16 heads, 1024 features.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image

from scm_jax.evaluation.features import dinov2_weights
from scm_jax.evaluation.features.extraction import FeatureNet, unchanged
from scm_jax.files.catalogue import find_weights
from scm_jax.files.state_dict import read_state_dict
from scm_jax.files.tensors import tensors_sha256
from scm_jax.types import lookup

IMAGE_SIZE = 224
# Mean and deviation of ImageNet's colours, for values in [0, 1].
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
NORM_EPS = 1e-6

Params = Mapping[str, Any]


def extractor(
    path: str | os.PathLike | None = None,
    resize: str = "tensor_bicubic",
    batch_size: int = 64,
) -> FeatureNet:
    """DINOv2 as a feature network, from a public weight file.

    Args:
      path: the file; None looks where published ones are kept, see ``find_weights``.
      resize: a key of ``RESIZES``: ``tensor_bicubic``, the default of EDM2's code
        (2312.02696), or ``pil_bicubic``, that of 2306.04675. Their numbers are close,
        but not the same.
      batch_size: images at a time.

    Raises:
      FileNotFoundError: no weights; says where they are published and where to put
        them.
      ValueError: an unknown resize rule, or a file that holds other weights.
    """
    prepare = lookup(RESIZES, resize, "resize")
    file = find_weights("dinov2", path)
    tensors = dinov2_weights.published(read_state_dict(file), str(file))
    params = dinov2_weights.convert(tensors, IMAGE_SIZE)
    return FeatureNet(
        name=dinov2_weights.network_name(tensors),
        weights_sha256=tensors_sha256(tensors),
        resize=resize,
        apply=apply,
        params=params,
        prepare=prepare,
        batch_size=batch_size,
    )


def apply(params: Params, images: jax.Array) -> dict[str, jax.Array]:
    """Features of images, which are resized if they are not of the network's size.

    Args:
      params: of ``dinov2_weights.convert``. Their shapes carry all sizes.
      images: ``(b, h, w, 3)``, values in 0..255.

    Returns:
      ``"features"`` ``(b, width)``: class tokens after the last LayerNorm.
    """
    pixels = normalize(resize_on_device(images, image_size(params)))
    h = embed(params, pixels)
    # A loop, because 24 blocks in a row would take 24 times as long to compile.
    h, _ = jax.lax.scan(lambda h, w: (block(w, h), None), h, params["blocks"])
    return {"features": layer_norm(params["norm"], h[:, 0])}


def image_size(params: Params) -> int:
    """Side of the images that the network takes, in pixels."""
    patch = params["patch"]["kernel"].shape[0]
    return math.isqrt(params["position"].shape[0]) * patch


# Images.


def resize_with_pil(images: np.ndarray, size: int = IMAGE_SIZE) -> np.ndarray:
    """uint8 ``(n, h, w, 3)`` -> ``(n, size, size, 3)``: antialiased bicubic by Pillow.

    Rounded and clipped to uint8 after each of its two passes.
    """
    bicubic = PIL.Image.Resampling.BICUBIC
    resized = [PIL.Image.fromarray(x).resize((size, size), bicubic) for x in images]
    return np.stack([np.asarray(image) for image in resized])


def resize_on_device(images: jax.Array, size: int) -> jax.Array:
    """The same kernel (Keys, a = -0.5) in float32, neither rounded nor clipped."""
    images = images.astype(jnp.float32)
    shape = (images.shape[0], size, size, images.shape[3])
    return jax.image.resize(images, shape, "cubic", antialias=True)


# Rule -> what happens on the host; ``apply`` resizes what has another size after it.
RESIZES = {"tensor_bicubic": unchanged, "pil_bicubic": resize_with_pil}


def normalize(images: jax.Array) -> jax.Array:
    """0..255 -> the scale that the network was trained on."""
    mean, std = (jnp.array(v, jnp.float32)[None, None, None] for v in (MEAN, STD))
    return (images.astype(jnp.float32) / 255 - mean) / std


# The network. Tokens are (b, n, c), the class token first.


def embed(params: Params, pixels: jax.Array) -> jax.Array:
    """``(b, h, w, 3)`` normalized pixels -> tokens with positions."""
    kernel = params["patch"]["kernel"]
    b, height, width, channels = pixels.shape
    patch = kernel.shape[0]
    x = pixels.reshape(b, height // patch, patch, width // patch, patch, channels)
    x = jnp.einsum("bhpwqc,pqcd->bhwd", x, kernel)
    x = x.reshape(b, -1, kernel.shape[-1]) + params["patch"]["bias"][None, None]
    x = x + params["position"][None]
    first = jnp.broadcast_to(params["cls"][None, None], (b, 1, kernel.shape[-1]))
    return jnp.concatenate([first, x], axis=1)


def block(params: Params, h: jax.Array) -> jax.Array:
    """``h + scale1 * attend(norm1(h))``, then ``h + scale2 * mlp(norm2(h))``."""
    branch = _attend(params, layer_norm(params["norm1"], h))
    h = h + params["scale1"][None, None] * branch
    y = _dense(params["mlp_in"], layer_norm(params["norm2"], h))
    y = _dense(params["mlp_out"], jax.nn.gelu(y, approximate=False))
    return h + params["scale2"][None, None] * y


def layer_norm(params: Params, h: jax.Array) -> jax.Array:
    """``(h - mean) / sqrt(var + 1e-6) * scale + bias`` over the last axis."""
    h = h - h.mean(-1, keepdims=True)
    h = h * jax.lax.rsqrt(jnp.square(h).mean(-1, keepdims=True) + NORM_EPS)
    shape = (1,) * (h.ndim - 1) + (-1,)
    return h * params["scale"].reshape(shape) + params["bias"].reshape(shape)


def _attend(params: Params, h: jax.Array) -> jax.Array:
    qkv = jnp.einsum("bnc,cthd->tbnhd", h, params["qkv"]["kernel"])
    q, k, v = qkv + params["qkv"]["bias"][:, None, None]
    logits = jnp.einsum("bnhd,bmhd->bhnm", q, k) / math.sqrt(q.shape[-1])
    out = jnp.einsum("bhnm,bmhd->bnhd", jax.nn.softmax(logits), v)
    return _dense(params["out"], out.reshape(h.shape))


def _dense(params: Params, h: jax.Array) -> jax.Array:
    return h @ params["kernel"] + params["bias"][None, None]
