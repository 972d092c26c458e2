"""Public weight files of DINOv2 -> the parameters that ``dinov2.apply`` takes."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from scm_jax.files.tensors import check_tensors

# Channels of a head, in all published sizes. No shape in a file says it.
HEAD_WIDTH = 64
# Added to the number of patches before it is divided, by the published code
# (facebookresearch/dinov2, interpolate_pos_encoding): it shifts all sample points.
POSITION_OFFSET = 0.1
# Bicubic kernel of torch without antialiasing. Pillow's and the antialiased have -0.5.
KEYS_A = -0.75


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What the shapes of the weights say.

    Attributes:
      width: channels of a token.
      depth: number of blocks.
      hidden: channels between the two layers of a block's network.
      patch: side of a patch, in pixels.
      side: patches along a side of the images that the positions were trained on.
    """

    width: int
    depth: int
    hidden: int
    patch: int = 14
    side: int = 37


# Published with names and layout of these files, and without register tokens.
PUBLISHED = {
    "dinov2_vits14": Sizes(width=384, depth=12, hidden=1536),
    "dinov2_vitb14": Sizes(width=768, depth=12, hidden=3072),
    "dinov2_vitl14": Sizes(width=1024, depth=24, hidden=4096),
}


def published(state: Mapping[str, np.ndarray], where: str) -> dict[str, np.ndarray]:
    """The tensors of a file by the names of ``dinov2_vitl14_pretrain.pth``.

    Args:
      state: that file's, or that of Hugging Face's ``dinov2-large``.
      where: the file, for messages.

    Raises:
      ValueError: names the tensors that are missing, left over or of another shape.
    """
    if any(name.startswith("embeddings.") for name in state):
        state = _from_hugging_face(state)
    shapes = tensor_shapes(_find_sizes(state, where))
    # What stands for masked patches in training; no image that is measured has any.
    return check_tensors(where, state, shapes, ignored=["mask_token"])


def network_name(tensors: Mapping[str, np.ndarray]) -> str:
    """The published name of a network of these sizes, or one that tells the sizes."""
    sizes = _read_sizes(tensors)
    for name, candidate in PUBLISHED.items():
        if candidate == sizes:
            return name
    return f"dinov2_width{sizes.width}_depth{sizes.depth}_patch{sizes.patch}"


