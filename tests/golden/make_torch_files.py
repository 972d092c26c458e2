"""Makes the files in ``golden/torch/``; needs PyTorch and safetensors, tests do not.

    python tests/golden/make_torch_files.py

Written with torch 2.13.0+cpu, safetensors 0.8.0, numpy 2.4.6. What the tensors hold is
said twice: here with torch, in ``tests/exchange/torch_pickles.py`` with numpy.
"""

import collections
import pathlib
import pickle
import sys
import types

import numpy as np
import safetensors.torch
import torch

FOLDER = pathlib.Path(__file__).parent / "torch"

# What a network's pickle carries along; whoever executes it leaves a trace.
MODULE_SRC = """
open("module_src_was_run", "w").close()

class Network:
    pass
"""


def make_module(name: str, **members: object) -> types.ModuleType:
    """A module that pickle can import by a dotted name."""
    module = types.ModuleType(name)
    vars(module).update(members)
    sys.modules[name] = module
    for member in members.values():
        member.__module__ = name  # type: ignore[attr-defined]
    return module


def _reconstruct_persistent_obj(meta):
    raise NotImplementedError("the files are only written here")


class EasyDict(dict):
    """A dict whose entries are attributes."""

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def __setattr__(self, name, value):
        self[name] = value


make_module("torch_utils")
make_module(
    "torch_utils.persistence", _reconstruct_persistent_obj=_reconstruct_persistent_obj
)
make_module("dnnlib")
make_module("dnnlib.util", EasyDict=EasyDict)


def persistent(cls):
    """Instances are pickled as their source text, class name and attributes."""

    class Persistent(cls):
        def __reduce__(self):
            meta = {
                "type": "class",
                "version": 6,
                "module_src": MODULE_SRC,
                "class_name": cls.__name__,
                "state": dict(vars(self)),
            }
            return _reconstruct_persistent_obj, (meta,), None

    return Persistent


@persistent
class Linear(torch.nn.Module):
    """One matrix and its gain."""

    def __init__(self, width):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(width, width))
        self.gain = torch.nn.Parameter(torch.zeros([]))
        self.bias = None
        self.register_parameter("no_bias", None)


@persistent
class Network(torch.nn.Module):
    """Layers of torch and our own, in containers of torch."""

    def __init__(self):
        super().__init__()
        self.sizes = EasyDict(width=4, labels={1, 2})
        self.out_gain = torch.nn.Parameter(torch.zeros([]))
        self.register_buffer("freqs", torch.zeros(3))
        self.register_buffer("scratch", torch.zeros(5), persistent=False)
        self.register_buffer("resample_filter", None)
        self.enc = torch.nn.ModuleDict(
            {
                "8x8_conv": torch.nn.Conv2d(2, 4, 3, bias=False),
                "8x8_block": torch.nn.Sequential(
                    torch.nn.GroupNorm(2, 4), torch.nn.SiLU(), torch.nn.Dropout(0.1)
                ),
            }
        )
        self.dec = torch.nn.ModuleList([Linear(4), Linear(2)])
        self.out = torch.nn.Linear(4, 1)


@persistent
class Encoder:
    """No module: a few numpy constants."""

    def __init__(self):
        self.scale = np.float32([0.5, 0.25])
        self.bias = np.float32(3) / self.scale


def network() -> torch.nn.Module:
    net = Network().eval().requires_grad_(False)
    for index, value in enumerate(net.state_dict().values()):
        count = torch.arange(value.numel(), dtype=value.dtype)
        value.copy_((count.reshape(value.shape) + 10 * index) / 16)
    return net


def ramp(*shape: int) -> torch.Tensor:
    return torch.arange(int(np.prod(shape))).reshape(shape) / 8 - 1


def tensors() -> dict[str, torch.Tensor]:
    base = ramp(8)
    state = collections.OrderedDict(
        {
            "conv.weight": torch.nn.Parameter(ramp(2, 3, 2, 2)),
            "float64": ramp(5).double() / 3,
            "float16": ramp(5).half(),
            "bfloat16": ramp(2, 3).bfloat16(),
            "int64": torch.tensor([-(2**40), 0, 2**40]),
            "int32": torch.tensor([-7, 2**30], dtype=torch.int32),
            "uint8": torch.tensor([[0, 255]], dtype=torch.uint8),
            "bool": torch.tensor([True, False, True]),
            "transposed": ramp(2, 3).T,
            "transposed_bfloat16": ramp(2, 3).bfloat16().T,
            "strided": ramp(4, 6)[1:4:2, 1::2],
            "shared.a": base[:4],
            "shared.b": base[2:],
            "expanded": torch.tensor([0.5]).expand(3),
            "scalar": torch.tensor(2.5),
            "empty": torch.zeros(0, 3),
        }
    )
    # What Module.state_dict() leaves on its result.
    state._metadata = collections.OrderedDict({"": {"version": 1}})
    return state


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    legacy = {"_use_new_zipfile_serialization": False}
    torch.save(tensors(), FOLDER / "tensors.pt")
    torch.save(tensors(), FOLDER / "tensors_legacy.pt", **legacy)
    flat = {name: value.contiguous().clone() for name, value in tensors().items()}
    safetensors.torch.save_file(flat, FOLDER / "tensors.safetensors")

    net = network()
    snapshot = EasyDict(encoder=Encoder(), dataset_kwargs=EasyDict(path="images"))
    snapshot.ema = net
    for protocol in (2, 4):
        with (FOLDER / f"network_protocol{protocol}.pkl").open("wb") as file:
            pickle.dump(snapshot, file, protocol=protocol)
    with (FOLDER / "network_half.pkl").open("wb") as file:
        pickle.dump({"ema": network().half()}, file)
    # A training state: the network, and next to it what is no weights.
    moments = {"state": {0: {"step": 3, "exp_avg": ramp(2)}}, "param_groups": [{}]}
    training = {"net": net, "optimizer_state": moments, "betas": (0.9, 0.99)}
    torch.save(training, FOLDER / "training_state.pt")
    # A whole network of torch's own layers. Their source text would go along; a stub is
    # smaller, and torch's own text is not ours to keep.
    torch.serialization.get_source_lines_and_file = lambda cls: (["pass"], 1, "a.py")
    layers = torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.BatchNorm1d(1))
    torch.save(layers, FOLDER / "layers_legacy.pt", **legacy)
    torch.save({"model": layers.state_dict()}, FOLDER / "model.pt")
    size = sum(file.stat().st_size for file in FOLDER.iterdir())
    print(f"{size} bytes in {FOLDER}")


if __name__ == "__main__":
    main()
