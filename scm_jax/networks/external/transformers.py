"""Names and layouts of published transformers: DiT and SiT, SANA-Sprint.

Conversions change the layout only, so that an export gives the imported file back.
DiT and SiT (arXiv 2212.09748, 2401.08740) write the same names; half of their output is
a variance, which TrigFlow does not read: it is kept apart, for the export. SANA-Sprint
(arXiv 2503.09641) has the names of github.com/NVlabs/Sana or those of the diffusers
library, which keeps queries, keys and values apart.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from scm_jax.networks import dit, sana
from scm_jax.networks.external.edm import Tree, expected_shapes
from scm_jax.networks.external.mmdit import Entry, Piece, placed, read_pieces

State = dict[str, np.ndarray]
Transformer = dit.DiT | sana.Sana

# Layers before or after the blocks and those of a block, as (ours, theirs).
_DIT = (
    {
        "patch_in": "x_embedder.proj",
        "position": "pos_embed",
        "cond/t_in": "t_embedder.mlp.0",
        "cond/t_out": "t_embedder.mlp.2",
        "cond/label": "y_embedder.embedding_table",
        "affine_out": "final_layer.adaLN_modulation.1",
        "patch_out": "final_layer.linear",
    },
    {
        "blocks/qkv": "attn.qkv",
        "blocks/attention_out": "attn.proj",
        "blocks/mlp_in": "mlp.fc1",
        "blocks/mlp_out": "mlp.fc2",
        "blocks/affine": "adaLN_modulation.1",
    },
)
# Theirs are the original names, then those of diffusers.
_SANA = (
    {
        "patch_in": "x_embedder.proj = patch_embed.proj",
        "cond/t_in": "t_embedder.mlp.0 = time_embed.timestep_embedder.linear_1",
        "cond/t_out": "t_embedder.mlp.2 = time_embed.timestep_embedder.linear_2",
        "guidance/in": "cfg_embedder.mlp.0 = time_embed.guidance_embedder.linear_1",
        "guidance/out": "cfg_embedder.mlp.2 = time_embed.guidance_embedder.linear_2",
        "t_block": "t_block.1 = time_embed.linear",
        "memory/in": "y_embedder.y_proj.fc1 = caption_projection.linear_1",
        "memory/out": "y_embedder.y_proj.fc2 = caption_projection.linear_2",
        "memory/norm": "attention_y_norm = caption_norm",
        "patch_out": "final_layer.linear = proj_out",
        "table_out": "final_layer.scale_shift_table = scale_shift_table",
    },
    {
        "blocks/table": "scale_shift_table = scale_shift_table",
        "blocks/qkv": "attn.qkv = attn1.to_q attn1.to_k attn1.to_v",
        "blocks/q_norm": "attn.q_norm = attn1.norm_q",
        "blocks/k_norm": "attn.k_norm = attn1.norm_k",
        "blocks/attention_out": "attn.proj = attn1.to_out.0",
        "blocks/cross_q": "cross_attn.q_linear = attn2.to_q",
        "blocks/cross_q_norm": "cross_attn.q_norm = attn2.norm_q",
        "memory/blocks/kv": "cross_attn.kv_linear = attn2.to_k attn2.to_v",
        "memory/blocks/k_norm": "cross_attn.k_norm = attn2.norm_k",
        "blocks/cross_out": "cross_attn.proj = attn2.to_out.0",
        "blocks/mlp_in": "mlp.inverted_conv.conv = ff.conv_inverted",
        "blocks/mlp_depth": "mlp.depth_conv.conv = ff.conv_depth",
        "blocks/mlp_out": "mlp.point_conv.conv = ff.conv_point",
    },
)
_LEAVES = {"kernel": ".weight", "scale": ".weight", "embedding": ".weight"}
_LEAVES |= {"bias": ".bias", "": ""}
# Outputs of a layer in the file's order, as pieces of ours: name, slot, of how many. A
# file has shift, scale and gate of each branch; here gates are a layer of their own.
_ORDER = {
    "blocks/affine": (
        *(("blocks/affine", 1, 4), ("blocks/affine", 0, 4), ("blocks/gate", 0, 2)),
        *(("blocks/affine", 3, 4), ("blocks/affine", 2, 4), ("blocks/gate", 1, 2)),
    ),
    "affine_out": (("affine_out", 1, 2), ("affine_out", 0, 2)),
}
_TAPS = {"blocks/mlp_in": 1, "blocks/mlp_depth": 3, "blocks/mlp_out": 1}  # of SANA
_LABELS = "y_embedder.embedding_table.weight"  # only DiT and SiT have classes
# What SANA's training had besides: null caption, unused positions, weight of the loss.
_EXTRAS = re.compile(r"y_embedder\.y_embedding|pos_embed|logvar_linear\.\w+")


def recognizes(state: Mapping[str, Any]) -> bool:
    """Whether a file holds DiT, SiT or SANA-Sprint; SANA without guidance is not."""
    guidance = [_name("guidance/in", which) for which in (0, 1)]
    return any(name in state for name in (_LABELS, *guidance))


def naming(state: Mapping[str, Any]) -> str:
    """``diffusers`` for SANA under that library's names, else ``original``."""
    return "diffusers" if _name("patch_in", 1) in state else "original"


def _name(layer: str, which: int) -> str:
    return {**_SANA[0], **_SANA[1]}[layer].split(" = ")[which] + ".weight"


