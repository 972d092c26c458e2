"""Names and layouts of published transformers: DiT and SiT, SANA-Sprint, Wan2.1.

Conversions change the layout only, so that an export gives the imported file back.
DiT and SiT (arXiv 2212.09748, 2401.08740) write the same names; half of their output is
a variance, which TrigFlow does not read: it is kept apart, for the export. SANA-Sprint
(arXiv 2503.09641) and Wan2.1 (2503.20314) have the names of github.com/NVlabs/Sana and
Wan-Video/Wan2.1 or those of the diffusers library.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from scm_jax.networks import dit, sana, wan
from scm_jax.networks.external.edm import Tree, expected_shapes
from scm_jax.networks.external.mmdit import Entry, Piece, placed, read_pieces

State = dict[str, np.ndarray]
Transformer = dit.DiT | sana.Sana | wan.Wan

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
_WAN = (
    {
        "patch_in": "patch_embedding = patch_embedding",
        "cond/t_in": "time_embedding.0 = condition_embedder.time_embedder.linear_1",
        "cond/t_out": "time_embedding.2 = condition_embedder.time_embedder.linear_2",
        "t_block": "time_projection.1 = condition_embedder.time_proj",
        "memory/in": "text_embedding.0 = condition_embedder.text_embedder.linear_1",
        "memory/out": "text_embedding.2 = condition_embedder.text_embedder.linear_2",
        "patch_out": "head.head = proj_out",
        "table_out": "head.modulation = scale_shift_table",
    },
    {
        "blocks/table": "modulation = scale_shift_table",
        "blocks/qkv": "self_attn.q self_attn.k self_attn.v "
        "= attn1.to_q attn1.to_k attn1.to_v",
        "blocks/q_norm": "self_attn.norm_q = attn1.norm_q",
        "blocks/k_norm": "self_attn.norm_k = attn1.norm_k",
        "blocks/attention_out": "self_attn.o = attn1.to_out.0",
        "blocks/cross_norm": "norm3 = norm2",
        "blocks/cross_q": "cross_attn.q = attn2.to_q",
        "blocks/cross_q_norm": "cross_attn.norm_q = attn2.norm_q",
        "memory/blocks/kv": "cross_attn.k cross_attn.v = attn2.to_k attn2.to_v",
        "memory/blocks/k_norm": "cross_attn.norm_k = attn2.norm_k",
        "blocks/cross_out": "cross_attn.o = attn2.to_out.0",
        "blocks/mlp_in": "ffn.0 = ffn.net.0.proj",
        "blocks/mlp_out": "ffn.2 = ffn.net.2",
    },
)
_TABLES: dict[type, Any] = {dit.DiT: _DIT, sana.Sana: _SANA, wan.Wan: _WAN}
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
_TAPS = {"blocks/mlp_in": (1, 1), "blocks/mlp_depth": (3, 3), "blocks/mlp_out": (1, 1)}
# Wan's tables have an axis of length one before the others, and so have positions.
_LEAD = {dit.DiT: ("position",), sana.Sana: (), wan.Wan: ("table_out", "blocks/table")}
_LABELS = "y_embedder.embedding_table.weight"  # only DiT and SiT have classes
# What SANA's training had besides: null caption, unused positions, weight of the loss.
_EXTRAS = re.compile(r"y_embedder\.y_embedding|pos_embed|logvar_linear\.\w+")


def recognizes(state: Mapping[str, Any]) -> bool:
    """Whether a file holds one of these; SANA without guidance is not."""
    return _kind(state) is not None


def _kind(state: Mapping[str, Any]) -> type | None:
    """The module that a file holds weights of."""
    layers = {dit.DiT: "cond/label", sana.Sana: "guidance/in", wan.Wan: "t_block"}
    for kind, layer in layers.items():
        if any(name in state for name in _names(kind, layer)):
            return kind
    return None


def naming(state: Mapping[str, Any]) -> str:
    """``diffusers`` for SANA and Wan under that library's names, else ``original``."""
    kind = _kind(state)
    found = kind and _names(kind, "cond/t_in")[-1] in state
    return "diffusers" if found and kind is not dit.DiT else "original"


