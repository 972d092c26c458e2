"""What ``torch.save`` writes, and pickles of networks: objects, storages, tensors.

PyTorch is never imported and no code of a file is run: the names that may occur in a
pickle are listed here, and the source text that EDM's pickles carry stays text.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import mmap
import pickletools
import re
import sys
import zipfile
import zlib
from collections.abc import Callable
from typing import IO, Any, BinaryIO, cast

import ml_dtypes
import numpy as np

from scm_jax.files.inert_pickle import (
    Attributed,
    Stream,
    UnsafePickleError,
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
STORAGE_OF = {dtype: name for name, dtype in STORAGES.items()}

PERSISTENT = "torch_utils.persistence._reconstruct_persistent_obj"
LOAD_FROM_BYTES = "torch.storage._load_from_bytes"
TENSORS = {"torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"}
PARAMETERS = {
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
}
NUMPY_DTYPE = "numpy.dtype"
NUMPY_ARRAYS = {
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
}
NUMPY_SCALARS = {"numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"}
NUMPY_BUFFERS = {"numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer"}
WEIGHTS = TENSORS | PARAMETERS | NUMPY_ARRAYS | NUMPY_SCALARS | NUMPY_BUFFERS

# The names that a pickle of weights may hold. None is looked up: they become records.
_KNOWN = {
    *WEIGHTS,
    *STORAGES,
    PERSISTENT,
    LOAD_FROM_BYTES,
    NUMPY_DTYPE,
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

# What a damaged archive can make zipfile raise, besides ValueError.
BAD_ZIP = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    KeyError,
    NotImplementedError,
    OSError,
    RuntimeError,
)


def sizes(values: Any) -> tuple[int, ...]:
    """Offsets, shapes and strides: whole numbers, none of them negative."""
    if not isinstance(values, tuple | list):
        raise TypeError(f"sizes in a {type(values).__name__}")
    if not all(type(value) is int and value >= 0 for value in values):
        raise ValueError("a size that is no whole number from 0 on")
    return tuple(values)


# The containers that a pickle asks for by name, made by us.


def _empty_dict() -> Attributed:
    return Attributed()


def _set(values: Any = ()) -> set[Any]:
    # As in inert_pickle._scan: the hash of these may never end.
    tuples = [value for value in values if isinstance(value, tuple)]
    if any(isinstance(part, tuple) for value in tuples for part in value):
        raise ValueError("a tuple of tuples as a key")
    return set(values)


def _frozenset(values: Any = ()) -> frozenset[Any]:
    return frozenset(_set(values))


def _bytes() -> bytes:
    return b""


def _encode(text: Any, encoding: Any) -> bytes:
    # How protocol 2, which has no bytes, writes them.
    if encoding not in ("latin1", "latin-1"):
        raise ValueError("bytes in an encoding other than latin1")
    return str.encode(text, "latin1")


_BUILDERS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _empty_dict,
    "dnnlib.util.EasyDict": _empty_dict,
    "builtins.set": _set,
    "builtins.frozenset": _frozenset,
    "builtins.bytes": _bytes,
    "_codecs.encode": _encode,
    "torch.Size": sizes,
}


@dataclasses.dataclass(frozen=True)
class Source:
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
class Storage:
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

    def __setstate__(self, state: Any) -> None:
        # A pickle could set attributes otherwise.
        raise TypeError("a state for a storage")

    def part(self, start: int, size: int) -> Storage:
        def fetch() -> memoryview:
            width = self.dtype.itemsize
            return memoryview(self.content)[start * width : (start + size) * width]

        return Storage(self.dtype, size, self.swap, fetch)

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


def is_zip(data: mmap.mmap | bytes) -> bool:
    """Whether the bytes start as a zip archive does."""
    return data[:4] in (b"PK\x03\x04", b"PK\x05\x06")


def _is_known(module: str, name: str) -> bool:
    if f"{module}.{name}" in _KNOWN:
        return True
    # An identifier: "container.os.system" would climb out of the module.
    return bool(_TORCH_LAYERS.fullmatch(module)) and name.isidentifier()


def _is_known_nested(module: str, name: str) -> bool:
    # Only a storage is pickled within a pickle; without another one inside it, the
    # depth of a file is bounded.
    return f"{module}.{name}" in STORAGES


def open_zip(source: Source) -> zipfile.ZipFile:
    """The archive; a ValueError names the file if there is none."""
    try:
        return zipfile.ZipFile(source.file)
    except (ValueError, *BAD_ZIP) as error:
        raise ValueError(
            f"{source.where}: the zip archive is cut off or damaged: {error}"
        ) from error


def read_zip(archive: zipfile.ZipFile, source: Source) -> Any:
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
    storages: dict[str, Storage] = {}

    def find_storage(pid: Any) -> Any:
        dtype, key, size, _ = _parse_persistent_id(pid, source.where)
        fetch = functools.partial(archive.read, f"{root}data/{key}")
        return storages.setdefault(key, Storage(dtype, size, swap, fetch))

    try:
        if f"{root}byteorder" in names:
            swap = _is_swapped(archive.read(f"{root}byteorder").decode("ascii"))
        content = archive.read(pickles[0])
    except (ValueError, *BAD_ZIP) as error:
        raise ValueError(
            f"{source.where}: the zip archive is damaged: {error}"
        ) from error
    return source.read_pickle(io.BytesIO(content), find_storage)


def read_stream(source: Source) -> Any:
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


def _read_legacy(stream: Stream, source: Source) -> Any:
    """Three pickles of preamble, the object, the keys of its storages, their bytes."""
    storages: dict[str, Storage] = {}

    def find_storage(pid: Any) -> Any:
        if isinstance(pid, tuple) and pid[:1] == ("module",) and len(pid) == 4:
            return pid[1]  # a class, with its source text
        dtype, key, size, rest = _parse_persistent_id(pid, source.where)
        storage = storages.setdefault(key, Storage(dtype, size, swap))
        if rest and rest[0] is not None:
            _, start, count = rest[0]
            return storage.part(*sizes((start, count)))
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
    source: Source, position: int, storages: dict[str, Storage], keys: Any
) -> None:
    """Gives the storages of a legacy stream their bytes: a count, then the elements."""
    data = memoryview(source.data)
    if not isinstance(keys, list) or not all(
        type(key) is str and key in storages for key in keys
    ):
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
        if is_name(kind) and kind.maker in STORAGES and type(key) is str:
            return STORAGES[kind.maker], key, *sizes((size,)), tuple(rest)
    raise UnsafePickleError(
        f"{where}: the pickle asks for an object outside of it that is no storage of "
        "torch. It was refused; nothing in the file was executed."
    )


def _is_swapped(order: str) -> bool:
    if order not in ("little", "big"):
        raise ValueError(f"byte order {order!r}")
    return order != sys.byteorder
