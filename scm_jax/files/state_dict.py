"""Weights in files: a flat dict of names and numpy arrays, in and out.

Read by content: ``torch.save`` files (zip, and the stream of before 1.6), pickles of
whole networks as the EDM family publishes them, safetensors and npz. PyTorch is never
imported and no code of a file is run: pickles are read as data (``inert_pickle``), the
names that may occur in one are listed here, and the source text that EDM's pickles
carry along stays text.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import math
import mmap
import os
import pickle
import pickletools
import re
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import ml_dtypes
import numpy as np

from scm_jax.files.inert_pickle import (
    Global,
    Record,
    Stream,
    UnsafePickleError,
    check_key,
    read_pickle,
)

__all__ = [
    "UnsafePickleError",
    "read_groups",
    "read_state_dict",
    "write_state_dict",
]

# Where the weights are in a file that holds more than them, the likeliest first.
WEIGHT_KEYS = ("ema", "net", "state_dict", "model")

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
STORAGE_OF = {dtype: name for name, dtype in STORAGES.items()}

_PERSISTENT = "torch_utils.persistence._reconstruct_persistent_obj"
_LOAD_FROM_BYTES = "torch.storage._load_from_bytes"
_TENSORS = {"torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"}
_PARAMETERS = {
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
}
_NUMPY_DTYPE = "numpy.dtype"
_NUMPY_ARRAYS = {
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
}
_NUMPY_SCALARS = {"numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"}
_NUMPY_BUFFERS = {"numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer"}
_WEIGHTS = _TENSORS | _PARAMETERS | _NUMPY_ARRAYS | _NUMPY_SCALARS | _NUMPY_BUFFERS

# The names that a pickle of weights may hold. None is looked up: they become records.
_KNOWN = {
    *_WEIGHTS,
    *STORAGES,
    _PERSISTENT,
    _LOAD_FROM_BYTES,
    _NUMPY_DTYPE,
    "numpy.ndarray",
    "torch.device",
    "torch.nn.parameter.Parameter",
    "argparse.Namespace",
    "types.SimpleNamespace",
    *("torch." + name for name in "float32 float64 float16 bfloat16 bool".split()),
    *("torch." + name for name in "int64 int32 int16 int8 uint8".split()),
    *("torch." + name for name in "complex64 complex128".split()),
}
# Layers that torch brings along, such as torch.nn.modules.conv.Conv2d.
_TORCH_LAYERS = re.compile(r"torch\.nn\.modules(\.\w+)+", re.ASCII)

# What a legacy stream starts with: the pickled number 0x1950a86a20f9469cfc6c.
_LEGACY_MAGIC = b"l\xfc\x9cF\xf9 j\xa8P\x19."
_LEGACY_PROTOCOL = 1001
_MAX_DEPTH = 100

# What a damaged archive can make zipfile raise, besides ValueError.
_BAD_ZIP = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    KeyError,
    NotImplementedError,
    OSError,
    RuntimeError,
)
# What the arguments of a damaged tensor can raise, besides ValueError.
_DAMAGE = (ArithmeticError, AttributeError, LookupError, TypeError, *_BAD_ZIP)


def read_state_dict(path: str | os.PathLike, *, key: str = "") -> dict[str, np.ndarray]:
    """The weights in a file of any of the formats above, by dotted name.

    A pickled network gives the names that its ``state_dict()`` would have: parameters,
    then persistent buffers, then its submodules.

    Args:
      path: the file; its format is recognized by its content, not by its suffix.
      key: which entry of the file's top-level dict holds the weights. "" takes the file
        itself if it is a state dict, or else the first of ``WEIGHT_KEYS`` that is one.

    Returns:
      Arrays of their own, C-contiguous, in the machine's byte order. torch.bfloat16
      becomes ``ml_dtypes.bfloat16``.

    Raises:
      UnsafePickleError: a pickle in the file asks for a name that weights do not need,
        such as ``os.system``. Nothing was executed.
      ValueError: the file is cut off, damaged or of another kind; ``key`` does not fit;
        a tensor reaches beyond its storage.
    """
    path = Path(path)
    where = str(path)
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            raise ValueError(f"{where} is empty")
        # Mapped, not read: the storages of a legacy stream are sliced out of it.
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        source = _Source(where, file, data)
        if _is_safetensors(data):
            return _checked(_read_safetensors(path), where, key)
        if _is_zip(data):
            with _open_zip(source) as archive:
                if _is_npz(archive):
                    return _checked(_read_npz(archive, where), where, key)
                return _Weights(where).select(_read_zip(archive, source), key)
        return _Weights(where).select(_read_stream(source), key)


def read_groups(path: str | os.PathLike) -> dict[str, Any]:
    """A pickled dict of values, arrays, and dicts of these, as numpy arrays.

    Such are files of statistics, as EDM2's. What is nested deeper than that stays what
    ``inert_pickle`` makes of it.

    Raises:
      UnsafePickleError: the pickle asks for a name that arrays do not need. Nothing was
        executed.
      ValueError: the file is cut off, damaged or of another kind.
    """
    path = Path(path)
    where = str(path)
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            raise ValueError(f"{where} is empty")
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        top = _read_stream(_Source(where, file, data))
        if not isinstance(top, dict):
            raise ValueError(f"{where}: {_listing(top)}, expected a dict")
        return {
            str(key): _Weights(where).group(str(key), value)
            for key, value in top.items()
        }


def write_state_dict(
    path: str | os.PathLike, state: Mapping[str, np.typing.ArrayLike]
) -> None:
    """Writes weights in the format that the suffix names, whole or not at all.

    ``.pt`` and ``.pth`` are read by ``torch.load(weights_only=True)``; ``.safetensors``
    and ``.npz`` by their packages. npz has no bfloat16.

    Raises:
      ValueError: another suffix, or an array that the format cannot hold; the message
        names it.
    """
    path = Path(path)
    if path.suffix not in _WRITERS:
        raise ValueError(f"{path}: the suffix must be one of {', '.join(_WRITERS)}")
    arrays = {name: _writable(name, value) for name, value in state.items()}
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        unfinished.touch()
        mode = unfinished.stat().st_mode
        _WRITERS[path.suffix](unfinished, arrays)
        unfinished.chmod(mode)  # safetensors lets nobody but the owner read
        with unfinished.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


@dataclasses.dataclass(frozen=True)
class _Source:
    """Bytes of a file, or of a file within a file.

    Attributes:
      where: the name of the outer file, for messages.
      file: the bytes as a file that can seek.
      data: the same bytes as a buffer.
      nested: these are the bytes of a storage within a pickle.
    """

    where: str
    file: BinaryIO
    data: mmap.mmap | bytes
    nested: bool = False

    def stream(self) -> Stream:
        """The bytes from the first on; no read reaches beyond what there is."""
        if isinstance(self.data, bytes):
            return io.BytesIO(self.data)
        self.data.seek(0)
        return self.data

    def read_pickle(
        self, stream: Stream, persistent: Callable[[Any], Any] | None = None
    ) -> Any:
        return read_pickle(
            stream,
            where=self.where,
            builders=_BUILDERS,
            is_known=_is_known_nested if self.nested else _is_known,
            persistent=persistent,
        )


@dataclasses.dataclass(eq=False)
class _Storage:
    """A piece of flat memory that tensors are views of.

    Attributes:
      dtype: of its elements.
      size: how many elements there should be.
      swap: whether its bytes are in the other order than this machine's.
      fetch: gives the bytes; called when the first tensor is read.
    """

    dtype: np.dtype
    size: int
    swap: bool
    fetch: Callable[[], bytes | memoryview] | None = None

    @functools.cached_property
    def content(self) -> bytes | memoryview:
        if self.fetch is None:
            raise ValueError("its storage is not in the file")
        return self.fetch()

    def part(self, start: int, size: int) -> _Storage:
        def fetch() -> memoryview:
            width = self.dtype.itemsize
            return memoryview(self.content)[start * width : (start + size) * width]

        return _Storage(self.dtype, size, self.swap, fetch)

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
        if needed > min(self.size, len(self.content) // width):
            raise ValueError(
                f"shape {shape}, strides {stride} and offset {offset} need "
                f"{needed} elements; its storage has {len(self.content) // width} of "
                f"the {self.size} it declares"
            )
        strides = tuple(step * width for step in stride)
        view: np.ndarray = np.ndarray(
            shape, self.dtype, self.content, offset * width, strides
        )
        return view.byteswap() if self.swap else view.copy()


@dataclasses.dataclass(frozen=True)
class _Weights:
    """Finds the state dict in what the pickle of a file held, and makes its arrays."""

    where: str

    def select(self, top: Any, key: str) -> dict[str, np.ndarray]:
        if key:
            if not isinstance(top, dict) or key not in top:
                raise ValueError(f"{self.where}: no key {key!r}; {_listing(top)}")
            if not _is_state(top[key]):
                raise ValueError(
                    f"{self.where}: {key!r} is {_kind(top[key])}, neither a state dict "
                    f"nor a network; {_listing(top)}"
                )
            return self.read(top[key])
        if _is_state(top):
            return self.read(top)
        entries = top if isinstance(top, dict) else {}
        for name in WEIGHT_KEYS:
            if entries.get(name) and _is_state(entries[name]):
                return self.read(entries[name])
        raise ValueError(
            f"{self.where}: no state dict or network at the top level or under "
            f"{', '.join(WEIGHT_KEYS)}; {_listing(top)}. Choose one with key=..."
        )

    def read(self, value: Any) -> dict[str, np.ndarray]:
        entries = value.items() if isinstance(value, dict) else self.walk(value)
        return {name: self.array(name, entry) for name, entry in entries}

    def walk(
        self, module: Any, prefix: str = "", depth: int = 0
    ) -> Iterator[tuple[str, Any]]:
        """Names and tensors of a network, in the order of its ``state_dict()``."""
        state = _module_state(module)
        if state is None:
            raise ValueError(
                f"{self.where}: module {prefix[:-1]!r} is {_kind(module)}, no module"
            )
        if depth > _MAX_DEPTH:
            raise ValueError(
                f"{self.where}: module {prefix[:60]}... is nested deeper than "
                f"{_MAX_DEPTH} levels"
            )
        temporary = state.get("_non_persistent_buffers_set")
        for name, value in self.entries(state, "_parameters", prefix):
            yield prefix + name, value
        for name, value in self.entries(state, "_buffers", prefix):
            if not (isinstance(temporary, set | frozenset) and name in temporary):
                yield prefix + name, value
        for name, child in self.entries(state, "_modules", prefix):
            yield from self.walk(child, f"{prefix}{name}.", depth + 1)

    def entries(
        self, state: dict[str, Any], group: str, prefix: str
    ) -> list[tuple[str, Any]]:
        """What a module registered in one of its dicts; None is a place left free."""
        members = state.get(group, {})
        if not isinstance(members, dict) or any(type(n) is not str for n in members):
            raise ValueError(f"{self.where}: {prefix}{group} is no dict of names")
        return [(name, value) for name, value in members.items() if value is not None]

    def group(self, name: str, value: Any) -> Any:
        """A value, an array, or a dict of these."""
        if isinstance(value, dict):
            return {str(k): self.value(f"{name}.{k}", v) for k, v in value.items()}
        return self.value(name, value)

    def value(self, name: str, value: Any) -> Any:
        plain = not isinstance(value, Record | Global | _Storage)
        return value if plain else self.array(name, value)

    def array(self, name: str, value: Any) -> np.ndarray:
        try:
            return _array(value, self.where)
        except UnsafePickleError:
            raise
        except (ValueError, *_DAMAGE) as error:
            raise ValueError(f"{self.where}: tensor {name!r}: {error}") from error


# What the content of a file says about its format.


def _is_safetensors(data: mmap.mmap) -> bool:
    # The length of the header, 64 bits, little endian and below 4 GB; then its JSON.
    return data[4:9] == b"\0\0\0\0{"


def _is_zip(data: mmap.mmap | bytes) -> bool:
    return data[:4] in (b"PK\x03\x04", b"PK\x05\x06")


def _is_npz(archive: zipfile.ZipFile) -> bool:
    return all(name.endswith(".npy") for name in archive.namelist())


def _is_known(module: str, name: str) -> bool:
    if f"{module}.{name}" in _KNOWN:
        return True
    # An identifier: "container.os.system" would climb out of the module.
    return bool(_TORCH_LAYERS.fullmatch(module)) and name.isidentifier()


def _is_known_nested(module: str, name: str) -> bool:
    # Only a storage is pickled within a pickle; without another one inside it, the
    # depth of a file is bounded.
    return f"{module}.{name}" in STORAGES


# Readers of the formats.


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    import safetensors
    import safetensors.numpy

    try:
        return safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: the safetensors file is cut off, damaged, or of a dtype that "
            f"numpy does not have: {error}"
        ) from error


def _open_zip(source: _Source) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(source.file)
    except (ValueError, *_BAD_ZIP) as error:
        raise ValueError(
            f"{source.where}: the zip archive is cut off or damaged: {error}"
        ) from error


def _read_npz(archive: zipfile.ZipFile, where: str) -> dict[str, np.ndarray]:
    state = {}
    for entry in archive.namelist():
        name = entry.removesuffix(".npy")
        try:
            with archive.open(entry) as file:
                state[name] = np.lib.format.read_array(file, allow_pickle=False)
        except (ValueError, *_DAMAGE) as error:
            raise ValueError(f"{where}: array {name!r}: {error}") from error
    return state


def _checked(
    state: dict[str, np.ndarray], where: str, key: str
) -> dict[str, np.ndarray]:
    """The arrays of a flat format, once their dtypes are those of weights."""
    if key:
        raise ValueError(
            f"{where}: no key {key!r}: the format holds one state dict and no entries"
        )
    for name, array in state.items():
        if array.dtype.newbyteorder("=") not in STORAGE_OF:
            raise ValueError(f"{where}: array {name!r} is of dtype {array.dtype}")
    return {
        name: np.require(array, array.dtype.newbyteorder("="), ["C", "W"])
        for name, array in state.items()
    }


def _read_zip(archive: zipfile.ZipFile, source: _Source) -> Any:
    """The object in a zip file of ``torch.save``."""
    names = archive.namelist()
    pickles = [name for name in names if name.split("/")[1:] == ["data.pkl"]]
    if len(pickles) != 1:
        raise ValueError(
            f"{source.where}: a zip archive, but neither of torch.save (it holds "
            f"{len(pickles)} data.pkl) nor npz (not all is .npy)"
        )
    root = pickles[0].removesuffix("data.pkl")
    swap = False
    storages: dict[str, _Storage] = {}

    def find_storage(pid: Any) -> Any:
        dtype, key, size, _ = _parse_persistent_id(pid, source.where)
        fetch = functools.partial(archive.read, f"{root}data/{key}")
        return storages.setdefault(key, _Storage(dtype, size, swap, fetch))

    try:
        if f"{root}byteorder" in names:
            swap = _is_swapped(archive.read(f"{root}byteorder").decode("ascii"))
        content = archive.read(pickles[0])
    except (ValueError, *_BAD_ZIP) as error:
        raise ValueError(
            f"{source.where}: the zip archive is damaged: {error}"
        ) from error
    return source.read_pickle(io.BytesIO(content), find_storage)


def _read_stream(source: _Source) -> Any:
    """The object in a legacy stream of ``torch.save``, or in a plain pickle."""
    data = source.data
    if _LEGACY_MAGIC in data[:32]:
        return _read_legacy(source.stream(), source)
    # Pickles of protocol 2 and up start with this byte; of others any byte could be the
    # first, so that only their last one tells.
    if data[:1] != b"\x80" and not _has_stop(source.stream()):
        raise ValueError(
            f"{source.where} starts with {data[:8]!r}: neither a file of torch.save, "
            "nor a pickle, nor safetensors, nor npz"
        )
    return source.read_pickle(source.stream())


def _has_stop(stream: Stream) -> bool:
    """Whether the bytes are opcodes of a pickle up to its last."""
    try:
        for _ in pickletools.genops(cast(IO[bytes], stream)):
            pass
    except ValueError:
        return False
    return True


def _read_legacy(stream: Stream, source: _Source) -> Any:
    """Three pickles of preamble, the object, the keys of its storages, their bytes."""
    storages: dict[str, _Storage] = {}

    def find_storage(pid: Any) -> Any:
        if isinstance(pid, tuple) and pid[:1] == ("module",) and len(pid) == 4:
            return pid[1]  # a class, with its source text
        dtype, key, size, rest = _parse_persistent_id(pid, source.where)
        storage = storages.setdefault(key, _Storage(dtype, size, swap))
        if rest and rest[0] is not None:
            _, start, count = rest[0]
            return storage.part(*_sizes((start, count)))
        return storage

    # On every machine the bytes are written little endian, whatever the preamble says.
    swap = _is_swapped("little")
    _magic, protocol, _system = (source.read_pickle(stream) for _ in range(3))
    if protocol != _LEGACY_PROTOCOL:
        raise ValueError(
            f"{source.where}: a torch.save stream of another protocol than "
            f"{_LEGACY_PROTOCOL}"
        )
    top = source.read_pickle(stream, find_storage)
    keys = source.read_pickle(stream)
    _slice_storages(source, stream.tell(), storages, keys)
    return top


def _slice_storages(
    source: _Source, position: int, storages: dict[str, _Storage], keys: Any
) -> None:
    """Gives the storages of a legacy stream their bytes: a count, then the elements."""
    data = memoryview(source.data)
    if not isinstance(keys, list) or not all(key in storages for key in keys):
        raise ValueError(f"{source.where}: the list of storages is damaged")
    for key in keys:
        storage = storages[key]
        count = int.from_bytes(data[position : position + 8], "little")
        start = position + 8
        position = start + storage.size * storage.dtype.itemsize
        if position > len(data):
            raise ValueError(
                f"{source.where} is cut off: storage {key!r} ends at byte {position}, "
                f"the file at {len(data)}"
            )
        if count != storage.size:
            raise ValueError(
                f"{source.where}: storage {key!r} has {count} elements where its "
                f"tensors expect {storage.size}"
            )
        storage.fetch = functools.partial(_slice, data, start, position)


def _slice(data: memoryview, start: int, end: int) -> memoryview:
    return data[start:end]


def _parse_persistent_id(
    pid: Any, where: str
) -> tuple[np.dtype, str, int, tuple[Any, ...]]:
    """dtype, key, number of elements and the rest of ("storage", type, key, ...)."""
    if isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == "storage":
        _, kind, key, _, size, *rest = pid
        if isinstance(kind, Global) and kind.name in STORAGES and type(key) is str:
            return STORAGES[kind.name], key, *_sizes((size,)), tuple(rest)
    raise UnsafePickleError(
        f"{where}: the pickle asks for an object outside of it that is no storage of "
        "torch. It was refused; nothing in the file was executed."
    )


def _is_swapped(order: str) -> bool:
    if order not in ("little", "big"):
        raise ValueError(f"byte order {order!r}")
    return order != sys.byteorder


# From records to arrays.


def _array(value: Any, where: str) -> np.ndarray:
    """The array that a record stands for."""
    while isinstance(value, Record) and value.maker in _PARAMETERS:
        value = value.args[0]
    if not isinstance(value, Record) or value.maker not in _WEIGHTS:
        raise ValueError(f"it is {_kind(value)}, no tensor")
    if value.maker in _TENSORS:
        storage, offset, shape, stride, *rest = value.args
        # requires_grad, hooks, and from torch 2 on: is it stored negated or conjugated?
        if len(rest) > 2 and rest[2]:
            raise ValueError("it is a lazily negated or conjugated view")
        (offset,) = _sizes((offset,))
        return _find_storage(storage, where).view(offset, _sizes(shape), _sizes(stride))
    if value.maker in _NUMPY_SCALARS:
        dtype, content = value.args
        return _from_numpy((), dtype, content, "C")
    if value.maker in _NUMPY_BUFFERS:
        content, dtype, shape, order = value.args
        return _from_numpy(shape, dtype, content, order)
    _, shape, dtype, by_columns, content = value.state
    return _from_numpy(shape, dtype, content, "F" if by_columns else "C")


def _find_storage(value: Any, where: str) -> _Storage:
    """The storage of a tensor, also where its bytes are a file within the pickle."""
    if isinstance(value, Record) and value.maker == _LOAD_FROM_BYTES:
        (content,) = value.args
        if not isinstance(content, bytes):
            raise TypeError(f"bytes of a storage that are a {type(content).__name__}")
        value = _read_nested(content, where)
    if not isinstance(value, _Storage):
        raise TypeError(f"a storage that is {_kind(value)}")
    return value


def _read_nested(content: bytes, where: str) -> Any:
    source = _Source(where, io.BytesIO(content), content, nested=True)
    if not _is_zip(content):
        return _read_stream(source)
    with _open_zip(source) as archive:
        storage = _read_zip(archive, source)
        if isinstance(storage, _Storage):
            _ = storage.content  # while the archive is open
        return storage


def _from_numpy(shape: Any, dtype: Any, content: Any, order: Any) -> np.ndarray:
    if not isinstance(content, bytes | bytearray) or order not in ("C", "F"):
        raise TypeError("a numpy array whose content is not bytes")
    if not isinstance(dtype, Record) or dtype.maker != _NUMPY_DTYPE:
        raise TypeError("a numpy array without a dtype")
    code = dtype.args[0]
    byteorder = dtype.state[1] if dtype.state else "="
    if not re.fullmatch(r"[biufc]\d\d?", code) or byteorder not in ("<", ">", "=", "|"):
        raise TypeError(f"a numpy array of dtype {code!r}")
    described = np.dtype(byteorder + code)
    native = described.newbyteorder("=")
    if native not in STORAGE_OF:
        raise TypeError(f"a numpy array of dtype {native}")
    array: np.ndarray = np.ndarray(_sizes(shape), described, content, order=order)
    return array.astype(native, order="C")


def _sizes(values: Any) -> tuple[int, ...]:
    """Offsets, shapes and strides: whole numbers, none of them negative."""
    if not isinstance(values, tuple | list):
        raise TypeError(f"sizes in a {type(values).__name__}")
    if not all(type(value) is int and value >= 0 for value in values):
        raise ValueError("a size that is no whole number from 0 on")
    return tuple(values)


# What is what among the objects of a file.


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Record) and value.maker in _WEIGHTS


def _is_state(value: Any) -> bool:
    """A network, or a dict of names and tensors and nothing else."""
    if isinstance(value, dict):
        return all(type(k) is str and _is_tensor(v) for k, v in value.items())
    return _module_state(value) is not None


def _module_state(value: Any) -> dict[str, Any] | None:
    """The attributes of a pickled ``torch.nn.Module``; None if it is something else."""
    if not isinstance(value, Record):
        return None
    state = value.state
    if value.maker == _PERSISTENT:
        meta = value.args[0] if value.args else None
        state = meta.get("state") if isinstance(meta, dict) else None
    is_module = isinstance(state, dict) and {"_parameters", "_modules"} <= state.keys()
    return state if is_module else None


def _kind(value: Any) -> str:
    """One or two words on an object of a file, for messages."""
    if _is_tensor(value):
        return "a tensor"
    if _module_state(value) is not None:
        return "a network"
    if isinstance(value, dict):
        return f"a dict of {len(value)}"
    if isinstance(value, Record | Global):
        return f"an object of {value.maker if isinstance(value, Record) else value}"
    return f"a {type(value).__name__}"


def _listing(top: Any, limit: int = 20) -> str:
    """The keys of the top level of a file and what stands under each."""
    if not isinstance(top, dict):
        return f"the file holds {_kind(top)}"
    shown = [f"{key!r} ({_kind(value)})" for key, value in top.items()][:limit]
    more = f" and {len(top) - limit} more" if len(top) > limit else ""
    return f"its keys are {', '.join(shown)}{more}"


# The containers that a pickle asks for by name, made by us.


def _empty_dict() -> dict[Any, Any]:
    return {}


def _set(values: Any = ()) -> set[Any]:
    return {check_key(value) for value in values}


def _frozenset(values: Any = ()) -> frozenset[Any]:
    return frozenset(_set(values))


def _bytes() -> bytes:
    return b""


def _encode(text: Any, encoding: Any) -> bytes:
    # How protocol 2, which has no bytes, writes them.
    if encoding not in ("latin1", "latin-1"):
        raise ValueError("bytes in an encoding other than latin1")
    return str.encode(text, "latin1")


def _size(values: Any) -> tuple[Any, ...]:
    return tuple(values)


_BUILDERS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _empty_dict,
    "dnnlib.util.EasyDict": _empty_dict,
    "builtins.set": _set,
    "builtins.frozenset": _frozenset,
    "builtins.bytes": _bytes,
    "_codecs.encode": _encode,
    "torch.Size": _size,
}


# Writers.


def _writable(name: str, value: np.typing.ArrayLike) -> np.ndarray:
    if type(name) is not str or not name or "\0" in name:
        raise ValueError(f"the name {name!r} is no text without a zero byte")
    array = np.asarray(value)
    native = array.dtype.newbyteorder("=")
    if native not in STORAGE_OF:
        legal = ", ".join(str(dtype) for dtype in STORAGE_OF)
        raise ValueError(f"{name!r} is of dtype {array.dtype}; legal are {legal}")
    little = native.newbyteorder("<")
    # ascontiguousarray would give a scalar a dimension.
    return np.asarray(array, little, order="C")


def _write_pt(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """A zip file as ``torch.save`` lays it out: the pickle, then one entry a tensor."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(_entry("archive/data.pkl"), _pickle_state(arrays))
        archive.writestr(_entry("archive/byteorder"), b"little")
        for index, array in enumerate(arrays.values()):
            archive.writestr(_entry(f"archive/data/{index}"), array.tobytes())
        archive.writestr(_entry("archive/version"), b"3\n")


