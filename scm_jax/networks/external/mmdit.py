"""Names and layouts of the weights of SD3-medium, SD3.5-medium and SD3.5-large.

Two namings are in use: that of the single files, mostly behind the prefix
``model.diffusion_model.``, and diffusers'. Weights lie as ``(out, in)``; here kernels
have the outputs last and equal blocks are stacked. The outputs of a layer differ:

* queries, keys and values are one tensor in single files and three in diffusers;
* single files have shift before scale, and here scale comes first; diffusers does it
  like here in the last layer and for the context of the last block, and only there;
* the vectors of a block are (shift, scale, gate) for each branch; here the gates are a
  layer of their own.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from scm_jax.networks.external.edm import Shapes, Tree, check_names, expected_shapes
from scm_jax.networks.mmdit import MMDiT

PREFIX = "model.diffusion_model."
NAMINGS = ("single_file", "diffusers")
HEAD_CHANNELS = 64  # of networks without QK norm, whose files do not tell
_TEXT_TIME = "time_text_embed"

# Layers outside of blocks: ours -> (single file, diffusers).
_ENDS = {
    "patch_in": ("x_embedder.proj", "pos_embed.proj"),
    "cond/t_in": ("t_embedder.mlp.0", f"{_TEXT_TIME}.timestep_embedder.linear_1"),
    "cond/t_out": ("t_embedder.mlp.2", f"{_TEXT_TIME}.timestep_embedder.linear_2"),
    "cond/pooled_in": ("y_embedder.mlp.0", f"{_TEXT_TIME}.text_embedder.linear_1"),
    "cond/pooled_out": ("y_embedder.mlp.2", f"{_TEXT_TIME}.text_embedder.linear_2"),
    "context_in": ("context_embedder", "context_embedder"),
    "patch_out": ("final_layer.linear", "proj_out"),
    "affine_out": ("final_layer.adaLN_modulation.1", "norm_out.linear"),
    "position": ("pos_embed", "pos_embed.pos_embed"),
}
# Prefix and layers of a block: modulation; two of the network; qkv, two norms and the
# output of each attention. In single files both streams have the same names.
_SINGLE = (
    "adaLN_modulation.1 mlp.fc1 mlp.fc2 attn.qkv attn.ln_q attn.ln_k attn.proj "
    "attn2.qkv attn2.ln_q attn2.ln_k attn2.proj"
)
_BLOCK = {
    ("image", 0): ("joint_blocks.{}.x_block.", _SINGLE),
    ("context", 0): ("joint_blocks.{}.context_block.", _SINGLE),
    ("image", 1): (
        "transformer_blocks.{}.",
        "norm1.linear ff.net.0.proj ff.net.2 attn.to_{} attn.norm_q attn.norm_k "
        "attn.to_out.0 attn2.to_{} attn2.norm_q attn2.norm_k attn2.to_out.0",
    ),
    ("context", 1): (
        "transformer_blocks.{}.",
        "norm1_context.linear ff_context.net.0.proj ff_context.net.2 attn.add_{}_proj "
        "attn.norm_added_q attn.norm_added_k attn.to_add_out",
    ),
}


@dataclasses.dataclass(frozen=True)
class Piece:
    """A run of outputs of one parameter: ``slot`` of ``count`` equal ones."""

    path: tuple[str, ...]
    slot: int = 0
    count: int = 1

    def of(self, array: np.ndarray, index: int | None) -> np.ndarray:
        """These outputs as a view ``(in, out)`` or ``(out,)``."""
        array = array if index is None else array[index]
        if self.path[-1] == "kernel":
            # Three kernels lie side by side; taps of a convolution come first.
            inputs = len(array) if array.ndim < 4 else math.prod(array.shape[:3])
            array = array.reshape(inputs, -1)
        elif self.path[-1] == "bias":
            array = array.reshape(-1)
        size = array.shape[-1] // self.count
        return array[..., self.slot * size : (self.slot + 1) * size]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor of a file: pieces of parameters, one after the other."""

    name: str
    pieces: tuple[Piece, ...]
    index: int | None = None  # position in a stacked parameter
    patch: tuple[int, ...] = ()  # sides, for a kernel that reads patches or convolves
    lead: bool = False  # the file has an axis of length one before the others

    @property
    def path(self) -> tuple[str, ...]:
        """Path of the first parameter, for messages."""
        return self.pieces[0].path

    def file_shape(self, shapes: Shapes) -> tuple[int, ...]:
        """Shape of the tensor, from those of the parameters; allocates nothing."""
        zeros = {p.path: np.broadcast_to(False, shapes[p.path]) for p in self.pieces}
        parts = [piece.of(zeros[piece.path], self.index) for piece in self.pieces]
        shape = (*parts[0].shape[:-1], sum(part.shape[-1] for part in parts))
        return self._to_file(np.broadcast_to(False, shape)).shape

    def write(self, flat: Mapping[tuple[str, ...], np.ndarray]) -> np.ndarray:
        """The tensor of a file from parameters by path."""
        parts = [piece.of(flat[piece.path], self.index) for piece in self.pieces]
        return np.ascontiguousarray(self._to_file(np.concatenate(parts, axis=-1)))

    def read(self, tensor: np.ndarray, into: Mapping[Any, np.ndarray]) -> None:
        """The inverse of ``write``: fills the pieces of these parameters."""
        if self.lead:
            tensor = tensor[0]
        elif self.patch:
            tensor = np.moveaxis(tensor, (0, 1), (-1, -2)).reshape(-1, len(tensor))
        elif self.path[-1] == "kernel":
            tensor = tensor.T
        parts = np.split(tensor, len(self.pieces), axis=-1)
        for piece, part in zip(self.pieces, parts, strict=True):
            piece.of(into[piece.path], self.index)[...] = part

    def _to_file(self, array: np.ndarray) -> np.ndarray:
        """``(in, out)`` or another array in the file's layout."""
        if self.lead:
            return array[None]
        if self.patch:
            array = array.reshape(*self.patch, -1, array.shape[-1])
            return np.moveaxis(array, (-1, -2), (0, 1))
        return array.T if self.path[-1] == "kernel" else array


