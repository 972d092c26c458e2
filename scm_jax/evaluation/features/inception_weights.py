"""The published weights of the FID network, by the names that others gave them."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np

from scm_jax.evaluation.features import inception
from scm_jax.evaluation.features.extraction import FeatureNet
from scm_jax.files.atomic import file_sha256
from scm_jax.files.catalogue import PUBLISHED, find_weights, where_to_get
from scm_jax.files.state_dict import read_state_dict
from scm_jax.files.tensors import check_tensors, tensors_sha256

NAME = "inception"  # of its weights

# Hash of both .pth files, which are the same bytes under two names (size 95,628,359).
PTH_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"

# PyTorch counts batches in a buffer that inference has no use for.
_UNUSED = ("num_batches_tracked",)
_BATCH_NORM = ("weight", "bias", "running_mean", "running_var")


def load(path: str | os.PathLike | None = None) -> FeatureNet:
    """The network with its weights.

    Args:
      path: a file of one of the kinds of ``catalogue.PUBLISHED``; None looks for
        these, see ``catalogue.find_weights``.

    Raises:
      FileNotFoundError: no weights; says where they are published and belong.
      ValueError: the file is damaged, is not the published one though it has its name,
        or holds other tensors, which are named.
    """
    path = find_weights(NAME, path)
    if path.suffix == ".pth" and path.name in PUBLISHED[NAME]:
        found = file_sha256(path)
        if found != PTH_SHA256:
            raise ValueError(
                f"{path} has sha256 {found}, the published file has {PTH_SHA256}: get "
                f"it again from {PUBLISHED[NAME][path.name]}"
            )
    try:
        state = read_state_dict(path)
    except ValueError as error:
        raise ValueError(f"{error}\n{_advice()}") from error
    if not any(name in state for name in tensor_shapes()):
        held = ", ".join(sorted(state)[:3]) or "nothing"
        raise ValueError(f"{path} holds other tensors ({held}, ...).\n{_advice()}")
    return from_state_dict(state, where=str(path))


def _advice() -> str:
    return (
        "NVIDIA's inception-2015-12-05.pkl and .pt name their tensors differently, and"
        f" TensorFlow's .pb is a graph: they cannot be read. {where_to_get(NAME)}"
    )


def from_state_dict(
    state: Mapping[str, np.ndarray], where: str = "state dict"
) -> FeatureNet:
    """The network with the weights of ``state``, named and shaped as in PyTorch.

    Args:
      state: the tensors of ``tensor_shapes()``.
      where: what to call it in messages.

    Raises:
      ValueError: tensors are missing, unknown, of another shape or not finite.
    """
    tensors = check_tensors(where, state, tensor_shapes(), ignored=_UNUSED)
    return FeatureNet(
        name="inception-2015-12-05",
        weights_sha256=tensors_sha256(tensors),  # before batch norms are folded
        resize="tf1_bilinear_299",
        apply=inception.features,
        params=fold(tensors),
    )


def tensor_shapes() -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that PyTorch's files hold."""
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