def _write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    # Not np.savez: it takes names for arguments and cannot save one called "file".
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            if array.dtype == ml_dtypes.bfloat16:
                raise ValueError(
                    f"{name!r} is of dtype bfloat16, which npz does not have; write "
                    ".pt or .safetensors, or cast it to float32"
                )
            with archive.open(_entry(f"{name}.npy"), "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


def _write_safetensors(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    if "__metadata__" in arrays:
        raise ValueError("'__metadata__' is not a name of a tensor in safetensors")
    import safetensors.numpy

    safetensors.numpy.save_file(dict(arrays), path)


_WRITERS: dict[str, Callable[[Path, Mapping[str, np.ndarray]], None]] = {
    ".pt": _write_pt,
    ".pth": _write_pt,
    ".safetensors": _write_safetensors,
    ".npz": _write_npz,
}


def _entry(name: str) -> zipfile.ZipInfo:
    # Without the time of day, the same weights are the same bytes.
    return zipfile.ZipInfo(name)


def _pickle_state(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The opcodes for ``{name: _rebuild_tensor_v2(storage, 0, shape, stride, ...)}``.

    By hand, since ``pickle`` writes the name of a function only if it can import it.
    """
    rebuild = _opcode_global("torch._utils", "_rebuild_tensor_v2")
    no_hooks = _opcode_global("collections", "OrderedDict") + pickle.EMPTY_TUPLE
    parts = [pickle.PROTO + b"\x02", pickle.EMPTY_DICT, pickle.MARK]
    for index, (name, array) in enumerate(arrays.items()):
        module, _, storage = STORAGE_OF[array.dtype.newbyteorder("=")].rpartition(".")
        # Not the array's own strides: those of a length of 1 can be anything.
        stride = tuple(math.prod(array.shape[axis + 1 :]) for axis in range(array.ndim))
        parts += [
            _opcodes(name),
            *(rebuild, pickle.MARK),
            *(pickle.MARK, _opcodes("storage"), _opcode_global(module, storage)),
            *(_opcodes(str(index)), _opcodes("cpu"), _opcodes(array.size)),
            *(pickle.TUPLE, pickle.BINPERSID),
            *(_opcodes(0), _opcodes(array.shape), _opcodes(stride)),
            *(pickle.NEWFALSE, no_hooks, pickle.REDUCE),
            *(pickle.TUPLE, pickle.REDUCE),
        ]
    parts += [pickle.SETITEMS, pickle.STOP]
    return b"".join(parts)


def _opcode_global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode("ascii")


def _opcodes(value: str | int | tuple[int, ...]) -> bytes:
    """The opcodes that push a value."""
    if isinstance(value, tuple):
        return pickle.MARK + b"".join(map(_opcodes, value)) + pickle.TUPLE
    if isinstance(value, str):
        text = value.encode("utf-8")
        return pickle.BINUNICODE + len(text).to_bytes(4, "little") + text
    if value < 2**31:
        return pickle.BININT + value.to_bytes(4, "little")
    return pickle.LONG1 + b"\x08" + value.to_bytes(8, "little")
