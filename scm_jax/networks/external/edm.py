"""Names and layouts of the EDM family's weights: DDPM++ and the EDM2 U-Net.

The networks of ``scm_jax.networks`` store kernels with the output channels last and
stack blocks of equal shape; the files store each block alone, output channels first.
Apart from that, and from the order of sine and cosine in DDPM++, the layouts are equal,
so that a conversion is exact and its inverse gives the same file back.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from scm_jax.networks.ddpmpp import DDPMpp
from scm_jax.networks.unet import UNet
from scm_jax.networks.unet_layout import Layout

Tree = dict[str, Any]

# Tensors of a file that are no weights of the network: EDM2's loss weighting, fixed
# resampling filters, and the input of EDM's augmentation, which is zero in sampling.
_EXTRAS = re.compile(r"(^|\.)(logvar_\w+\.|resample_filter$|map_augment\.)")
_PREFIXES = {"unet": "unet.", "ddpmpp": "model."}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor of a file, and where it goes.

    Attributes:
      name: in the file.
      path: in the parameter tree.
      index: position in a stacked parameter; None in one that is not stacked.
      layout: ``same``, ``linear`` (o, i), ``conv1`` (o, i, 1, 1) or ``conv``
        (o, i, k, k).
      swap: the axis, in our layout, whose halves are in the other order; or None.
    """

    name: str
    path: tuple[str, ...]
    index: int | None = None
    layout: str = "same"
    swap: int | None = None

    def read(self, tensor: np.ndarray) -> np.ndarray:
        """From the file's layout to ours."""
        if self.layout == "linear":
            tensor = tensor.T
        elif self.layout == "conv1":
            tensor = tensor[:, :, 0, 0].T
        elif self.layout == "conv":
            tensor = tensor.transpose(2, 3, 1, 0)
        return self._swapped(tensor)

    def write(self, array: np.ndarray) -> np.ndarray:
        """The inverse of ``read``."""
        array = self._swapped(array)
        if self.layout == "linear":
            array = array.T
        elif self.layout == "conv1":
            array = array.T[:, :, None, None]
        elif self.layout == "conv":
            array = array.transpose(3, 2, 0, 1)
        return np.array(array, order="C")  # keeps scalars, ascontiguousarray does not

    @property
    def rank(self) -> int | None:
        """Axes of the tensor in the file; None for any number."""
        return {"linear": 2, "conv1": 4, "conv": 4}.get(self.layout)

    def _swapped(self, array: np.ndarray) -> np.ndarray:
        if self.swap is None:
            return array
        return np.roll(array, array.shape[self.swap] // 2, self.swap)


def infer_network(state: Mapping[str, np.ndarray]) -> tuple[str, dict[str, Any]]:
    """The network that a file holds weights of, from names and shapes.

    Args:
      state: name -> tensor.

    Returns:
      A key of ``NETWORKS`` and the settings of that module that follow from the file:
      ``width``, ``channel_mult``, ``num_blocks``, ``attention_resolutions``,
      ``modulation``, ``embedding``; and of an unlabelled file nothing on classes.

    Raises:
      ValueError: neither of the two.
    """
    bare = _bare(state)
    stems = [n for n in bare if re.fullmatch(r"enc\.\d+x\d+_conv\.weight", n)]
    name = "unet" if "emb_noise.weight" in bare else "ddpmpp"
    if not stems or (name == "ddpmpp" and "map_layer0.weight" not in bare):
        raise ValueError(
            "neither EDM2's U-Net (unet.emb_noise.weight, ...) nor EDM's DDPM++ "
            f"(model.map_layer0.weight, ...): the file has {sorted(state)[:6]}, ..."
        )
    sides = sorted(
        {int(n.split(".")[1].split("x")[0]) for n in bare if n.startswith("enc.")},
        reverse=True,
    )
    conv = "conv_res1" if name == "unet" else "conv1"
    of_level = [bare[f"enc.{s}x{s}_block0.{conv}.weight"].shape[0] for s in sides]
    first = bare[stems[0]]
    width = int(first.shape[0])
    blocks = sum(
        bool(re.fullmatch(rf"enc\.{sides[0]}x{sides[0]}_block\d+\.{conv}\.weight", n))
        for n in bare
    )
    qkv = "attn_qkv" if name == "unet" else "qkv"
    attending = tuple(s for s in sides if f"enc.{s}x{s}_block0.{qkv}.weight" in bare)
    settings: dict[str, Any] = {
        "width": width,
        "channel_mult": tuple(int(c) // width for c in of_level),
        "num_blocks": blocks,
        "attention_resolutions": attending,
    }
    block = f"enc.{sides[0]}x{sides[0]}_block0."
    if name == "unet":
        vectors = bare[block + "emb_linear.weight"].shape[0] // of_level[0]
        norm = "double_norm" if vectors == 2 else "double_norm_scale"
        settings["modulation"] = "gain" if block + "emb_gain" in bare else norm
        fourier = "emb_fourier.freqs" in bare
        settings["embedding"] = "fourier" if fourier else "positional"
        if "emb_label.weight" in bare:
            settings["null_label"] = "zeros"
    else:
        vectors = bare[block + "affine.weight"].shape[0] // of_level[0]
        settings["modulation"] = "double_norm" if vectors == 2 else "add"
    return name, settings


def import_weights(
    module: UNet | DDPMpp, state: Mapping[str, np.ndarray]
) -> tuple[Tree, dict[str, np.ndarray]]:
    """A file's tensors as the parameters of ``module``.

    Args:
      module: the network, with the settings of ``infer_network``.
      state: name -> tensor, as ``state_dict.read_state_dict`` returns it.

    Returns:
      The parameter tree, float32, and the tensors that are no weights of the network
      (EDM2's loss weighting, for example), for ``export_weights``.

    Raises:
      ValueError: a tensor is missing, left over or of another shape; the message has
        its name, the path of the parameter and both shapes.
    """
    bare = _bare(state)
    table = entries(module)
    missing = [e for e in table if e.name not in bare]
    left = set(bare) - {e.name for e in table}
    extras = {n: bare[n] for n in sorted(left) if _EXTRAS.search(n)}
    unknown = sorted(left - set(extras))
    if missing or unknown:
        lines = [f"  missing: {e.name} (for {'/'.join(e.path)})" for e in missing[:8]]
        lines += [f"  left over: {n} {bare[n].shape}" for n in unknown[:8]]
        raise ValueError(
            f"the file does not fit this network ({len(missing)} tensors missing, "
            f"{len(unknown)} left over); do the network's settings agree with it?\n"
            + "\n".join(lines)
        )
    shapes = expected_shapes(module)
    parts: dict[tuple[str, ...], list[np.ndarray]] = {}
    for entry in table:
        tensor = bare[entry.name]
        path = "/".join(entry.path)
        shape = shapes[entry.path]
        shape = shape if entry.index is None else shape[1:]
        fits = entry.rank in (None, tensor.ndim)
        array = entry.read(np.asarray(tensor)) if fits else np.asarray(tensor)
        if not fits or array.shape != shape:
            raise ValueError(
                f"{entry.name} has shape {tuple(tensor.shape)}"
                + (f", that is {array.shape} here" if fits else "")
                + f"; the network's {path} has {shape}"
            )
        parts.setdefault(entry.path, []).append(array.astype(np.float32))
    tree: Tree = {}
    for entry in table:
        if entry.path in parts:
            arrays = parts.pop(entry.path)
            value = arrays[0] if entry.index is None else np.stack(arrays)
            node = tree
            for key in entry.path[:-1]:
                node = node.setdefault(key, {})
            node[entry.path[-1]] = np.array(value, order="C")
    return tree, extras


def export_weights(
    module: UNet | DDPMpp, params: Tree, extras: Mapping[str, np.ndarray] | None = None
) -> dict[str, np.ndarray]:
    """The inverse of ``import_weights``, under the names of the published files.

    Args:
      module: the network.
      params: its parameters.
      extras: what ``import_weights`` returned besides.

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
    prefix = _PREFIXES[_kind(module)]
    state = {}
    for entry in table:
        node: Any = params
        for key in entry.path:
            node = node[key]
        array = np.asarray(node if entry.index is None else node[entry.index])
        state[prefix + entry.name] = entry.write(array)
    for name, tensor in (extras or {}).items():
        state[name if name.startswith("logvar_") else prefix + name] = tensor
    return state


def expected_shapes(module: UNet | DDPMpp) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Path -> shape of every parameter of ``module``; nothing is allocated."""
    import jax
    from flax import traverse_util

    from scm_jax.networks import Network

    network = Network(module, _consumes(module))
    tree = jax.eval_shape(network.init, jax.random.key(0))
    flat = traverse_util.flatten_dict(tree)
    return {path: tuple(leaf.shape) for path, leaf in flat.items()}


def _consumes(module: UNet | DDPMpp) -> frozenset[str]:
    inputs = {"t": True, "label": module.num_classes > 0}
    inputs |= {"guidance": module.use_guidance, "dt": module.use_dt}
    return frozenset(name for name, used in inputs.items() if used)


def _kind(module: UNet | DDPMpp) -> str:
    return "unet" if isinstance(module, UNet) else "ddpmpp"


def _bare(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Names without the wrapper's prefix."""
    prefixes = tuple(_PREFIXES.values())
    return {
        next((n[len(p) :] for p in prefixes if n.startswith(p)), n): tensor
        for n, tensor in state.items()
    }


def entries(module: UNet | DDPMpp) -> list[Entry]:
    """Every tensor of a file for ``module``, in the file's order."""
    return _unet_entries(module) if isinstance(module, UNet) else _ddpm_entries(module)


def _block_entries(
    layout: Layout, fields: Any, rename: Mapping[str, tuple[str, str]]
) -> list[Entry]:
    """Entries of all blocks; ``fields(spec)`` names the leaves that a block has."""
    found = []
    for group in layout.groups:
        for i, block in enumerate(group.names):
            side, _, kind = block.partition("_")[2].partition("_")
            file_block = f"{block[:3]}.{side}_{kind}"
            for leaf in fields(group.spec):
                name, kind_of_layout = rename[leaf]
                found.append(
                    Entry(
                        f"{file_block}.{name}",
                        (group.name, *leaf.split("/")),
                        i if len(group.names) > 1 else None,
                        kind_of_layout,
                    )
                )
    return found


_UNET_LEAVES = {
    "affine_gain": ("emb_gain", "same"),
    "conv0/kernel": ("conv_res0.weight", "conv"),
    "affine/kernel": ("emb_linear.weight", "linear"),
    "conv1/kernel": ("conv_res1.weight", "conv"),
    "skip/kernel": ("conv_skip.weight", "conv1"),
    "qkv/kernel": ("attn_qkv.weight", "conv1"),
    "proj/kernel": ("attn_proj.weight", "conv1"),
}


def _unet_entries(module: UNet) -> list[Entry]:
    side = f"{module.sample_shape[0]}x{module.sample_shape[0]}"
    table = [Entry("out_gain", ("out_gain",))]
    if module.embedding == "fourier":
        table += [
            Entry(f"emb_fourier.{leaf}", ("fourier", leaf))
            for leaf in ("freqs", "phases")
        ]
    table.append(Entry("emb_noise.weight", ("emb_noise", "kernel"), None, "linear"))
    if module.num_classes:
        label = ("emb_label", "kernel")
        table.append(Entry("emb_label.weight", label, None, "linear"))
    table.append(Entry(f"enc.{side}_conv.weight", ("in", "kernel"), None, "conv"))

    def fields(spec: Any) -> list[str]:
        leaves = ["affine_gain"] if module.modulation == "gain" else []
        leaves += ["conv0/kernel", "affine/kernel", "conv1/kernel"]
        if spec.in_channels + spec.skip_channels != spec.out_channels:
            leaves.append("skip/kernel")
        return leaves + (["qkv/kernel", "proj/kernel"] if spec.attention else [])

    table += _block_entries(module.layout(), fields, _UNET_LEAVES)
    table.append(Entry("out_conv.weight", ("out", "kernel"), None, "conv"))
    return table


_DDPM_LEAVES = {
    **{
        f"{layer}/{ours}": (f"{layer}.{theirs}", "same")
        for layer in ("norm0", "norm1", "norm2")
        for ours, theirs in (("scale", "weight"), ("bias", "bias"))
    },
    **{
        f"{layer}/kernel": (f"{layer}.weight", layout)
        for layer, layout in {
            "conv0": "conv",
            "affine": "linear",
            "conv1": "conv",
            "skip": "conv1",
            "qkv": "conv1",
            "proj": "conv1",
        }.items()
    },
    **{
        f"{layer}/bias": (f"{layer}.bias", "same")
        for layer in ("conv0", "affine", "conv1", "skip", "qkv", "proj")
    },
}


def _ddpm_entries(module: DDPMpp) -> list[Entry]:
    side = f"{module.sample_shape[0]}x{module.sample_shape[0]}"
    # The files embed as [sin, cos], we as [cos, sin]; the label is added to that.
    table = [
        Entry("map_layer0.weight", ("emb0", "kernel"), None, "linear", swap=0),
        Entry("map_layer0.bias", ("emb0", "bias")),
        Entry("map_layer1.weight", ("emb1", "kernel"), None, "linear"),
        Entry("map_layer1.bias", ("emb1", "bias")),
    ]
    if module.num_classes:
        table += [
            Entry("map_label.weight", ("emb_label", "kernel"), None, "linear", swap=1),
            Entry("map_label.bias", ("emb_label", "bias"), swap=0),
        ]
    table += [
        Entry(f"enc.{side}_conv.weight", ("in", "kernel"), None, "conv"),
        Entry(f"enc.{side}_conv.bias", ("in", "bias")),
    ]

    def fields(spec: Any) -> list[str]:
        layers = ["norm0", "conv0", "affine", "norm1", "conv1"]
        total = spec.in_channels + spec.skip_channels
        if total != spec.out_channels or spec.resample != "none":
            layers.append("skip")
        layers += ["norm2", "qkv", "proj"] if spec.attention else []
        return [
            f"{layer}/{leaf}"
            for layer in layers
            for leaf in ("scale" if "norm" in layer else "kernel", "bias")
        ]

    table += _block_entries(module.layout(), fields, _DDPM_LEAVES)
    table += [
        Entry(f"dec.{side}_aux_norm.weight", ("norm_out", "scale")),
        Entry(f"dec.{side}_aux_norm.bias", ("norm_out", "bias")),
        Entry(f"dec.{side}_aux_conv.weight", ("out", "kernel"), None, "conv"),
        Entry(f"dec.{side}_aux_conv.bias", ("out", "bias")),
    ]
    return table
