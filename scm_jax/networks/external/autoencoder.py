"""Names and layout of a published AutoencoderKL, as the diffusers library stores it.

Files of ``stabilityai/sd-vae-ft-mse`` and its relatives. The attention has two
spellings: that of the published file (``query``, ``proj_attn``) and that of files which
later versions of diffusers wrote (``to_q``, ``to_out.0``). Both are read. Nothing but
the layout of kernels changes, so a conversion is exact.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util

from scm_jax.files import state_dict
from scm_jax.networks.autoencoder import AutoencoderKL, abstract_params
from scm_jax.networks.external.edm import Entry, Tree

# Our names of the attention's layers -> the file's, by spelling.
SPELLINGS = {
    "old": {"q": "query", "k": "key", "v": "value", "out": "proj_attn"},
    "new": {"q": "to_q", "k": "to_k", "v": "to_v", "out": "to_out.0"},
}
_ATTENTION = "mid_block.attentions.0"

# Attribute of the module -> key of a config.json.
_CONFIG_KEYS = {
    "channels": "in_channels",
    "latent_channels": "latent_channels",
    "block_channels": "block_out_channels",
    "num_blocks": "layers_per_block",
}


def load_autoencoder(
    path: str | os.PathLike[str], **settings: Any
) -> tuple[AutoencoderKL, Tree]:
    """The autoencoder in a file, with its parameters.

    Args:
      path: a file that ``state_dict.read_state_dict`` reads. A ``config.json`` beside
        it, as diffusers writes, is heeded.
      **settings: further attributes of ``AutoencoderKL``, such as ``dtype``.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it holds something else; the message names the file and the tensor.
    """
    path = Path(path)
    state = state_dict.read_state_dict(path)
    try:
        module = infer_autoencoder(state, read_config(path), **settings)
        return module, import_autoencoder(module, state)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_config(weights: Path) -> dict[str, Any]:
    """The ``config.json`` in the folder of the weights; empty if there is none."""
    file = weights.with_name("config.json")
    if not file.is_file():
        return {}
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file.name} beside it is not JSON: {error}") from error
    return config if isinstance(config, dict) else {}


def infer_autoencoder(
    state: Mapping[str, np.ndarray],
    config: Mapping[str, Any] | None = None,
    **settings: Any,
) -> AutoencoderKL:
    """The module that a file holds weights of, from names and shapes.

    The number of groups of the norms is in no shape: it is taken from ``config``, and
    is 32 without.

    Args:
      state: name -> tensor.
      config: the content of a ``config.json``.
      **settings: attributes that are given.

    Raises:
      ValueError: these are no weights of an AutoencoderKL, or ``config`` says
        otherwise.
    """
    config = config or {}
    first, latent = "encoder.conv_in.weight", "post_quant_conv.weight"
    for name in (first, latent):
        if name not in state or state[name].ndim != 4:
            raise ValueError(
                f"no weights of an AutoencoderKL: these have a {name} of four axes, "
                f"and here is {sorted(state)[:6]}, ..."
            )
    found = {
        "channels": state[first].shape[1],
        "latent_channels": state[latent].shape[0],
        **_blocks(state),
    }
    for key, value in found.items():
        told = config.get(_CONFIG_KEYS[key])
        told = tuple(told) if isinstance(told, list) else told
        if told not in (None, value):
            raise ValueError(
                f"config.json has {_CONFIG_KEYS[key]} = {told}, the tensors {value}"
            )
    if config.get("act_fn", "silu") != "silu":
        raise ValueError(f"config.json has act_fn = {config['act_fn']!r}; 'silu' only")
    found["num_groups"] = int(config.get("norm_num_groups", 32))
    module = AutoencoderKL(**{**found, **settings})
    if any(c % module.num_groups for c in module.block_channels):
        raise ValueError(
            f"group norms of {module.num_groups} groups do not fit the channels "
            f"{module.block_channels}; the number of groups is norm_num_groups of a "
            "config.json beside the weights"
        )
    return module


def _blocks(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Widths of the encoder's levels and the number of blocks of the first."""
    pattern = re.compile(
        r"encoder\.down_blocks\.(\d+)\.resnets\.(\d+)\.conv1\.(weight)"
    )
    matches = [match for name in state if (match := pattern.fullmatch(name))]
    width = {int(m[1]): int(state[m[0]].shape[0]) for m in matches}
    return {
        "block_channels": tuple(width[level] for level in sorted(width)),
        "num_blocks": sum(int(m[1]) == 0 for m in matches),
    }