def tensor_shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Name -> shape of all tensors of a file that the features depend on."""
    width, patch = sizes.width, sizes.patch
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + sizes.side**2, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
    }
    for i in range(sizes.depth):
        shapes |= {
            f"blocks.{i}.norm1.weight": (width,),
            f"blocks.{i}.norm1.bias": (width,),
            f"blocks.{i}.attn.qkv.weight": (3 * width, width),
            f"blocks.{i}.attn.qkv.bias": (3 * width,),
            f"blocks.{i}.attn.proj.weight": (width, width),
            f"blocks.{i}.attn.proj.bias": (width,),
            f"blocks.{i}.ls1.gamma": (width,),
            f"blocks.{i}.norm2.weight": (width,),
            f"blocks.{i}.norm2.bias": (width,),
            f"blocks.{i}.mlp.fc1.weight": (sizes.hidden, width),
            f"blocks.{i}.mlp.fc1.bias": (sizes.hidden,),
            f"blocks.{i}.mlp.fc2.weight": (width, sizes.hidden),
            f"blocks.{i}.mlp.fc2.bias": (width,),
            f"blocks.{i}.ls2.gamma": (width,),
        }
    return shapes | {"norm.weight": (width,), "norm.bias": (width,)}


def convert(
    tensors: Mapping[str, np.ndarray], image_size: int, head_width: int = HEAD_WIDTH
) -> dict[str, Any]:
    """The parameters for images of one size.

    Args:
      tensors: of ``published``.
      image_size: side of the images in pixels, a multiple of the patch.
      head_width: channels of an attention head.

    Returns:
      float32 arrays; those of the blocks carry a leading axis of length ``depth``.

    Raises:
      ValueError: sizes that do not divide.
    """
    sizes = _read_sizes(tensors)
    if image_size % sizes.patch or sizes.width % head_width:
        raise ValueError(
            f"image_size = {image_size} must be a multiple of the patch {sizes.patch},"
            f" and the width {sizes.width} one of head_width = {head_width}"
        )
    # The class token has a position of its own, which is the same for all sizes.
    positions = np.asarray(tensors["pos_embed"][0], np.float64)
    grid = interpolate_positions(positions[1:], image_size // sizes.patch)
    blocks = [_block(tensors, f"blocks.{i}", head_width) for i in range(sizes.depth)]
    return {
        "cls": tensors["cls_token"][0, 0] + tensors["pos_embed"][0, 0],
        "position": grid.astype(np.float32),
        "patch": {
            "kernel": tensors["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
            "bias": tensors["patch_embed.proj.bias"],
        },
        "blocks": _stack(blocks),
        "norm": _norm(tensors, "norm"),
    }


def interpolate_positions(positions: np.ndarray, side: int) -> np.ndarray:
    """Positional embeddings of a square grid for one of another size.

    Bicubic without antialiasing and with ``POSITION_OFFSET``, as the published code
    does it: point i lies at ``(i + 0.5) n / (side + 0.1) - 0.5`` of the n old ones.

    Args:
      positions: ``(n^2, c)`` float64, rows first.
      side: of the new grid.

    Returns:
      ``(side^2, c)``; of ``side = n``, the positions themselves.
    """
    n = math.isqrt(len(positions))
    if side == n:
        return positions
    weights = _bicubic(n, side)
    grid = positions.reshape(n, n, -1)
    grid = np.einsum("ia,jb,abc->ijc", weights, weights, grid, optimize=True)
    return grid.reshape(side * side, -1)


def _bicubic(n: int, side: int) -> np.ndarray:
    """``(side, n)`` weights; points beyond the border are those on it."""
    points = (np.arange(side) + 0.5) * n / (side + POSITION_OFFSET) - 0.5
    floor = np.floor(points).astype(int)
    weights = np.zeros((side, n))
    for tap in range(-1, 3):
        index = np.clip(floor + tap, 0, n - 1)
        weights[np.arange(side), index] += _keys(points - floor - tap)
    return weights


def _keys(x: np.ndarray) -> np.ndarray:
    """The cubic convolution kernel of Keys (1981), for distances up to 2."""
    x, a = np.abs(x), KEYS_A
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, near, far)


def _block(
    tensors: Mapping[str, np.ndarray], name: str, head_width: int
) -> dict[str, Any]:
    weight, bias = (tensors[f"{name}.attn.qkv.{part}"] for part in ("weight", "bias"))
    heads = (3, bias.size // (3 * head_width), head_width)
    return {
        "norm1": _norm(tensors, f"{name}.norm1"),
        "qkv": {
            "kernel": weight.T.reshape(-1, *heads),
            "bias": bias.reshape(heads),
        },
        "out": _dense(tensors, f"{name}.attn.proj"),
        "scale1": tensors[f"{name}.ls1.gamma"],
        "norm2": _norm(tensors, f"{name}.norm2"),
        "mlp_in": _dense(tensors, f"{name}.mlp.fc1"),
        "mlp_out": _dense(tensors, f"{name}.mlp.fc2"),
        "scale2": tensors[f"{name}.ls2.gamma"],
    }


def _norm(tensors: Mapping[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    return {"scale": tensors[f"{name}.weight"], "bias": tensors[f"{name}.bias"]}


def _dense(tensors: Mapping[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    return {"kernel": tensors[f"{name}.weight"].T, "bias": tensors[f"{name}.bias"]}


def _stack(trees: list[dict[str, Any]]) -> dict[str, Any]:
    first = trees[0]
    return {
        key: _stack([tree[key] for tree in trees])
        if isinstance(first[key], dict)
        else np.stack([tree[key] for tree in trees])
        for key in first
    }


def _find_sizes(state: Mapping[str, np.ndarray], where: str) -> Sizes:
    """The sizes of a file that may lack tensors, or hold others."""
    try:
        sizes = _read_sizes(state)
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(
            f"{where} does not hold weights of DINOv2: expected cls_token, pos_embed, "
            "patch_embed.proj, blocks.N and norm as in dinov2_vitl14_pretrain.pth, or "
            f"the names of Hugging Face's dinov2-large; it holds {_listing(state)}"
        ) from error
    for candidate in PUBLISHED.values():
        if candidate.width == sizes.width:
            return candidate  # whose blocks the file may not hold all
    return sizes


def _read_sizes(state: Mapping[str, np.ndarray]) -> Sizes:
    blocks = {m[1] for name in state if (m := re.match(r"blocks\.(\d+)\.", name))}
    return Sizes(
        width=state["cls_token"].shape[-1],
        depth=len(blocks),
        hidden=state["blocks.0.mlp.fc1.weight"].shape[0],
        patch=state["patch_embed.proj.weight"].shape[-1],
        side=math.isqrt(state["pos_embed"].shape[1] - 1),
    )


def _listing(state: Mapping[str, np.ndarray], most: int = 5) -> str:
    names = ", ".join(list(state)[:most])
    return f"{len(state)} tensors: {names}{', ...' if len(state) > most else ''}"


# Hugging Face's names of what is not in a block, and of what is.
_HF_OUTER = {
    "embeddings.cls_token": "cls_token",
    "embeddings.mask_token": "mask_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "layernorm": "norm",
}
_HF_BLOCK = {
    "attention.output.dense": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
}
_HF_QKV = ("query", "key", "value")


def _from_hugging_face(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors by their original names; unknown ones keep theirs."""
    renamed = {_original_name(name): array for name, array in state.items()}
    for stem, part in list(_split_qkv(renamed)):
        names = [f"{stem}.attention.attention.{which}.{part}" for which in _HF_QKV]
        joined = np.concatenate([renamed.pop(name) for name in names])
        renamed[f"{stem}.attn.qkv.{part}"] = joined
    return renamed


def _split_qkv(state: Mapping[str, np.ndarray]) -> Iterator[tuple[str, str]]:
    """Block and part of queries whose keys and values are there too."""
    for name in state:
        match = re.fullmatch(r"(blocks\.\d+)\.attention\.attention\.query\.(\w+)", name)
        if match and all(name.replace("query", w) in state for w in _HF_QKV):
            yield match[1], match[2]


def _original_name(name: str) -> str:
    match = re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)", name)
    inner = match[2] if match else name
    for theirs, ours in (_HF_BLOCK if match else _HF_OUTER).items():
        if inner == theirs or inner.startswith(theirs + "."):
            inner = ours + inner.removeprefix(theirs)
    return f"blocks.{match[1]}.{inner}" if match else inner