def entries(module: MMDiT, naming: str = NAMINGS[0]) -> list[Entry]:
    """Every tensor of a file for ``module``."""
    which, shapes = NAMINGS.index(naming), expected_shapes(module)
    table: list[Entry] = []
    for ours, names in _ENDS.items():
        path = tuple(ours.split("/"))
        pieces = [Piece(path)]
        if ours == "affine_out":
            pieces = _affine(path, 1, shift_first=which == 0)
        sides = (module.patch,) * 2 * (ours == "patch_in")
        table += _layer(names[which], pieces, sides)
    if module.positions == "table":
        table.append(
            Entry(_ENDS["position"][which], (Piece(("position",)),), lead=True)
        )
    loops = [(g, i) for g, n in module.loops().items() for i in range(n)]
    for i, (group, index) in enumerate([*loops, ("last", None)]):
        for stream in ("image", "context"):
            prefix = _BLOCK[stream, which][0].format(i)
            for entry in _stream(group, stream, which):
                name = prefix + entry.name
                table.append(dataclasses.replace(entry, name=name, index=index))
    return [entry for entry in table if entry.path in shapes]


def _stream(group: str, stream: str, which: int) -> Iterator[Entry]:
    """One stream of a block, without the block's prefix and index."""
    path, (modulation, *rest) = (group, stream), _BLOCK[stream, which][1].split()
    alone = group == "last" and stream == "context"
    dual = group == "dual_blocks" and stream == "image"
    branches = 1 if alone else 2 + dual
    pieces = _affine((*path, "affine"), branches, not (alone and which))
    if not alone:  # a gate after each pair
        gates = [Piece((*path, "gate"), i, branches) for i in range(branches)]
        pieces = [p for i, g in enumerate(gates) for p in (*pieces[2 * i :][:2], g)]
    yield from _layer(modulation, pieces)
    for layer, name in zip(("mlp_in", "mlp_out"), rest, strict=False):
        yield from _layer(name, [Piece((*path, layer))])
    for i, attention in enumerate(("attention", "attention2")[: 1 + dual]):
        qkv, norm_q, norm_k, out = rest[2 + 4 * i : 6 + 4 * i]
        here = (*path, attention)
        three = [Piece((*here, "qkv"), n, 3) for n in range(3)]
        groups = [[piece] for piece in three] if which else [three]
        for letter, some in zip("qkv", groups, strict=False):
            yield from _layer(qkv.format(letter), some)
        yield Entry(f"{norm_q}.weight", (Piece((*here, "q_norm")),))
        yield Entry(f"{norm_k}.weight", (Piece((*here, "k_norm")),))
        yield from _layer(out, [Piece((*here, "attention_out"))])


def _affine(path: tuple[str, ...], branches: int, shift_first: bool) -> list[Piece]:
    """Scale and shift of each branch, which lie here in this order."""
    count = 2 * branches
    return [Piece(path, i ^ int(shift_first), count) for i in range(count)]


def _layer(
    name: str, pieces: list[Piece], patch: tuple[int, ...] = ()
) -> Iterator[Entry]:
    """Weight and bias of a layer."""
    for leaf, suffix in (("kernel", "weight"), ("bias", "bias")):
        of = (dataclasses.replace(p, path=(*p.path, leaf)) for p in pieces)
        sides = patch if leaf == "kernel" else ()
        yield Entry(f"{name}.{suffix}", tuple(of), patch=sides)


