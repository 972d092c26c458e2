"""Arrays, networks and tensors among the records that ``torch_stream`` reads."""

from __future__ import annotations

import io
import re
from typing import Any

import numpy as np

from scm_jax.files.inert_pickle import Record, is_name
from scm_jax.files.torch_stream import (
    BAD_ZIP,
    LOAD_FROM_BYTES,
    NUMPY_BUFFERS,
    NUMPY_DTYPE,
    NUMPY_SCALARS,
    PARAMETERS,
    PERSISTENT,
    STORAGE_OF,
    TENSORS,
    WEIGHTS,
    Source,
    Storage,
    is_zip,
    open_zip,
    read_stream,
    read_zip,
    sizes,
)

# What the arguments of a damaged tensor can raise, besides ValueError.
DAMAGE = (ArithmeticError, AttributeError, LookupError, TypeError, *BAD_ZIP)


def to_array(value: Any, where: str) -> np.ndarray:
    """The array that a record stands for."""
    while isinstance(value, Record) and value.maker in PARAMETERS:
        value = value.args[0]
    if not isinstance(value, Record) or value.maker not in WEIGHTS:
        raise ValueError(f"it is {kind_of(value)}, no tensor")
    if value.maker in TENSORS:
        storage, offset, shape, stride, *rest = value.args
        # requires_grad, hooks, and from torch 2 on: is it stored negated or conjugated?
        if len(rest) > 2 and rest[2]:
            raise ValueError("it is a lazily negated or conjugated view")
        (offset,) = sizes((offset,))
        return _find_storage(storage, where).view(offset, sizes(shape), sizes(stride))
    if value.maker in NUMPY_SCALARS:
        dtype, content = value.args
        return _from_numpy((), dtype, content, "C")
    if value.maker in NUMPY_BUFFERS:
        content, dtype, shape, order = value.args
        return _from_numpy(shape, dtype, content, order)
    _, shape, dtype, by_columns, content = value.state
    return _from_numpy(shape, dtype, content, "F" if by_columns else "C")


def _find_storage(value: Any, where: str) -> Storage:
    """The storage of a tensor, also where its bytes are a file within the pickle."""
    if isinstance(value, Record) and value.maker == LOAD_FROM_BYTES:
        (content,) = value.args
        if not isinstance(content, bytes):
            raise TypeError(f"bytes of a storage that are a {type(content).__name__}")
        value = _read_nested(content, where)
    if not isinstance(value, Storage):
        raise TypeError(f"a storage that is {kind_of(value)}")
    return value


def _read_nested(content: bytes, where: str) -> Any:
    source = Source(where, io.BytesIO(content), content, nested=True)
    if not is_zip(content):
        return read_stream(source)
    with open_zip(source) as archive:
        storage = read_zip(archive, source)
        if isinstance(storage, Storage):
            _ = storage.content  # while the archive is open
        return storage


def _from_numpy(shape: Any, dtype: Any, content: Any, order: Any) -> np.ndarray:
    if not isinstance(content, bytes | bytearray) or order not in ("C", "F"):
        raise TypeError("a numpy array whose content is not bytes")
    if not isinstance(dtype, Record) or dtype.maker != NUMPY_DTYPE:
        raise TypeError("a numpy array without a dtype")
    code = dtype.args[0]
    byteorder = dtype.state[1] if dtype.state else "="
    if not re.fullmatch(r"[biufc]\d\d?", code) or byteorder not in ("<", ">", "=", "|"):
        raise TypeError(f"a numpy array of dtype {code!r}")
    described = np.dtype(byteorder + code)
    native = described.newbyteorder("=")
    if native not in STORAGE_OF:
        raise TypeError(f"a numpy array of dtype {native}")
    array: np.ndarray = np.ndarray(sizes(shape), described, content, order=order)
    return array.astype(native, order="C")


def is_tensor(value: Any) -> bool:
    """Whether it stands for a tensor or an array."""
    return isinstance(value, Record) and value.maker in WEIGHTS


def module_state(value: Any) -> dict[str, Any] | None:
    """The attributes of a pickled ``torch.nn.Module``; None if it is something else."""
    if not isinstance(value, Record):
        return None
    state = value.state
    if value.maker == PERSISTENT:
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
