"""The published weights of the FID network, from the file names that others use."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np

from scm_jax.evaluation import inception
from scm_jax.evaluation.extraction import FeatureNet
from scm_jax.evaluation.weight_files import check_tensors, find_weights, weights_id
from scm_jax.exchange.torch_files import read_state_dict

_FIDELITY = "https://github.com/toshas/torch-fidelity/releases/tag/v0.2.0"
# The first two hold the same bytes.
FILES = {
    "pt_inception-2015-12-05-6726825d.pth": "https://github.com/mseitzer/pytorch-fid/"
    "releases/tag/fid_weights",
    "weights-inception-2015-12-05-6726825d.pth": _FIDELITY,
    "inception-2015-12-05.safetensors": "either, written by write_state_dict of"
    " scm_jax.exchange.torch_files",
    "inception-2015-12-05.npz": "likewise",
}

# PyTorch counts batches in a buffer that inference has no use for.
_UNUSED = ("num_batches_tracked",)
_BATCH_NORM = ("weight", "bias", "running_mean", "running_var")


def load(path: str | os.PathLike | None = None) -> FeatureNet:
    """The network with its weights.

    Args:
      path: a file of one of ``FILES``' kinds; None looks for these, see
        ``weight_files.find_weights``.

    Raises:
      FileNotFoundError: no weights; says where they are published and belong.
      ValueError: the file is damaged or holds other tensors, which are named.
    """
    path = find_weights("inception", FILES, path)
    return from_state_dict(read_state_dict(path), where=str(path))


def from_state_dict(
    state: Mapping[str, np.ndarray], where: str = "state dict"
) -> FeatureNet:
    """The network with the weights of ``state``, named and shaped as in PyTorch.

    Its id is that of the tensors before batch norms are folded into convolutions.

    Args:
      state: the tensors of ``tensor_shapes()``.
      where: what to call it in messages.

    Raises:
      ValueError: tensors are missing, unknown, of another shape or not finite.
    """
    shapes = tensor_shapes()
    if not any(name in state for name in shapes):
        raise ValueError(
            f"{where} does not name its tensors as pytorch-fid does (it holds"
            f" {', '.join(sorted(state)[:3]) or 'none'} ...; wanted is"
            f" {next(iter(shapes))}). NVIDIA's inception-2015-12-05.pkl and .pt cannot"
            f" be read; take one of {', '.join(FILES)}"
        )
    tensors = check_tensors(where, state, shapes, ignored=_UNUSED)
    return FeatureNet(
        name="inception-2015-12-05",
        weights_sha256=weights_id(tensors),
        resize="tf1_bilinear_299",
        num_features=inception.NUM_FEATURES,
        apply=inception.features,
        params=fold(tensors),
    )


def tensor_shapes() -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a file must hold."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, (height, width, inputs, outputs) in inception.conv_shapes().items():
        shapes[f"{name}.conv.weight"] = (outputs, inputs, height, width)
        shapes |= {f"{name}.bn.{part}": (outputs,) for part in _BATCH_NORM}
    shapes["fc.weight"] = (inception.NUM_CLASSES, inception.NUM_FEATURES)
    shapes["fc.bias"] = (inception.NUM_CLASSES,)
    return shapes


def fold(tensors: Mapping[str, np.ndarray]) -> inception.Params:
    """Tensors of PyTorch's names and layout -> parameters of ``inception.apply``."""
    params = {
        name: inception.fold_batch_norm(
            tensors[f"{name}.conv.weight"],
            *(tensors[f"{name}.bn.{part}"] for part in _BATCH_NORM),
        )
        for name in inception.conv_shapes()
    }
    fc = {"kernel": tensors["fc.weight"].T, "bias": tensors["fc.bias"]}
    return params | {"fc": fc}