def _names(kind: type, layer: str) -> list[str]:
    """The original name of a layer's weight, then that of diffusers, if there is one.

    For a layer in several tensors it is the first.
    """
    outside, inside = _TABLES[kind]
    suffix = _LEAVES["embedding"]
    spelled = {**outside, **inside}[layer].split(" = ")
    return [name.split()[0] + suffix for name in spelled]


def infer_network(state: Mapping[str, np.ndarray]) -> tuple[str, dict[str, Any]]:
    """The key of ``NETWORKS`` and the settings that follow from a file's shapes.

    The number of heads is that of the published size of this width; for other widths
    the config has it.
    """
    kind, which = _kind(state), int(naming(state) == "diffusers")
    assert kind is not None
    width, _, *sides = state[_names(kind, "patch_in")[which]].shape
    block = f"{_block_prefix(kind, which)}."
    depth = len({n.split(".")[1] for n in state if n.startswith(block)})

    def hidden(layer: str, axis: int = 0) -> int:
        return state[f"{block}0.{_names(kind, layer)[which]}"].shape[axis]

    settings: dict[str, Any] = {"width": width, "depth": depth}
    if kind is dit.DiT:
        name, room = "dit", dit.PRESETS
        settings |= {"mlp_ratio": hidden("blocks/mlp_in") // width, **dit.AS_PUBLISHED}
    elif kind is sana.Sana:
        name, room = "sana", sana.PRESETS
        ratio = hidden("blocks/mlp_out", 1) / width
        settings |= {"mlp_ratio": ratio, "use_guidance": True}
    else:
        name, room = "wan", wan.PRESETS
        settings |= {"hidden": hidden("blocks/mlp_in"), "patch_sides": tuple(sides)}
    if name != "wan":
        settings["patch"] = sides[0]
    for size in room.values():
        if size["width"] == width:
            settings["num_heads"] = size["num_heads"]
    return name, settings


def _block_prefix(kind: type, which: int) -> str:
    return "transformer_blocks" if kind is sana.Sana and which else "blocks"


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
    elif isinstance(module, dit.DiT):
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
    """The inverse of ``import_weights``; ``diffusers`` is a naming of SANA and Wan.

    Without ``extras``, DiT's output has no variance.

    Raises:
      ValueError: a network with settings or inputs that such files have no place for.
    """
    table = entries(module, naming)
    unplaced = set(expected_shapes(module)) - placed(table)
    published = dit.AS_PUBLISHED if isinstance(module, dit.DiT) else {}
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
            assert isinstance(module, dit.DiT)
            both = [_by_patch(module, a) for a in (state[name], tensor)]
            tensor = np.concatenate(both, axis=1).reshape(-1, *tensor.shape[1:])
        state[name] = tensor
    return state


def _by_patch(module: dit.DiT, rows: np.ndarray) -> np.ndarray:
    """``(p p c, ...) -> (p p, c, ...)``."""
    return rows.reshape(module.patch**2, -1, *rows.shape[1:])


def entries(module: Transformer, naming: str = "original") -> list[Entry]:
    """Every tensor of a file for ``module``."""
    kind, shapes = type(module), expected_shapes(module)
    grid = len(module.sample_shape) - 1
    sides = getattr(module, "patch_sides", ()) or (module.patch,) * grid
    patches = {"patch_in": sides, **(_TAPS if kind is sana.Sana else {})}
    which, found = int(naming == "diffusers" and kind is not dit.DiT), []
    block = _block_prefix(kind, which)
    blocks = [(f"{block}.{i}.", i) for i in range(module.depth)]
    outside, inside = _TABLES[kind]
    for table, places in ((outside, [("", None)]), (inside, blocks)):
        for ours, theirs in table.items():
            names = theirs.split(" = ")[which].split()
            for leaf, suffix in _LEAVES.items():
                tensors = _pieces(ours, leaf, len(names))
                if tensors[0][0].path not in shapes:
                    continue
                patch = patches.get(ours, ()) if leaf == "kernel" else ()
                lead = ours in _LEAD[kind]
                found += [
                    Entry(f"{prefix}{name}{suffix}", pieces, i, patch, lead)
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
