"""Items of array records on disk, decoded a batch at a time.

A record is a serialized ``tf.train.Example``, in which tfds stores a tensor of whole
numbers as a list of varints: 3,072 of them for an image of 32x32x3. Parsing each into a
Python-visible number holds the interpreter's lock while the training wants to dispatch.
A packed list looks like a string of bytes on the wire. So records are parsed here as
though these lists were ``bytes``, and numpy decodes those of a whole batch at once.
Features that are not tensors of numbers, such as PNG, are left to tfds, item by item.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class RecordSource:
    """Items read from disk when they are asked for.

    Attributes:
      records: a tfds data source of raw bytes.
      features: tfds's description of the features.
      names: the features to read.
    """

    records: Any
    features: Any
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.records)

    def gather(self, indices: np.ndarray) -> Mapping[str, np.ndarray]:
        """The fields of the given items, stacked.

        Raises:
          ValueError: items differ in shape; the message names two of them.
        """
        records = self.records.__getitems__([int(index) for index in indices])
        fast = [name for name in self.names if _is_numbers(self.features[name])]
        stacked = _decode(records, fast, self.features, indices)
        if len(fast) < len(self.names):
            items = [self.features.deserialize_example_np(r) for r in records]
            for name in set(self.names).difference(fast):
                values = [np.asarray(item[name]) for item in items]
                stacked[name] = _stack(name, values, indices)
        return {name: stacked[name] for name in self.names}


def _stack(name: str, values: list[np.ndarray], indices: np.ndarray) -> np.ndarray:
    """``np.stack``; values of different shapes are an error that names the items."""
    for index, value in zip(indices, values, strict=True):
        if value.shape != values[0].shape:
            raise ValueError(
                f"item {index} has {name!r} of shape {value.shape}, and item "
                f"{indices[0]} of shape {values[0].shape}; all must have one shape"
            )
    return np.stack(values)


def _is_numbers(feature: Any) -> bool:
    """Whether items of a feature are plain lists of numbers in a record."""
    info = feature.get_serialized_info()
    if not hasattr(info, "np_dtype") or np.dtype(info.np_dtype) not in _DECODERS:
        return False
    return tuple(info.shape).count(None) <= 1 and info.sequence_rank == 0


def _decode(
    records: Sequence[bytes], names: Sequence[str], features: Any, indices: np.ndarray
) -> dict[str, np.ndarray]:
    """The numbers of some features in all records."""
    if not names:
        return {}
    example = _example_class()
    parsed = [example.FromString(record).features.feature for record in records]
    return {
        name: _decode_feature(
            name,
            [
                _packed(fields, name, i)
                for i, fields in zip(indices, parsed, strict=True)
            ],
            features[name].get_serialized_info(),
            indices,
        )
        for name in names
    }


def _packed(fields: Any, name: str, index: int) -> bytes:
    """The bytes of a list of numbers in one record."""
    if name not in fields:
        raise ValueError(f"item {index} has no {name!r}; it has {sorted(fields)}")
    feature = fields[name]
    return feature.int64_list.value or feature.float_list.value


def _decode_feature(
    name: str, packed: list[bytes], info: Any, indices: np.ndarray
) -> np.ndarray:
    joined = np.frombuffer(b"".join(packed), np.uint8)
    decoded, lengths = _DECODERS[np.dtype(info.np_dtype)](joined, packed)
    shape = [-1 if n is None else n for n in info.shape]
    if len(set(lengths)) > 1 or lengths[0] != abs(int(np.prod(shape))):
        values = np.split(decoded, np.cumsum(lengths)[:-1])
        return _stack(name, [value.reshape(shape) for value in values], indices)
    return decoded.reshape(len(packed), *shape).astype(info.np_dtype, copy=False)


# --- the wire -------------------------------------------------------------------------


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


def _floats(joined: np.ndarray, packed: list[bytes]) -> tuple[np.ndarray, list[int]]:
    return joined.view("<f4"), [len(p) // 4 for p in packed]


_DECODERS: dict[np.dtype, Any] = {
    np.dtype(np.uint8): _bytes_of_varints,
    **dict.fromkeys(map(np.dtype, (np.int32, np.int64, np.bool_)), _whole_numbers),
    **dict.fromkeys(map(np.dtype, (np.float16, np.float32)), _floats),
}


@functools.cache
def _example_class() -> Any:
    """``tf.train.Example`` whose lists of numbers are read as bytes."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="scm_jax/packed_example.proto", package="scm_jax", syntax="proto3"
    )

    def message(name: str, parent: Any = None, **fields: tuple[int, Any]) -> Any:
        made = (parent.nested_type if parent else file.message_type).add(name=name)
        for key, (number, kind) in fields.items():
            made.field.add(
                name=key,
                number=number,
                label=field.LABEL_OPTIONAL,
                **({"type": kind} if isinstance(kind, int) else kind),
            )
        return made

    def of(name: str) -> dict[str, Any]:
        return {"type": field.TYPE_MESSAGE, "type_name": f".scm_jax.{name}"}

    message("Numbers", value=(1, field.TYPE_BYTES))
    message("Feature", float_list=(2, of("Numbers")), int64_list=(3, of("Numbers")))
    features = message("Features", feature=(1, of("Features.FeatureEntry")))
    features.field[0].label = field.LABEL_REPEATED
    entry = message(
        "FeatureEntry",
        features,
        key=(1, field.TYPE_STRING),
        value=(2, of("Feature")),
    )
    entry.options.map_entry = True
    message("Example", features=(1, of("Features")))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found = pool.FindMessageTypeByName("scm_jax.Example")
    return message_factory.GetMessageClass(found)
