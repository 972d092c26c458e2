"""Public weight files of DINOv2 -> the parameters that ``dinov2.apply`` takes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from scm_jax.files.tensors import check_tensors

# Channels of a head, in all published sizes. No shape in a file says it.
HEAD_WIDTH = 64
# Added to the number of patches before it is divided, by the published code
# (facebookresearch/dinov2, interpolate_pos_encoding): it shifts all sample points.
POSITION_OFFSET = 0.1
# Bicubic kernel of torch without antialiasing. Pillow's and the antialiased have -0.5.
KEYS_A = -0.75


class Sizes(NamedTuple):
    """What the shapes of the weights say."""

    width: int  # channels of a token
    depth: int  # number of blocks
    hidden: int  # channels between the two layers of a block's MLP
    patch: int = 14  # side of a patch, in pixels
    side: int = 37  # patches along a side of the images of the training


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
    try:
        sizes = _read_sizes(state)
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(
            f"{where} does not hold weights of DINOv2: expected cls_token, pos_embed, "
            "patch_embed.proj, blocks.N and norm as in dinov2_vitl14_pretrain.pth, or "
            f"the names of Hugging Face's dinov2-large; it holds {len(state)} tensors: "
            f"{', '.join([*state][:5])}, ..."
        ) from error
    for candidate in PUBLISHED.values():
        if candidate.width == sizes.width:
            sizes = candidate  # whose blocks the file may not hold all
    shapes = tensor_shapes(sizes)
    # The mask token stands for masked patches in training.
    return check_tensors(where, state, shapes, ignored=["mask_token"])


def network_name(tensors: Mapping[str, np.ndarray]) -> str:
    """The published name of a network of these sizes, or one that tells the sizes."""
    sizes = _read_sizes(tensors)
    names = {published: name for name, published in PUBLISHED.items()}
    other = f"dinov2_width{sizes.width}_depth{sizes.depth}_patch{sizes.patch}"
    return names.get(sizes, other)


def tensor_shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Name -> shape of all tensors of a file that the features depend on."""
    width, hidden, patch = sizes.width, sizes.hidden, sizes.patch
    block: dict[str, tuple[int, ...]] = {
        "norm1": (width,),
        "attn.qkv": (3 * width, width),
        "attn.proj": (width, width),
        "ls1.gamma": (width,),
        "norm2": (width,),
        "mlp.fc1": (hidden, width),
        "mlp.fc2": (width, hidden),
        "ls2.gamma": (width,),
    }
    layers: dict[str, tuple[int, ...]] = {"patch_embed.proj": (width, 3, patch, patch)}
    for i in range(sizes.depth):
        layers |= {f"blocks.{i}.{name}": shape for name, shape in block.items()}
    layers["norm"] = (width,)
    shapes: dict[str, tuple[int, ...]] = {"cls_token": (1, 1, width)}
    shapes["pos_embed"] = (1, 1 + sizes.side**2, width)
    for name, shape in layers.items():
        if name.endswith("gamma"):
            shapes[name] = shape
        else:
            shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes


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
        "blocks": jax.tree.map(lambda *arrays: np.stack(arrays), *blocks),
        "norm": _norm(tensors, "norm"),
    }


def interpolate_positions(positions: np.ndarray, side: int) -> np.ndarray:
    """Positional embeddings ``(n^2, c)`` of a square grid, rows first, for another.

    Bicubic without antialiasing, as in the published code: point i lies at
    ``(i + 0.5) n / (side + 0.1) - 0.5`` of the n old ones. Gives float64
    ``(side^2, c)``, or the positions themselves if ``side = n``.
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
        "qkv": {"kernel": weight.T.reshape(-1, *heads), "bias": bias.reshape(heads)},
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


def _read_sizes(state: Mapping[str, np.ndarray]) -> Sizes:
    blocks = {m[1] for name in state if (m := re.match(r"blocks\.(\d+)\.", name))}
    return Sizes(
        width=state["cls_token"].shape[-1],
        depth=len(blocks),
        hidden=state["blocks.0.mlp.fc1.weight"].shape[0],
        patch=state["patch_embed.proj.weight"].shape[-1],
        side=math.isqrt(state["pos_embed"].shape[1] - 1),
    )


# Hugging Face's parts of a name, and the original ones, in the order of replacement.
_HUGGING_FACE = {
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "embeddings.": "",
    "encoder.layer.": "blocks.",
    "attention.output.dense": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
    "layernorm.": "norm.",
}


def _from_hugging_face(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors by their original names; unknown ones keep theirs."""
    renamed = {}
    for name, array in state.items():
        for theirs, ours in _HUGGING_FACE.items():
            name = name.replace(theirs, ours)
        renamed[name] = array
    for name in list(renamed):
        parts = [name.replace(".query.", f".{p}.") for p in ("query", "key", "value")]
        if ".attention.attention.query." in name and all(p in renamed for p in parts):
            joined = np.concatenate([renamed.pop(part) for part in parts])
            joint = name.replace("attention.attention.query", "attn.qkv")
            renamed[joint] = joined
    return renamed
