"""Names and layouts of the EDM family's weights: DDPM++ and the EDM2 U-Net.

The networks of ``scm_jax.networks`` store kernels with the output channels last and
stack blocks of equal shape; the files store each block alone, output channels first.
Apart from that, and from the order of sine and cosine in DDPM++, the layouts are equal,
so that a conversion is exact and its inverse gives the same file back.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from scm_jax.networks import Network
from scm_jax.networks.ddpmpp import DDPMpp
from scm_jax.networks.unet import UNet

Tree = dict[str, Any]
Shapes = Mapping[tuple[str, ...], tuple[int, ...]]

# Tensors of a file that are no weights of the network: EDM2's loss weighting, fixed
# resampling filters, and the input of EDM's augmentation, which is zero in sampling.
_EXTRAS = re.compile(r"(^|\.)(logvar_\w+\.|resample_filter$|map_augment\.)")

# Layers in the file's order, as (theirs, ours): before, in and after the blocks.
_UNET = (
    {
        "out_gain": "out_gain",
        "emb_fourier.freqs": "fourier/freqs",
        "emb_fourier.phases": "fourier/phases",
        "emb_noise": "emb_noise",
        "emb_label": "emb_label",
        "enc.{side}_conv": "in",
    },
    {
        "emb_gain": "affine_gain",
        "conv_res0": "conv0",
        "emb_linear": "affine",
        "conv_res1": "conv1",
        "conv_skip": "skip",
        "attn_qkv": "qkv",
        "attn_proj": "proj",
    },
    {"out_conv": "out"},
)
_DDPM_BLOCK = "norm0 conv0 affine norm1 conv1 skip norm2 qkv proj".split()
_DDPM = (
    {
        "map_layer0": "emb0",
        "map_layer1": "emb1",
        "map_label": "emb_label",
        "enc.{side}_conv": "in",
    },
    {name: name for name in _DDPM_BLOCK},
    {"dec.{side}_aux_norm": "norm_out", "dec.{side}_aux_conv": "out"},
)
_LEAVES = {"/kernel": ".weight", "/scale": ".weight", "/bias": ".bias", "": ""}
_POINTWISE = ("skip", "qkv", "proj")
# DDPM++ embeds as [sin, cos], we as [cos, sin]; the label is added to that. Axes, in
# our layout, whose halves are in the other order.
_SWAPS = {"emb0/kernel": 0, "emb_label/kernel": 1, "emb_label/bias": 0}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor of a file, and where it goes.

    A kernel is ``(*taps, in, out)`` in the parameter tree and ``(out, in, *taps)`` in
    the file; other tensors are equal.
    """

    name: str  # in the file
    path: tuple[str, ...]  # in the parameter tree
    index: int | None = None  # position in a stacked parameter
    pointwise: bool = False  # a kernel with taps (1, 1) in the file, none here
    swap: int | None = None  # axis here whose halves are in the other order
    ones: int = 0  # axes of length one that the file has after the others

    def file_shape(self, shapes: Shapes) -> tuple[int, ...]:
        """Shape of the tensor in the file, from those of the parameters."""
        shape = shapes[self.path]
        part = np.empty(shape if self.index is None else shape[1:], np.bool_)
        return self.write(part).shape

    def read(self, tensor: np.ndarray) -> np.ndarray:
        """From the file's layout to ours."""
        if self.path[-1] == "kernel":
            tensor = tensor[:, :, 0, 0] if self.pointwise else tensor
            tensor = tensor.transpose(*range(2, tensor.ndim), 1, 0)
        tensor = tensor.reshape(tensor.shape[: tensor.ndim - self.ones])
        return self._swapped(tensor)

    def write(self, array: np.ndarray) -> np.ndarray:
        """The inverse of ``read``."""
        array = self._swapped(array)
        if self.path[-1] == "kernel":
            array = array.transpose(-1, -2, *range(array.ndim - 2))
            array = array[:, :, None, None] if self.pointwise else array
        array = array.reshape((*array.shape, *[1] * self.ones))
        return np.array(array, order="C")  # keeps scalars, ascontiguousarray does not

    def _swapped(self, array: np.ndarray) -> np.ndarray:
        if self.swap is None:
            return array
        return np.roll(array, array.shape[self.swap] // 2, self.swap)


def check_names(table: Sequence[Any], state: Mapping[str, np.ndarray]) -> None:
    """Raises ``ValueError`` unless ``state`` has the tensors of ``table``, no others.

    An entry of ``table`` has a ``name`` in the file and a ``path`` in the parameters.
    """
    missing = [e for e in table if e.name not in state]
    unknown = sorted(set(state) - {e.name for e in table})
    if missing or unknown:
        lines = [f"  missing: {e.name} (for {'/'.join(e.path)})" for e in missing[:8]]
        lines += [f"  left over: {n} {state[n].shape}" for n in unknown[:8]]
        raise ValueError(
            f"the file does not fit this network ({len(missing)} tensors missing, "
            f"{len(unknown)} left over); do the network's settings agree with it?\n"
            + "\n".join(lines)
        )


def read_tensors(
    table: list[Entry], shapes: Shapes, state: Mapping[str, np.ndarray]
) -> Tree:
    """The tensors of a file as a tree of parameters of ``shapes``, float32.

    Raises:
      ValueError: a tensor is missing, left over or of another shape; the message has
        its name, the path of the parameter and both shapes.
    """
    check_names(table, state)
    parts: dict[tuple[str, ...], list[np.ndarray]] = {}
    for entry in table:
        tensor = np.asarray(state[entry.name])
        if tensor.shape != (wanted := entry.file_shape(shapes)):
            raise ValueError(
                f"{entry.name} has shape {tensor.shape}; for {'/'.join(entry.path)} it "
                f"must have {wanted}"
            )
        array = np.array(entry.read(tensor), np.float32, order="C")
        parts.setdefault(entry.path, []).append(array)
    stacked = {entry.path for entry in table if entry.index is not None}
    return traverse_util.unflatten_dict(
        {path: np.stack(a) if path in stacked else a[0] for path, a in parts.items()}
    )


def write_tensors(table: list[Entry], params: Tree) -> dict[str, np.ndarray]:
    """The inverse of ``read_tensors``."""
    flat = traverse_util.flatten_dict(params)
    state = {}
    for entry in table:
        node = flat[entry.path]
        array = np.asarray(node if entry.index is None else node[entry.index])
        state[entry.name] = entry.write(array)
    return state


def infer_network(state: Mapping[str, np.ndarray]) -> tuple[str, dict[str, Any]]:
    """The network that a file holds weights of, from names and shapes.

    Returns:
      A key of ``NETWORKS`` and the settings of that module that follow from the file.

    Raises:
      ValueError: neither of the two networks.
    """
    bare = _bare(state)
    unet = "emb_noise.weight" in bare
    stem = [n for n in bare if re.fullmatch(r"enc\.\d+x\d+_conv\.weight", n)]
    if not stem or not (unet or "map_layer0.weight" in bare):
        raise ValueError(
            "neither EDM2's U-Net (unet.emb_noise.weight, ...) nor EDM's DDPM++ "
            f"(model.map_layer0.weight, ...): the file has {sorted(state)[:6]}, ..."
        )
    width = int(bare[stem[0]].shape[0])
    blocks: dict[int, list[str]] = {}
    for name in bare:
        if match := re.match(r"enc\.(\d+)x\1_block\d+\.", name):
            blocks.setdefault(int(match[1]), []).append(name)
    sides = sorted(blocks, reverse=True)
    conv, affine, qkv = (
        ("conv_res1", "emb_linear", "attn_qkv") if unet else ("conv1", "affine", "qkv")
    )
    block = "enc.{0}x{0}_block0.".format
    of_level = [int(bare[f"{block(s)}{conv}.weight"].shape[0]) for s in sides]
    vectors = bare[f"{block(sides[0])}{affine}.weight"].shape[0] // of_level[0]
    norm = "double_norm" if vectors == 2 else "double_norm_scale" if unet else "add"
    settings: dict[str, Any] = {
        "width": width,
        "channel_mult": tuple(c // width for c in of_level),
        "num_blocks": sum(n.endswith(f".{conv}.weight") for n in blocks[sides[0]]),
        "attention_resolutions": tuple(
            s for s in sides if f"{block(s)}{qkv}.weight" in bare
        ),
        "modulation": "gain" if f"{block(sides[0])}emb_gain" in bare else norm,
    }
    if unet:
        fourier = "emb_fourier.freqs" in bare
        settings["embedding"] = "fourier" if fourier else "positional"
        if "emb_label.weight" in bare:
            settings["null_label"] = "zeros"
    return "unet" if unet else "ddpmpp", settings


def import_weights(
    module: UNet | DDPMpp, state: Mapping[str, np.ndarray]
) -> tuple[Tree, dict[str, np.ndarray]]:
    """The tensors of ``state_dict.read_state_dict`` as parameters of ``module``.

    Returns:
      The parameter tree, see ``read_tensors``, and the tensors that are no weights of
      the network (EDM2's loss weighting, for example), for ``export_weights``.
    """
    bare, table = _bare(state), entries(module)
    left = set(bare) - {entry.name for entry in table}
    extras = {n: bare.pop(n) for n in sorted(left) if _EXTRAS.search(n)}
    return read_tensors(table, expected_shapes(module), bare), extras


def export_weights(
    module: UNet | DDPMpp, params: Tree, extras: Mapping[str, np.ndarray] | None = None
) -> dict[str, np.ndarray]:
    """The inverse of ``import_weights``, under the names of the published files.

    Raises:
      ValueError: a parameter that these files have no place for, such as the guidance
        input.
    """
    table = entries(module)
    unplaced = set(expected_shapes(module)) - {entry.path for entry in table}
    if unplaced:
        names = sorted("/".join(path) for path in unplaced)
        raise ValueError(
            f"files of the EDM family have no place for {names}; the network of a "
            "student with further inputs can be saved as a checkpoint only"
        )
    prefix = "unet." if isinstance(module, UNet) else "model."
    state = {prefix + n: a for n, a in write_tensors(table, params).items()}
    for name, tensor in (extras or {}).items():
        state[name if name.startswith("logvar_") else prefix + name] = tensor
    return state


@functools.lru_cache(maxsize=8)
def expected_shapes(module: Any) -> Shapes:
    """Path -> shape of every parameter of ``module``; nothing is allocated."""
    return flat_shapes(jax.eval_shape(Network(module).init, jax.random.key(0)))


def flat_shapes(tree: Tree) -> Shapes:
    """Path -> shape of every leaf."""
    flat = traverse_util.flatten_dict(tree)
    return {path: tuple(leaf.shape) for path, leaf in flat.items()}


def _bare(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Names without the wrapper's prefix."""
    return {re.sub(r"^(unet|model)\.", "", name): a for name, a in state.items()}


def entries(module: UNet | DDPMpp) -> list[Entry]:
    """Every tensor of a file for ``module``, in the file's order."""
    before, in_block, after = _UNET if isinstance(module, UNet) else _DDPM
    swaps = {} if isinstance(module, UNet) else _SWAPS
    shapes, side = expected_shapes(module), "{0}x{0}".format(module.sample_shape[0])
    table = []

    def add(theirs: str, ours: str, index: int | None = None) -> None:
        *_, layer = ours.split("/")
        for leaf, suffix in _LEAVES.items():
            path = tuple((ours + leaf).split("/"))
            if path in shapes:
                pointwise, swap = layer in _POINTWISE, swaps.get(ours + leaf)
                table.append(Entry(theirs + suffix, path, index, pointwise, swap))

    for theirs, ours in before.items():
        add(theirs.format(side=side), ours)
    for group in module.layout():
        for i, block in enumerate(group.names):
            half, place, kind = block.split("_")
            for theirs, ours in in_block.items():
                index = i if len(group.names) > 1 else None
                name = f"{half}.{place}_{kind}.{theirs}"
                add(name, f"{group.name}/{ours}", index)
    for theirs, ours in after.items():
        add(theirs.format(side=side), ours)
    return table
