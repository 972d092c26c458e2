"""What ``torch.save`` writes, and pickles of networks: records, tensors, arrays.

PyTorch is never imported and no code of a file is run: the names that may occur in a
pickle are listed here, and the source text that EDM's pickles carry stays text.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import pickletools
import re
import sys
import zipfile
from collections.abc import Callable
from typing import IO, Any

import ml_dtypes
import numpy as np

from scm_jax.files.inert_pickle import (
    ARRAYS,
    Attributed,
    Record,
    UnsafePickleError,
    check_keys,
    damage_in,
    encode,
    is_name,
    read_pickle,
)

# Typed storage of torch -> dtype of its elements.
STORAGES = {
    "torch.FloatStorage": np.dtype(np.float32),
    "torch.DoubleStorage": np.dtype(np.float64),
    "torch.HalfStorage": np.dtype(np.float16),
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch.LongStorage": np.dtype(np.int64),
    "torch.IntStorage": np.dtype(np.int32),
    "torch.ShortStorage": np.dtype(np.int16),
    "torch.CharStorage": np.dtype(np.int8),
    "torch.ByteStorage": np.dtype(np.uint8),
    "torch.BoolStorage": np.dtype(np.bool_),
    "torch.ComplexFloatStorage": np.dtype(np.complex64),
    "torch.ComplexDoubleStorage": np.dtype(np.complex128),
}
DTYPES = tuple(STORAGES.values())

_PERSISTENT = "torch_utils.persistence._reconstruct_persistent_obj"
_LOAD_FROM_BYTES = "torch.storage._load_from_bytes"
_TENSORS = {"torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"}
_PARAMETERS = {
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
}
# Names of numpy 1 and of numpy 2.
_SCALARS = {f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")}
_BUFFERS = {f"numpy.{core}.numeric._frombuffer" for core in ("core", "_core")}
_WEIGHTS = _TENSORS | _PARAMETERS | ARRAYS | _SCALARS | _BUFFERS

# The names that a pickle of weights may hold. None is looked up: they become records.
_KNOWN = {
    *_WEIGHTS,
    *STORAGES,
    *(_PERSISTENT, _LOAD_FROM_BYTES),
    *("numpy.dtype", "numpy.ndarray", "torch.device", "torch.nn.parameter.Parameter"),
    *("argparse.Namespace", "types.SimpleNamespace"),
    *(f"torch.{dtype}" for dtype in DTYPES),
}
# Layers that torch brings along, such as torch.nn.modules.conv.Conv2d.
_TORCH_LAYERS = re.compile(r"torch\.nn\.modules(\.\w+)+", re.ASCII)

# What a legacy stream starts with: the pickled number 0x1950a86a20f9469cfc6c.
_LEGACY_MAGIC = b"l\xfc\x9cF\xf9 j\xa8P\x19."


def _is_known(module: str, name: str) -> bool:
    if f"{module}.{name}" in _KNOWN:
        return True
    # An identifier: "container.os.system" would climb out of the module.
    return bool(_TORCH_LAYERS.fullmatch(module)) and name.isidentifier()


def _is_known_nested(module: str, name: str) -> bool:
    # Only a storage is pickled within a pickle; without another one inside it, the
    # depth of a file is bounded.
    return f"{module}.{name}" in STORAGES


def _size(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError("a size that is no whole number from 0 on")
    return value


def _sizes(values: Any) -> tuple[int, ...]:
    if not isinstance(values, tuple | list):
        raise TypeError(f"sizes in a {type(values).__name__}")
    return tuple(map(_size, values))


def _set(values: Any = ()) -> set[Any]:
    check_keys(values)
    return set(values)


# The containers that a pickle asks for by name, made by us.
_BUILDERS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": lambda: Attributed(),
    "dnnlib.util.EasyDict": lambda: Attributed(),
    "builtins.set": _set,
    "builtins.frozenset": lambda values=(): frozenset(_set(values)),
    "builtins.bytes": lambda: b"",
    "_codecs.encode": encode,
    "torch.Size": _sizes,
}


@dataclasses.dataclass(eq=False)
class Storage:
    """A piece of flat memory that tensors are views of, with ``size`` elements."""

    dtype: np.dtype
    size: int
    swap: bool  # its bytes are in the other order than this machine's
    fetch: Callable[[], bytes] | None = None

    @functools.cached_property
    def content(self) -> bytes:
        if self.fetch is None:
            raise ValueError("its storage is not in the file")
        return self.fetch()

    def __setstate__(self, state: Any) -> None:
        # A pickle could set attributes otherwise.
        raise TypeError("a state for a storage")

    def part(self, start: int, size: int) -> Storage:
        width = self.dtype.itemsize
        piece = slice(start * width, (start + size) * width)
        return Storage(self.dtype, size, self.swap, lambda: self.content[piece])

    def view(
        self, offset: int, shape: tuple[int, ...], stride: tuple[int, ...]
    ) -> np.ndarray:
        """A copy of the tensor with these numbers of elements as offset and strides."""
        if len(shape) != len(stride):
            raise ValueError(f"shape {shape} with strides {stride}")
        if 0 in shape:
            return np.empty(shape, self.dtype)
        pairs = zip(shape, stride, strict=True)
        needed = 1 + offset + sum((n - 1) * step for n, step in pairs)
        width = self.dtype.itemsize
        present = min(self.size, len(self.content) // width)
        if needed > present:
            raise ValueError(
                f"shape {shape}, strides {stride} and offset {offset} need {needed} "
                f"elements; its storage has {present} of the {self.size} it declares"
            )
        strides = tuple(step * width for step in stride)
        view: np.ndarray = np.ndarray(
            shape, self.dtype, self.content, offset * width, strides
        )
        return view.byteswap() if self.swap else view.copy()


def is_zip(head: bytes) -> bool:
    """Whether a file that begins with these bytes begins as a zip archive does."""
    return head[:4] in (b"PK\x03\x04", b"PK\x05\x06")


def open_zip(file: IO[bytes], where: str) -> zipfile.ZipFile:
    """The archive in a file; a ValueError where there is none."""
    with damage_in(f"{where}: the zip archive is cut off or damaged"):
        return zipfile.ZipFile(file)


def read_object(file: IO[bytes], where: str, *, nested: bool = False) -> Any:
    """The object in a file of ``torch.save``, zip or legacy stream, or in a pickle.

    ``file`` must stay open as long as tensors are made of the object; ``nested``: it
    holds the bytes of a storage within a pickle.
    """
    return _File(file, where, nested).read()


class _File:
    def __init__(self, file: IO[bytes], where: str, nested: bool):
        self.file, self.where = file, where
        self.storages: dict[str, Storage] = {}
        self.swap = sys.byteorder != "little"  # legacy streams are little endian
        self.unpickle = functools.partial(
            read_pickle,
            where=where,
            builders=_BUILDERS,
            is_known=_is_known_nested if nested else _is_known,
        )

    def read(self) -> Any:
        self.file.seek(0)
        head = self.file.read(32)
        self.file.seek(0)
        if is_zip(head):
            return self.read_zip()
        if _LEGACY_MAGIC in head:
            return self.read_legacy()
        if head[:1] != b"\x80":  # the first of a pickle of protocol 2 and up
            with damage_in(
                f"{self.where} starts with {head[:8]!r}: neither a file of "
                "torch.save, nor a pickle, nor safetensors, nor npz"
            ):
                for _ in pickletools.genops(self.file):
                    pass
            self.file.seek(0)
        return self.unpickle(self.file)

    def find_storage(self, pid: Any) -> tuple[Storage, str, tuple[Any, ...]]:
        """The storage of an id ("storage", type, key, device, size, ...), key, rest."""
        if isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == "storage":
            _, kind, key, _, size, *rest = pid
            if is_name(kind) and kind.maker in STORAGES and type(key) is str:
                storage = Storage(STORAGES[kind.maker], _size(size), self.swap)
                return self.storages.setdefault(key, storage), key, tuple(rest)
        raise UnsafePickleError(
            f"{self.where}: the pickle asks for an object outside of it that is no "
            "storage of torch. It was refused; nothing in the file was executed."
        )

    def read_zip(self) -> Any:
        archive = open_zip(self.file, self.where)
        names = archive.namelist()
        pickles = [name for name in names if name.split("/")[1:] == ["data.pkl"]]
        if len(pickles) != 1:
            raise ValueError(
                f"{self.where}: a zip archive, but neither of torch.save (it holds "
                f"{len(pickles)} data.pkl) nor npz (not all is .npy)"
            )
        root = pickles[0].removesuffix("data.pkl")
        with damage_in(f"{self.where}: the zip archive is damaged"):
            if f"{root}byteorder" in names:
                order = archive.read(f"{root}byteorder").decode("ascii")
                if order not in ("little", "big"):
                    raise ValueError(f"byte order {order!r}")
                self.swap = order != sys.byteorder
            content = archive.read(pickles[0])

        def persistent(pid: Any) -> Storage:
            storage, key, _ = self.find_storage(pid)
            storage.fetch = functools.partial(archive.read, f"{root}data/{key}")
            return storage

        return self.unpickle(io.BytesIO(content), persistent=persistent)

    def read_legacy(self) -> Any:
        """Three pickles of preamble, the object, the keys of storages, their bytes."""

        def persistent(pid: Any) -> Any:
            if isinstance(pid, tuple) and pid[:1] == ("module",) and len(pid) == 4:
                return pid[1]  # a class, with its source text
            storage, _, rest = self.find_storage(pid)
            if rest and rest[0] is not None:
                _, start, size = rest[0]
                return storage.part(_size(start), _size(size))
            return storage

        _magic, protocol, _system = (self.unpickle(self.file) for _ in range(3))
        if protocol != 1001:
            raise ValueError(f"{self.where}: a stream of another protocol")
        top = self.unpickle(self.file, persistent=persistent)
        keys = self.unpickle(self.file)
        position = self.file.tell()
        with damage_in(f"{self.where}: the list of storages is damaged"):
            for key in keys:
                storage = self.storages[key]
                self.file.seek(position)
                count = int.from_bytes(self.file.read(8), "little")
                if count != storage.size:
                    raise ValueError(
                        f"storage {key!r} has {count} elements where its tensors "
                        f"expect {storage.size}"
                    )
                size, position = count * storage.dtype.itemsize, position + 8
                storage.fetch = functools.partial(self.read_bytes, position, size)
                position += size
        return top

    def read_bytes(self, start: int, size: int) -> bytes:
        self.file.seek(start)
        content = self.file.read(size)
        if len(content) < size:
            raise ValueError("the file is cut off within its storage")
        return content


# Tensors, arrays and networks among the records.


def to_array(value: Any, where: str) -> np.ndarray:
    """The array that a record stands for; of numpy's a view of what was stored."""
    while isinstance(value, Record) and value.maker in _PARAMETERS:
        value = value.args[0]
    if not is_tensor(value):
        raise ValueError(f"it is {kind_of(value)}, no tensor")
    if value.maker in _TENSORS:
        storage, offset, shape, stride, *rest = value.args
        # requires_grad, hooks, and from torch 2 on: is it stored negated or conjugated?
        if len(rest) > 2 and rest[2]:
            raise ValueError("it is a lazily negated or conjugated view")
        if isinstance(storage, Record) and storage.maker == _LOAD_FROM_BYTES:
            (content,) = storage.args
            if not isinstance(content, bytes):
                kind = type(content).__name__
                raise TypeError(f"bytes of a storage that are a {kind}")
            storage = read_object(io.BytesIO(content), where, nested=True)
        if not isinstance(storage, Storage):
            raise TypeError(f"a storage that is {kind_of(storage)}")
        return storage.view(_size(offset), _sizes(shape), _sizes(stride))
    if value.maker in _SCALARS:
        dtype, content = value.args
        return _from_numpy((), dtype, content, "C")
    if value.maker in _BUFFERS:
        content, dtype, shape, order = value.args
        return _from_numpy(shape, dtype, content, order)
    _, shape, dtype, by_columns, content = value.state
    return _from_numpy(shape, dtype, content, "F" if by_columns else "C")


