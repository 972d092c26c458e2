"""The published weights of the FID network, by the names that others gave them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from scm_jax.evaluation.features import inception
from scm_jax.evaluation.features.extraction import FeatureNet
from scm_jax.evaluation.features.inception import Conv, Fork
from scm_jax.files.catalogue import (
    PUBLISHED,
    check_tensors,
    file_sha256,
    find_weights,
    tensors_sha256,
    where_to_get,
)
from scm_jax.files.graph_def import read_constants
from scm_jax.files.state_dict import read_state_dict

NAME = "inception"  # of its weights

# Of both .pth files, which are the same bytes under two names (size 95,628,359).
PTH_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"

# PyTorch counts batches in a buffer that inference has no use for.
_UNUSED = ("num_batches_tracked",)
# PyTorch's name of a part of batch norm -> TensorFlow's.
_BATCH_NORM = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
}


def load(path: str | os.PathLike | None = None) -> FeatureNet:
    """The network with its weights. Nothing in the file is executed.

    Args:
      path: a file of one of the kinds of ``weight_files.PUBLISHED``; None looks for
        these, see ``weight_files.find_weights``.

    Raises:
      FileNotFoundError: no weights; says where they are published and belong.
      ValueError: the file is damaged, is not the published one though it has its name,
        or holds other tensors, which are named.
    """
    path = find_weights(NAME, path)
    if path.suffix == ".pth" and path.name in PUBLISHED[NAME]:
        _check_sha256(path)
    if path.suffix == ".pb":
        return from_state_dict(_from_graph(path), where=str(path))
    try:
        state = read_state_dict(path)
    except ValueError as error:
        raise ValueError(f"{error}\n{_advice()}") from error
    if not any(name in state for name in tensor_shapes()):
        held = ", ".join(sorted(state)[:3]) or "nothing"
        raise ValueError(f"{path} holds other tensors ({held}, ...).\n{_advice()}")
    return from_state_dict(state, where=str(path))


def _check_sha256(path: Path) -> None:
    found = file_sha256(path)
    if found != PTH_SHA256:
        raise ValueError(
            f"{path} has sha256 {found}, the published file has {PTH_SHA256}: get it"
            f" again from {PUBLISHED[NAME][path.name]}"
        )


def _advice() -> str:
    return (
        "NVIDIA's inception-2015-12-05.pkl and .pt name their tensors differently and"
        f" cannot be read. {where_to_get(NAME)}"
    )


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
    tensors = check_tensors(where, state, tensor_shapes(), ignored=_UNUSED)
    return FeatureNet(
        name="inception-2015-12-05",
        weights_sha256=tensors_sha256(tensors),
        resize="tf1_bilinear_299",
        num_features=inception.NUM_FEATURES,
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


def _from_graph(path: Path) -> dict[str, np.ndarray]:
    """The constants of TensorFlow's graph under PyTorch's names, in its layout."""
    constants = read_constants(path)
    state = {}

    def rename(name: str, constant: str, *axes: int) -> None:
        if constant not in constants or constants[constant].ndim != len(axes):
            raise ValueError(
                f"{path}: the graph has no constant {constant} of rank {len(axes)}"
            )
        state[name] = constants[constant].transpose(*axes)

    for name, scope in tensorflow_scopes().items():
        rename(f"{name}.conv.weight", f"{scope}/conv2d_params", 3, 2, 0, 1)
        for part, theirs in _BATCH_NORM.items():
            rename(f"{name}.bn.{part}", f"{scope}/batchnorm/{theirs}", 0)
    rename("fc.weight", "softmax/weights", 1, 0)
    rename("fc.bias", "softmax/biases", 0)
    return state


def tensorflow_scopes() -> dict[str, str]:
    """PyTorch's name of a convolution -> its scope in TensorFlow's graph.

    ``conv``, ``conv_1`` ... come before the blocks ``mixed``, ``mixed_1`` ...; in a
    block a branch of one convolution is ``conv``, the others are ``tower``, ``tower_1``
    ..., in which convolutions are numbered again; a fork in a tower is ``mixed``.
    """
    scopes: dict[str, str] = {}
    stem = [name for name, stage in inception.STAGES.items() if isinstance(stage, Conv)]
    scopes |= {name: _numbered("conv", i) for i, name in enumerate(stem)}
    blocks = {n: s for n, s in inception.STAGES.items() if isinstance(s, Fork)}
    for i, (name, block) in enumerate(blocks.items()):
        scope = _numbered("mixed", i)
        towers = []
        for branch in block.branches:
            if len(branch) > 1:
                towers.append(branch)
            elif isinstance(branch[0], Conv):
                scopes[f"{name}.{branch[0].name}"] = f"{scope}/conv"
        for j, tower in enumerate(towers):
            inner = _tower(tower, f"{scope}/{_numbered('tower', j)}")
            scopes |= {f"{name}.{conv}": inside for conv, inside in inner.items()}
    return scopes


def _tower(branch: tuple, scope: str) -> dict[str, str]:
    convs = [part for part in branch if isinstance(part, Conv)]
    scopes = {c.name: f"{scope}/{_numbered('conv', i)}" for i, c in enumerate(convs)}
    for part in branch:
        if isinstance(part, Fork):
            ends = enumerate(end for (end,) in part.branches)
            inside = {c.name: f"{scope}/mixed/{_numbered('conv', i)}" for i, c in ends}
            scopes |= inside
    return scopes


def _numbered(name: str, i: int) -> str:
    return f"{name}_{i}" if i else name
