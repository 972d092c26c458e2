"""Names and layout of Wan2.1's autoencoder, ``Wan2.1_VAE.pth``.

Our modules have the published names, with a line before a number in place of a point;
only the layout of kernels changes, so a conversion is exact.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

from scm_jax.networks.autoencoder import abstract_params
from scm_jax.networks.external.edm import Tree, check_names, flat_shapes
from scm_jax.networks.video_autoencoder import VideoAutoencoder

_FIRST, _LATENT = "encoder.conv1.weight", "conv2.weight"


def recognizes(state: Mapping[str, Any]) -> bool:
    """Whether a file holds such weights."""
    return _FIRST in state and _LATENT in state and np.ndim(state[_FIRST]) == 5


def infer_autoencoder(
    state: Mapping[str, np.ndarray], **settings: Any
) -> VideoAutoencoder:
    """The module that a file holds weights of; ``settings`` are further attributes."""
    layer = re.compile(
        r"encoder\.downsamples\.(\d+)\.(residual\.6|resample\.1)\.weight"
    )
    found = sorted(
        (int(match[1]), match[2], len(state[name]))
        for name in state
        if (match := layer.fullmatch(name))
    )
    changes = [number for number, kind, _ in found if kind == "resample.1"]
    blocks = [c for _, kind, c in found if kind == "residual.6"]
    num = len(blocks) // (len(changes) + 1)
    return VideoAutoencoder(
        channels=state[_FIRST].shape[1],
        latent_channels=len(state[_LATENT]),
        block_channels=tuple(blocks[::num]),
        time=tuple(
            f"encoder.downsamples.{n}.time_conv.weight" in state for n in changes
        ),
        num_blocks=num,
        **settings,
    )


class Entry(NamedTuple):
    """One tensor of a file, for one parameter."""

    name: str
    path: tuple[str, ...]
    shape: tuple[int, ...]  # in the file


def entries(module: VideoAutoencoder) -> list[Entry]:
    """Every tensor of a file for ``module``."""
    found = []
    for path, shape in sorted(flat_shapes(abstract_params(module)).items()):
        layer = ".".join(re.sub(r"_(\d+)$", r".\1", part) for part in path[:-1])
        leaf = {"kernel": "weight"}.get(path[-1], path[-1])
        if path[-1] == "kernel":
            shape = (*shape[:-3:-1], *shape[:-2])
        elif path[-1] == "gamma":  # one axis for each of the data's; frames are images
            shape = (*shape, *(1,) * (2 if path[-2] == "norm" else 3))
        found.append(Entry(f"{layer}.{leaf}", path, shape))
    return found


def import_autoencoder(
    module: VideoAutoencoder, state: Mapping[str, np.ndarray]
) -> Tree:
    """A file's tensors as the parameters of ``module``, float32.

    Raises:
      ValueError: a tensor is missing, left over or of another shape.
    """
    table, flat = entries(module), {}
    check_names(table, state)
    for name, path, shape in table:
        tensor = np.asarray(state[name], np.float32)
        if tensor.shape != shape:
            raise ValueError(f"{name} has shape {tensor.shape}; it must have {shape}")
        if path[-1] == "kernel":
            tensor = np.moveaxis(tensor, (0, 1), (-1, -2))
        flat[path] = np.ascontiguousarray(
            tensor.reshape(-1) if path[-1] == "gamma" else tensor
        )
    return traverse_util.unflatten_dict(flat)


def export_autoencoder(module: VideoAutoencoder, params: Tree) -> dict[str, np.ndarray]:
    """The inverse of ``import_autoencoder``."""
    flat, state = traverse_util.flatten_dict(params), {}
    for name, path, shape in entries(module):
        array = np.asarray(flat[path])
        if path[-1] == "kernel":
            array = np.moveaxis(array, (-1, -2), (0, 1))
        state[name] = np.ascontiguousarray(array.reshape(shape))
    return state
