"""Names and layout of a published AutoencoderKL, as the diffusers library stores it.

Files of ``stabilityai/sd-vae-ft-mse`` and its relatives. Only the layout of kernels
changes, so a conversion is exact.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from scm_jax.files import state_dict
from scm_jax.networks.audio_autoencoder import AudioAutoencoder
from scm_jax.networks.autoencoder import AutoencoderKL, abstract_params
from scm_jax.networks.external import audio_autoencoder, video_autoencoder
from scm_jax.networks.external.edm import (
    Entry,
    Tree,
    flat_shapes,
    read_tensors,
    write_tensors,
)
from scm_jax.networks.video_autoencoder import VideoAutoencoder

# Our names of the attention's layers -> the file's: the published file has the old
# ones, later versions of diffusers wrote the new ones.
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
) -> tuple[AutoencoderKL | AudioAutoencoder | VideoAutoencoder, Tree]:
    """The autoencoder in a file, of images, clips or sound, with its parameters.

    Args:
      path: a file that ``state_dict.read_state_dict`` reads, with diffusers'
        ``config.json`` beside it or without.
      **settings: further attributes of ``AutoencoderKL``, such as ``dtype``.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it holds something else; the message names the file and the tensor.
    """
    path = Path(path)
    state, file = state_dict.read_state_dict(path), path.with_name("config.json")
    try:
        for other in (audio_autoencoder, video_autoencoder):
            if other.recognizes(state):
                found = other.infer_autoencoder(state, **settings)
                return found, other.import_autoencoder(found, state)
        config = json.loads(file.read_text("utf-8")) if file.is_file() else {}
        config = config if isinstance(config, dict) else {}
        module = infer_autoencoder(state, config, **settings)
        return module, import_autoencoder(module, state)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}: config.json beside it is not JSON: {error}"
        ) from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def infer_autoencoder(
    state: Mapping[str, np.ndarray],
    config: Mapping[str, Any] | None = None,
    **settings: Any,
) -> AutoencoderKL:
    """The module that a file holds weights of, from names and shapes.

    ``config``, the content of a ``config.json``, alone has the number of groups of the
    norms, which is 32 without; ``settings`` are attributes that are given.

    Raises:
      ValueError: these are no weights of an AutoencoderKL, or ``config`` contradicts
        them.
    """
    config = config or {}
    first, latent = "encoder.conv_in.weight", "post_quant_conv.weight"
    for name in (first, latent):
        if name not in state or state[name].ndim != 4:
            raise ValueError(
                f"no weights of an AutoencoderKL: these have a {name} of four axes; "
                f"the file has {sorted(state)[:6]}, ..."
            )
    pattern = re.compile(r"encoder\.down_blocks\.(\d+)\.resnets\.\d+\.conv1\.weight")
    blocks = [match for name in state if (match := pattern.fullmatch(name))]
    width = {int(match[1]): int(state[match[0]].shape[0]) for match in blocks}
    found = {
        "channels": state[first].shape[1],
        "latent_channels": state[latent].shape[0],
        "block_channels": tuple(width[level] for level in sorted(width)),
        "num_blocks": sum(int(match[1]) == 0 for match in blocks),
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


def import_autoencoder(module: AutoencoderKL, state: Mapping[str, np.ndarray]) -> Tree:
    """A file's tensors as the parameters of ``module``; see ``edm.read_tensors``."""
    spelling = "old" if f"encoder.{_ATTENTION}.query.weight" in state else "new"
    return read_tensors(
        entries(module, spelling), flat_shapes(abstract_params(module)), state
    )


def export_autoencoder(
    module: AutoencoderKL, params: Tree, spelling: str = "new"
) -> dict[str, np.ndarray]:
    """The inverse of ``import_autoencoder``; ``spelling`` is a key of ``SPELLINGS``."""
    return write_tensors(entries(module, spelling), params)


def entries(module: AutoencoderKL, spelling: str = "new") -> list[Entry]:
    """Every tensor of a file for ``module``, in the order of our parameter paths."""
    return [
        _entry(path, len(shape), SPELLINGS[spelling])
        for path, shape in sorted(flat_shapes(abstract_params(module)).items())
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
    return Entry(name, path, pointwise=rank == 2 and not attends)


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
