"""Constants of a frozen TensorFlow graph, read without TensorFlow.

A ``.pb`` file is one ``GraphDef`` message of ``tensorflow/core/framework/*.proto``, in
the wire format of protocol buffers. Only what holds a number is looked at:

    GraphDef.node = 1            NodeDef.name = 1, op = 2, attr = 5
    attr: key = 1, value = 2     AttrValue.tensor = 8
    TensorProto.dtype = 1, tensor_shape = 2, tensor_content = 4, float_val = 5
    TensorShapeProto.dim = 2     Dim.size = 1
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

_DT_FLOAT = 1
_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5


def read_constants(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The float32 values of all ``Const`` nodes, by node name; others are left out.

    Raises:
      ValueError: the file is cut off or not a graph.
    """
    path = Path(path)
    try:
        constants = _constants(path.read_bytes())
    except (ValueError, OverflowError) as error:
        raise ValueError(
            f"{path} is damaged or not a TensorFlow graph: {error}"
        ) from error
    if not constants:
        raise ValueError(f"{path} is not a frozen TensorFlow graph: no constants")
    return constants


def _constants(data: bytes) -> dict[str, np.ndarray]:
    constants = {}
    for node in _messages(memoryview(data), 1):
        name = b"".join(_messages(node, 1)).decode()
        if b"".join(_messages(node, 2)) != b"Const":
            continue
        for attribute in _messages(node, 5):
            if b"".join(_messages(attribute, 1)) != b"value":
                continue
            for value in _messages(attribute, 2):
                for tensor in _messages(value, 8):
                    if (1, _DT_FLOAT) in _fields(tensor):
                        constants[name] = _floats(name, tensor)
    return constants


def _floats(name: str, tensor: memoryview) -> np.ndarray:
    sizes = [
        [n for field, n in _fields(dim) if field == 1]
        for dims in _messages(tensor, 2)
        for dim in _messages(dims, 2)
    ]
    shape = tuple(n for size in sizes for n in size[:1] or [0] if isinstance(n, int))
    content = b"".join(_messages(tensor, 4)) or b"".join(_messages(tensor, 5))
    if len(content) == 4:  # one value stands for all
        return np.broadcast_to(np.frombuffer(content, "<f4")[0], shape)
    if len(content) != 4 * math.prod(shape):
        raise ValueError(f"constant {name} {shape} has {len(content)} bytes")
    return np.frombuffer(content, "<f4").reshape(shape)


def _messages(data: memoryview, number: int) -> list[memoryview]:
    """The bytes of every field ``number`` that has bytes."""
    found = [value for field, value in _fields(data) if field == number]
    return [value for value in found if isinstance(value, memoryview)]


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of each field: an integer, or the bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        if kind == _LENGTH:
            size, at = _varint(data, at)
        elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
            size = 8 if kind == _EIGHT_BYTES else 4
        else:
            raise ValueError(f"field {number} has the unknown wire type {kind}")
        if at + size > len(data):
            raise ValueError(f"field {number} is cut off")
        yield number, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """The integer at ``at``, seven bits a byte, and the place behind it."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError("a number is cut off")
        value |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return value, at
    raise ValueError("a number has more than ten bytes")
