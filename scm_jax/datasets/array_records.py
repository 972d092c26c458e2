"""Items of array records on disk, decoded a batch at a time.

A record is a serialized ``tf.train.Example``, in which a tensor of whole numbers is a
packed list of varints: bytes, on the wire. Records are parsed as though these lists
were ``bytes``, and numpy decodes those of a whole batch at once, two to three times as
fast as tfds. Features that are neither tensors of numbers nor texts, such as PNG, are
left to tfds.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class RecordSource:
    """Items read from disk when they are asked for."""

    records: Any  # a tfds data source of raw bytes
    features: Any  # tfds's description of them
    names: tuple[str, ...]  # the features to read

    def __len__(self) -> int:
        return len(self.records)

    def gather(self, indices: np.ndarray) -> Mapping[str, np.ndarray]:
        """The fields of the given items, stacked; a ValueError where shapes differ."""
        records = self.records.__getitems__(indices.tolist())
        info = {name: self.features[name].get_serialized_info() for name in self.names}
        parsed = [_example_class().FromString(r).features.feature for r in records]
        texts = {n for n in self.names if type(self.features[n]).__name__ == "Text"}
        if not all(n in texts or _is_numbers(i) for n, i in info.items()):
            items = [self.features.deserialize_example_np(r) for r in records]
        return {
            name: _texts(name, parsed, indices)
            if name in texts
            else _decode(name, info[name], parsed, indices)
            if _is_numbers(info[name])
            else _stack(name, [np.asarray(item[name]) for item in items], indices)
            for name in self.names
        }


def _stack(name: str, values: list[np.ndarray], indices: np.ndarray) -> np.ndarray:
    for index, value in zip(indices, values, strict=True):
        if value.shape != values[0].shape:
            raise ValueError(
                f"item {index} has {name!r} of shape {value.shape}, and item "
                f"{indices[0]} of shape {values[0].shape}; all must have one shape"
            )
    return np.stack(values)


def _texts(name: str, parsed: Sequence[Any], indices: np.ndarray) -> np.ndarray:
    """The bytes of one text in all records, ``(n,)`` objects."""
    for index, fields in zip(indices, parsed, strict=True):
        if name not in fields:
            raise ValueError(f"item {index} has no {name!r}; it has {sorted(fields)}")
    return np.array([fields[name].bytes_list.value for fields in parsed], object)


def _is_numbers(info: Any) -> bool:
    if not hasattr(info, "np_dtype") or np.dtype(info.np_dtype) not in _DECODERS:
        return False
    return tuple(info.shape).count(None) <= 1 and info.sequence_rank == 0


def _decode(
    name: str, info: Any, parsed: Sequence[Any], indices: np.ndarray
) -> np.ndarray:
    """The numbers of a feature in all records."""
    packed = []
    for index, fields in zip(indices, parsed, strict=True):
        if name not in fields:
            raise ValueError(f"item {index} has no {name!r}; it has {sorted(fields)}")
        packed.append(fields[name].int64_list.value or fields[name].float_list.value)
    joined = np.frombuffer(b"".join(packed), np.uint8)
    decoded, lengths = _DECODERS[np.dtype(info.np_dtype)](joined, packed)
    shape = [-1 if n is None else n for n in info.shape]
    if len(set(lengths)) > 1 or lengths[0] != abs(int(np.prod(shape))):
        values = np.split(decoded, np.cumsum(lengths)[:-1])
        return _stack(name, [value.reshape(shape) for value in values], indices)
    return decoded.reshape(len(packed), *shape).astype(info.np_dtype, copy=False)


def _ends(joined: np.ndarray, packed: list[bytes]) -> list[int]:
    """How many varints each string holds: their last bytes are below 128."""
    last = joined < 128
    bounds = np.cumsum([0, *(len(p) for p in packed)])
    return np.add.reduceat(last, bounds[:-1], dtype=np.int64).tolist()


def _bytes_of_varints(
    joined: np.ndarray, packed: list[bytes]
) -> tuple[np.ndarray, list[int]]:
    """uint8 of varints: one byte below 128, else two, of which the second is 1."""
    # Where the byte before is the first of two, the value is that byte itself. By bits
    # and by indices, since on random values a branch for each byte is slow.
    values = joined.copy()
    after_first = np.negative(joined[:-1] >> 7)  # 0 or 255
    values[1:] ^= (joined[1:] ^ joined[:-1]) & after_first
    return values.take(np.flatnonzero(joined < 128)), _ends(joined, packed)


def _whole_numbers(
    joined: np.ndarray, packed: list[bytes]
) -> tuple[np.ndarray, list[int]]:
    """int64 of varints of any length: seven bits a byte, the lowest first."""
    last = np.flatnonzero(joined < 128)
    first = np.concatenate([[0], last[:-1] + 1])
    values = np.zeros(len(last), np.uint64)
    for k in range(int((last - first).max(initial=0)) + 1):
        rows = first + k <= last
        bits = (joined[first[rows] + k] & 127).astype(np.uint64)
        values[rows] |= bits << np.uint64(7 * k)
    return values.view(np.int64), _ends(joined, packed)


_DECODERS: dict[np.dtype, Any] = {
    np.dtype(np.uint8): _bytes_of_varints,
    **dict.fromkeys(map(np.dtype, (np.int32, np.int64, np.bool_)), _whole_numbers),
    **dict.fromkeys(
        map(np.dtype, (np.float16, np.float32)),
        lambda joined, packed: (joined.view("<f4"), [len(p) // 4 for p in packed]),
    ),
}


# ``tf.train.Example`` whose lists of numbers are read as bytes.
_EXAMPLE = """
name: "scm_jax/packed_example.proto" package: "scm_jax" syntax: "proto3"
message_type {
  name: "Numbers" field { name: "value" number: 1 type: TYPE_BYTES }
}
message_type {
  name: "Feature"
  field { name: "bytes_list" number: 1 type_name: "Numbers" }
  field { name: "float_list" number: 2 type_name: "Numbers" }
  field { name: "int64_list" number: 3 type_name: "Numbers" }
}
message_type {
  name: "Features"
  field {
    name: "feature" number: 1 label: LABEL_REPEATED type_name: "FeatureEntry"
  }
  nested_type {
    name: "FeatureEntry" options { map_entry: true }
    field { name: "key" number: 1 label: LABEL_OPTIONAL type: TYPE_STRING }
    field { name: "value" number: 2 label: LABEL_OPTIONAL type_name: "Feature" }
  }
}
message_type {
  name: "Example" field { name: "features" number: 1 type_name: "Features" }
}
"""


@functools.cache
def _example_class() -> Any:
    from google.protobuf import (
        descriptor_pb2,
        descriptor_pool,
        message_factory,
        text_format,
    )

    pool = descriptor_pool.DescriptorPool()
    pool.Add(text_format.Parse(_EXAMPLE, descriptor_pb2.FileDescriptorProto()))
    found = pool.FindMessageTypeByName("scm_jax.Example")
    return message_factory.GetMessageClass(found)
