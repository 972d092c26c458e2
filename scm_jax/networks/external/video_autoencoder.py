"""Names and layout of Wan2.1's autoencoder, ``Wan2.1_VAE.pth``.

Our modules have the published names, with a line before a number in place of a point;
only the layout of kernels changes, so a conversion is exact.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from scm_jax.networks.autoencoder import abstract_params
from scm_jax.networks.external.edm import (
    Entry,
    Tree,
    flat_shapes,
    read_tensors,
    write_tensors,
)
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


def entries(module: VideoAutoencoder) -> list[Entry]:
    """Every tensor of a file for ``module``."""
    found = []
    for path in sorted(flat_shapes(abstract_params(module))):
        layer = ".".join(re.sub(r"_(\d+)$", r".\1", part) for part in path[:-1])
        leaf, ones = {"kernel": "weight"}.get(path[-1], path[-1]), 0
        if leaf == "gamma":  # one axis for each of the data's; frames are images
            ones = 2 if path[-2] == "norm" else 3
        found.append(Entry(f"{layer}.{leaf}", path, ones=ones))
    return found


def import_autoencoder(
    module: VideoAutoencoder, state: Mapping[str, np.ndarray]
) -> Tree:
    """A file's tensors as the parameters of ``module``, see ``edm.read_tensors``."""
    return read_tensors(entries(module), flat_shapes(abstract_params(module)), state)


def export_autoencoder(module: VideoAutoencoder, params: Tree) -> dict[str, np.ndarray]:
    """The inverse of ``import_autoencoder``."""
    return write_tensors(entries(module), params)