def _from_numpy(shape: Any, dtype: Any, content: Any, order: Any) -> np.ndarray:
    if isinstance(content, str):  # bytes of Python 2
        content = content.encode("latin1")
    if not isinstance(content, bytes | bytearray) or order not in ("C", "F"):
        raise TypeError("a numpy array whose content is not bytes")
    if not isinstance(dtype, Record) or dtype.maker != "numpy.dtype":
        raise TypeError("a numpy array without a dtype")
    code = dtype.args[0]
    byteorder = dtype.state[1] if dtype.state else "="
    if not re.fullmatch(r"[biufc]\d\d?", code) or byteorder not in ("<", ">", "=", "|"):
        raise TypeError(f"a numpy array of dtype {code!r}")
    return np.ndarray(_sizes(shape), byteorder + code, content, order=order)


def is_tensor(value: Any) -> bool:
    """Whether it stands for a tensor or an array."""
    return isinstance(value, Record) and value.maker in _WEIGHTS


def module_state(value: Any) -> dict[str, Any] | None:
    """The attributes of a pickled ``torch.nn.Module``; None if it is something else."""
    if not isinstance(value, Record):
        return None
    state = value.state
    if value.maker == _PERSISTENT:
        meta = value.args[0] if value.args else None
        state = meta.get("state") if isinstance(meta, dict) else None
    is_module = isinstance(state, dict) and {"_parameters", "_modules"} <= state.keys()
    return state if is_module else None


def kind_of(value: Any) -> str:
    """One or two words on an object of a file, for messages."""
    if is_tensor(value):
        return "a tensor"
    if module_state(value) is not None:
        return "a network"
    if isinstance(value, dict):
        return f"a dict of {len(value)}"
    if isinstance(value, Record) or is_name(value):
        return f"an object of {value.maker}"
    return f"a {type(value).__name__}"
