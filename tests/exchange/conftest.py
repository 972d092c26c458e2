"""Functions of PyTorch's names, which pickle can write without PyTorch."""

import sys
import types

import pytest

from tests.exchange.torch_pickles import Call, Persistent


@pytest.fixture
def named(monkeypatch):
    """Makes a function that pickle writes under any dotted name."""

    modules: dict[str, types.ModuleType] = {}

    def add_module(name):
        if name not in modules:
            modules[name] = types.ModuleType(name)
            monkeypatch.setitem(sys.modules, name, modules[name])
        return modules[name]

    def make(dotted):
        module_name, _, name = dotted.rpartition(".")
        add_module(module_name.partition(".")[0])
        module = add_module(module_name)
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

    def make(offset, shape, stride, *, key="0", size=6):
        storage = Persistent("storage", storage_type, key, "cpu", size)
        return Call(function, storage, offset, shape, stride, False, None)

    return make