def recognizes(state: Mapping[str, Any]) -> bool:
    """Whether a file holds such weights, under one of the namings."""
    return any(f"{name}.weight" in _bare(state) for name in _ENDS["patch_in"])


def file_layout(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """How a file names and stores its tensors, for ``export_weights``; plain data."""
    bare = _bare(state)
    dtypes = {name: a.dtype.name for name, a in bare.items()}
    usual = Counter(dtypes.values()).most_common(1)[0][0]
    return {
        "naming": NAMINGS[f"{_ENDS['patch_in'][1]}.weight" in bare],
        "prefix": PREFIX if any(n.startswith(PREFIX) for n in state) else "",
        "dtype": usual,
        "other_dtypes": {n: d for n, d in dtypes.items() if d != usual},
    }


def _bare(state: Mapping[str, Any]) -> dict[str, Any]:
    """The network's tensors without the prefix; a file may hold others beside them."""
    own = [name for name in state if name.startswith(PREFIX)]
    return {n.removeprefix(PREFIX): state[n] for n in own or state}


def infer_network(state: Mapping[str, np.ndarray]) -> tuple[str, dict[str, Any]]:
    """The network that a file holds weights of, see ``edm.infer_network``."""
    bare, which = _bare(state), NAMINGS.index(file_layout(state)["naming"])
    blocks = {m[1] for n in bare if (m := re.match(r"\w+_blocks\.(\d+)\.", n))}
    prefix, names = _BLOCK["image", which]
    _, mlp_in, _, _, norm, *_, second = names.split()
    width, _, patch, _ = bare[f"{_ENDS['patch_in'][which]}.weight"].shape
    scale = bare.get(f"{prefix}{norm}.weight".format(0))
    hidden = len(bare[f"{prefix}{mlp_in}.weight".format(0)])
    return "mmdit", {
        "patch": int(patch),
        "width": int(width),
        "depth": len(blocks),
        "num_heads": width // (HEAD_CHANNELS if scale is None else len(scale)),
        "mlp_ratio": hidden // width,
        "modulation": "adaptive",
        "qk_norm": "none" if scale is None else "rms",
        "activation": "gelu",
        "dual_attention_blocks": sum(
            f"{prefix}{second}.weight".format(i) in bare for i in blocks
        ),
        "positions": "table",
        "position_grid": math.isqrt(bare[_ENDS["position"][which]].shape[1]),
    }


def import_weights(module: MMDiT, state: Mapping[str, np.ndarray]) -> Tree:
    """The tensors of a file as parameters of ``module``, float32.

    Raises:
      ValueError: a tensor is missing, left over or of another shape.
    """
    table = entries(module, file_layout(state)["naming"])
    return read_pieces(table, expected_shapes(module), _bare(state))


def read_pieces(
    table: list[Entry], shapes: Shapes, state: Mapping[str, np.ndarray]
) -> Tree:
    """``edm.read_tensors`` for entries of pieces."""
    check_names(table, state)
    flat = {path: np.empty(shapes[path], np.float32) for path in placed(table)}
    for entry in table:
        shape, wanted = state[entry.name].shape, entry.file_shape(shapes)
        if shape != wanted:
            raise ValueError(
                f"{entry.name} has shape {shape}; for {'/'.join(entry.path)} it must "
                f"have {wanted}"
            )
        entry.read(np.asarray(state[entry.name]), flat)
    return traverse_util.unflatten_dict(flat)


def placed(table: list[Entry]) -> set[tuple[str, ...]]:
    """Paths of the parameters that the entries hold."""
    return {piece.path for entry in table for piece in entry.pieces}


def export_weights(
    module: MMDiT, params: Tree, layout: Mapping[str, Any] | None = None
) -> dict[str, np.ndarray]:
    """The inverse of ``import_weights`` in a ``file_layout``; default is float32.

    Raises:
      ValueError: a network that these files have no place for, such as one with a
        guidance input or another modulation.
    """
    default = {"naming": NAMINGS[0], "prefix": "", "dtype": "float32"}
    layout = {**default, "other_dtypes": {}, **(layout or {})}
    table = entries(module, layout["naming"])
    unplaced = ["/".join(p) for p in set(expected_shapes(module)) - placed(table)]
    if (module.modulation, module.activation) != ("adaptive", "gelu"):
        unplaced += [f"modulation {module.modulation!r}, {module.activation!r}"]
    if unplaced:
        raise ValueError(
            f"files of SD3 have no place for {sorted(unplaced)}; such a network can be "
            "saved as a checkpoint only"
        )
    flat = traverse_util.flatten_dict(params)
    flat = {path: np.asarray(flat[path]) for path in placed(table)}

    def tensor(entry: Entry) -> np.ndarray:
        name = layout["other_dtypes"].get(entry.name, layout["dtype"])
        return entry.write(flat).astype(jnp.dtype(name))

    return {layout["prefix"] + entry.name: tensor(entry) for entry in table}