def import_autoencoder(module: AutoencoderKL, state: Mapping[str, np.ndarray]) -> Tree:
    """A file's tensors as the parameters of ``module``, float32.

    Raises:
      ValueError: a tensor is missing, left over or of another shape; the message has
        its name, the path of the parameter and both shapes.
    """
    spelling = "old" if f"encoder.{_ATTENTION}.query.weight" in state else "new"
    table = entries(module, spelling)
    missing = [e for e in table if e.name not in state]
    unknown = sorted(set(state) - {e.name for e in table})
    if missing or unknown:
        lines = [f"  missing: {e.name} (for {'/'.join(e.path)})" for e in missing[:8]]
        lines += [f"  left over: {n} {state[n].shape}" for n in unknown[:8]]
        raise ValueError(
            f"these are not the weights of this autoencoder ({len(missing)} tensors "
            f"missing, {len(unknown)} left over)\n" + "\n".join(lines)
        )
    shapes = _shapes(module)
    return traverse_util.unflatten_dict(
        {e.path: _read(e, state[e.name], shapes[e.path]) for e in table}
    )


def _read(entry: Entry, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    tensor = np.asarray(tensor)
    wanted = entry.write(np.empty(shape, np.bool_)).shape
    if tensor.shape != wanted:
        raise ValueError(
            f"{entry.name} has shape {tensor.shape}; for {'/'.join(entry.path)} it "
            f"must have {wanted}"
        )
    return np.array(entry.read(tensor), np.float32, order="C")


def export_autoencoder(
    module: AutoencoderKL, params: Tree, spelling: str = "new"
) -> dict[str, np.ndarray]:
    """The inverse of ``import_autoencoder``; ``spelling`` is a key of ``SPELLINGS``."""
    flat = traverse_util.flatten_dict(params)
    return {
        entry.name: entry.write(np.asarray(flat[entry.path]))
        for entry in entries(module, spelling)
    }


def entries(module: AutoencoderKL, spelling: str = "new") -> list[Entry]:
    """Every tensor of a file for ``module``, in the order of our parameter paths."""
    return [
        _entry(path, len(shape), SPELLINGS[spelling])
        for path, shape in sorted(_shapes(module).items())
    ]


def _entry(path: tuple[str, ...], rank: int, attention: Mapping[str, str]) -> Entry:
    """``("encoder", "level_0", "block_1", "conv1", "kernel")`` and its like."""
    *modules, leaf = path
    part = ".".join(modules)
    attends = "attn" in modules
    for ours, theirs in _RENAMES:
        part = re.sub(ours, theirs, part)
    if attends:
        *stem, layer = part.split(".")
        part = ".".join([*stem, attention.get(layer, "group_norm")])
    name = f"{part}.{'bias' if leaf == 'bias' else 'weight'}"
    if leaf != "kernel":
        layout = "same"
    else:
        layout = "conv" if rank == 4 else "linear" if attends else "conv1"
    return Entry(name, path, None, layout)


# From our names to the file's, applied in order.
_RENAMES = (
    (r"^quant$", "quant_conv"),
    (r"^post_quant$", "post_quant_conv"),
    (r"^(encoder|decoder)\.(in|out)$", r"\1.conv_\2"),
    (r"\.norm_out$", ".conv_norm_out"),
    (r"\.middle\.attn", f".{_ATTENTION}"),
    (r"\.middle\.block_", ".mid_block.resnets."),
    (r"^encoder\.level_(\d+)", r"encoder.down_blocks.\1"),
    (r"^decoder\.level_(\d+)", r"decoder.up_blocks.\1"),
    (r"^(encoder.*)\.resample$", r"\1.downsamplers.0.conv"),
    (r"^(decoder.*)\.resample$", r"\1.upsamplers.0.conv"),
    (r"\.block_(\d+)", r".resnets.\1"),
    (r"\.shortcut$", ".conv_shortcut"),
)


def _shapes(module: AutoencoderKL) -> dict[tuple[str, ...], tuple[int, ...]]:
    flat = traverse_util.flatten_dict(abstract_params(module))
    return {path: tuple(leaf.shape) for path, leaf in flat.items()}
