"""Functions of PyTorch's names, which pickle can write without PyTorch."""

import sys
import types

import pytest

from tests.exchange.torch_pickles import Call, Persistent


@pytest.fixture
def named(monkeypatch):
    """Makes a function that pickle writes under any dotted name."""

    def make(dotted):
        module_name, _, name = dotted.rpartition(".")
        for part in (module_name.partition(".")[0], module_name):
            if part not in sys.modules:
                monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
        module = sys.modules[module_name]
        if not hasattr(module, name):
            function = types.FunctionType((lambda: None).__code__, {}, name)
            function.__module__, function.__qualname__ = module_name, name
            setattr(module, name, function)
        return getattr(module, name)

    return make


@pytest.fixture
def rebuild(named):
    """Pickled as torch pickles a tensor, its storage of float32 numbers."""
    function = named("torch._utils._rebuild_tensor_v2")
    storage_type = named("torch.FloatStorage")

    def make(offset, shape, stride, *more, key="0", size=6, storage=None):
        if storage is None:
            storage = Persistent("storage", storage_type, key, "cpu", size)
        return Call(function, storage, offset, shape, stride, False, None, *more)

    return make


@pytest.fixture
def nested(named, rebuild):
    """Pickled as a tensor whose storage is the bytes of another file."""
    load = named("torch.storage._load_from_bytes")

    def make(content, offset=0, shape=(1,), stride=(1,)):
        return rebuild(offset, shape, stride, storage=Call(load, content))

    return make
