"""Names and layout of Stable Audio Open's autoencoder, in two spellings.

Files of stable-audio-tools, where layers are numbered, with or without the diffusion
model around it, and files of diffusers. Kernels come as a direction ``v`` and a norm
``g`` for each entry of the first axis, and are imported as ``g v / |v|``. There is no
way back, as the norm of ``v`` is lost.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

from scm_jax.networks.audio_autoencoder import AudioAutoencoder
from scm_jax.networks.autoencoder import abstract_params
from scm_jax.networks.external.edm import Tree, check_names, flat_shapes

# Our modules have the names of diffusers; stable-audio-tools numbers them in order.
_UNITS = ("res_unit1", "res_unit2", "res_unit3")
_ORDER = {
    "encoder": (*_UNITS, "snake1", "conv1"),
    "decoder": ("snake1", "conv_t1", *_UNITS),
    "unit": ("snake1", "conv1", "snake2", "conv2"),
}
# The spellings, by the name of the first layer.
SPELLINGS = {"layers.0": "stable_audio_tools", "conv1": "diffusers"}
# Norm and direction, as later versions of PyTorch name them.
_LATER = {
    "parametrizations.weight.original0": "weight_g",
    "parametrizations.weight.original1": "weight_v",
}
_FIRST = re.compile(
    r"(.*?)encoder\.(layers\.0|conv1)\.(weight_v|parametrizations\.weight\.original1)"
)
_LEVEL = re.compile(r"encoder\.(?:layers|block)\.(\d+)\.(?:layers|res_unit1)\.")


def recognizes(state: Mapping[str, Any]) -> bool:
    """Whether a file holds such weights."""
    return any(map(_FIRST.fullmatch, state))


class Entry(NamedTuple):
    """One tensor of a file, for one parameter."""

    name: str
    path: tuple[str, ...]
    shape: tuple[int, ...]  # in the file


def infer_autoencoder(
    state: Mapping[str, np.ndarray], **settings: Any
) -> AudioAutoencoder:
    """The module that a file holds weights of; ``settings`` are further attributes."""
    spelling, bare = _bare(state)
    number = len({match[1] for match in map(_LEVEL.match, bare) if match})

    def shape(*path: str) -> tuple[int, ...]:
        name = f"{_layer(path, number, spelling)}.weight_v"
        if name not in bare:
            raise ValueError(f"no weights of an AudioAutoencoder: {name} is missing")
        return bare[name].shape

    width, channels, _ = shape("encoder", "conv1")
    changes = [shape("encoder", f"block_{i}", "conv1") for i in range(number)]
    return AudioAutoencoder(
        channels=channels,
        latent_channels=shape("decoder", "conv1")[1],
        block_channels=(width, *(c for c, _, _ in changes)),
        strides=tuple(taps // 2 for _, _, taps in changes),
        **settings,
    )


def entries(module: AudioAutoencoder, spelling: str = "diffusers") -> list[Entry]:
    """Every tensor of a file for ``module``, with a value of ``SPELLINGS``."""
    found = []
    for path, shape in sorted(flat_shapes(abstract_params(module)).items()):
        layer, leaf = _layer(path[:-1], len(module.strides), spelling), path[-1]
        if leaf == "kernel":
            taps, inputs, outputs = shape
            shape = (outputs, inputs, taps)
            if path[-2] == "conv_t1":
                shape = (inputs, outputs, taps)
            found.append(Entry(f"{layer}.weight_g", path, (shape[0], 1, 1)))
            leaf = "weight_v"
        elif leaf != "bias" and spelling == "diffusers":
            shape = (1, *shape, 1)
        found.append(Entry(f"{layer}.{leaf}", path, shape))
    return found


def import_autoencoder(
    module: AudioAutoencoder, state: Mapping[str, np.ndarray]
) -> Tree:
    """A file's tensors as the parameters of ``module``, float32.

    Raises:
      ValueError: a tensor is missing, left over or of another shape.
    """
    spelling, bare = _bare(state)
    table, flat = entries(module, spelling), {}
    check_names(table, bare)
    for name, path, shape in table:
        tensor = np.asarray(bare[name], np.float64)
        if tensor.shape != shape:
            raise ValueError(f"{name} has shape {tensor.shape}; it must have {shape}")
        if name.endswith("weight_g"):
            continue
        if path[-1] == "kernel":
            norm = np.sqrt((tensor**2).sum((1, 2), keepdims=True))
            tensor = tensor * (bare[f"{name[:-1]}g"] / norm)
            # A transposed convolution spreads its taps from the last to the first.
            up = path[-2] == "conv_t1"
            tensor = tensor.transpose(2, 0, 1)[::-1] if up else tensor.T
        else:
            tensor = tensor.reshape(-1)
        flat[path] = np.ascontiguousarray(tensor, np.float32)
    return traverse_util.unflatten_dict(flat)


def _bare(state: Mapping[str, np.ndarray]) -> tuple[str, dict[str, np.ndarray]]:
    """The spelling, and the two halves without prefix, with the older names of norms.

    A full checkpoint has ``pretransform.model.`` before them, and other models.
    """
    first = next(filter(None, map(_FIRST.fullmatch, state)), None)
    if first is None:
        raise ValueError(
            "no weights of an AudioAutoencoder: these have encoder.layers.0.weight_v "
            f"or encoder.conv1.weight_v; the file has {sorted(state)[:6]}, ..."
        )
    prefix, found = first[1], {}
    for name, tensor in state.items():
        if name.startswith((f"{prefix}encoder.", f"{prefix}decoder.")):
            for later, ours in _LATER.items():
                name = name.replace(later, ours)
            found[name.removeprefix(prefix)] = tensor
    return SPELLINGS[first[2]], found


def _layer(path: tuple[str, ...], number: int, spelling: str) -> str:
    """``encoder, block_0, res_unit1, conv1`` and its like under a published name."""
    half, *names = path
    if spelling == "diffusers":
        return ".".join([half, *(re.sub(r"_(\d+)$", r".\1", name) for name in names)])
    levels = ("conv1", *(f"block_{i}" for i in range(number)), "snake1", "conv2")
    orders = (levels, _ORDER[half], _ORDER["unit"])
    numbers = (order.index(name) for order, name in zip(orders, names, strict=False))
    return ".".join([half, *(f"layers.{i}" for i in numbers)])