def infer_network(state: Mapping[str, np.ndarray]) -> tuple[str, dict[str, Any]]:
    """The key of ``NETWORKS`` and the settings that follow from a file's shapes.

    The number of heads is that of the published size of this width; for other widths
    the config has it.
    """
    is_dit, which = _LABELS in state, int(naming(state) == "diffusers")
    width, _, patch, _ = state[_name("patch_in", which)].shape
    block = "transformer_blocks." if which else "blocks."
    depth = len({n.split(".")[1] for n in state if n.startswith(block)})
    settings: dict[str, Any] = {"width": width, "depth": depth, "patch": patch}
    if is_dit:
        hidden = len(state["blocks.0.mlp.fc1.weight"])
        settings |= {"mlp_ratio": hidden // width, **dit.AS_PUBLISHED}
    else:
        hidden = state[f"{block}0.{_name('blocks/mlp_out', which)}"].shape[1]
        settings |= {"mlp_ratio": hidden / width, "use_guidance": True}
    for size in (dit if is_dit else sana).PRESETS.values():
        if size["width"] == width:
            settings["num_heads"] = size["num_heads"]
    return "dit" if is_dit else "sana", settings


def import_weights(
    module: Transformer, state: Mapping[str, np.ndarray]
) -> tuple[Tree, State]:
    """The tensors as parameters of ``module``, and those that are no weights of it.

    The latter are the outputs of DiT for the variance, and what SANA's training had
    besides. Raises ``ValueError`` as ``edm.read_tensors``.
    """
    state, extras = dict(state), {}
    if isinstance(module, sana.Sana):
        extras = {n: state.pop(n) for n in tuple(state) if _EXTRAS.fullmatch(n)}
    else:
        for name in ("final_layer.linear.weight", "final_layer.linear.bias"):
            rows = state.get(name, np.empty(0))  # (p, p, 2 c): eps or velocity first
            if len(rows) == 2 * module.patch**2 * module.sample_shape[-1]:
                halves = np.split(_by_patch(module, rows), 2, axis=1)
                joined = (a.reshape(-1, *rows.shape[1:]) for a in halves)
                state[name], extras[name] = joined
    table = entries(module, naming(state))
    return read_pieces(table, expected_shapes(module), state), extras


def export_weights(
    module: Transformer,
    params: Tree,
    extras: Mapping[str, np.ndarray] | None = None,
    naming: str = "original",
) -> State:
    """The inverse of ``import_weights``; ``naming`` may be ``diffusers`` for SANA.

    Without ``extras``, DiT's output has no variance.

    Raises:
      ValueError: a network with settings or inputs that such files have no place for.
    """
    table = entries(module, naming)
    unplaced = set(expected_shapes(module)) - placed(table)
    published = {} if isinstance(module, sana.Sana) else dit.AS_PUBLISHED
    changed = {k for k, v in published.items() if getattr(module, k) != v}
    if unplaced or changed:
        names = sorted({"/".join(path) for path in unplaced} | changed)
        raise ValueError(
            f"files of the published transformers have no place for {names}"
        )
    flat = {k: np.asarray(a) for k, a in traverse_util.flatten_dict(params).items()}
    state = {entry.name: entry.write(flat) for entry in table}
    for name, tensor in (extras or {}).items():
        if name in state:  # the variance
            both = [_by_patch(module, a) for a in (state[name], tensor)]
            tensor = np.concatenate(both, axis=1).reshape(-1, *tensor.shape[1:])
        state[name] = tensor
    return state


def _by_patch(module: Transformer, rows: np.ndarray) -> np.ndarray:
    """``(p p c, ...) -> (p p, c, ...)``."""
    return rows.reshape(module.patch**2, -1, *rows.shape[1:])


def entries(module: Transformer, naming: str = "original") -> list[Entry]:
    """Every tensor of a file for ``module``."""
    shapes, is_sana = expected_shapes(module), isinstance(module, sana.Sana)
    patches = {"patch_in": module.patch, **(_TAPS if is_sana else {})}
    which, found = int(naming == "diffusers"), []
    block = "transformer_blocks" if which else "blocks"
    blocks = [(f"{block}.{i}.", i) for i in range(module.depth)]
    outside, inside = _SANA if is_sana else _DIT
    for table, places in ((outside, [("", None)]), (inside, blocks)):
        for ours, theirs in table.items():
            names = theirs.split(" = ")[which * is_sana].split()
            for leaf, suffix in _LEAVES.items():
                tensors = _pieces(ours, leaf, len(names))
                if tensors[0][0].path not in shapes:
                    continue
                patch = patches.get(ours, 0) if leaf == "kernel" else 0
                found += [
                    Entry(f"{prefix}{name}{suffix}", pieces, i, patch)
                    for prefix, i in places
                    for name, pieces in zip(names, tensors, strict=True)
                ]
    return found


def _pieces(layer: str, leaf: str, count: int) -> list[tuple[Piece, ...]]:
    """What each of the ``count`` tensors of a layer is made of."""

    def path(name: str) -> tuple[str, ...]:
        return tuple(f"{name}/{leaf}".strip("/").split("/"))

    if count > 1:
        return [(Piece(path(layer), i, count),) for i in range(count)]
    order = _ORDER.get(layer, ((layer, 0, 1),))
    return [tuple(Piece(path(name), slot, of) for name, slot, of in order)]
