"""Prepared data on disk -> shuffled, sharded, restartable batches.

    raw = next(dataset.iterator(batch_size, seed))  # on the host: as stored, checked
    batch = dataset.to_batch(raw)  # on the device: decoded and augmented

Stored fields cross to the device: bytes for images, not float32. A batch is a function
of seed and number (``order``), and augmentation one of ``(seed, epoch, item)``.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from scm_jax.datasets.array_records import RecordSource
from scm_jax.datasets.identity import Identity
from scm_jax.datasets.order import BatchIterator, process_rows, shuffled_items
from scm_jax.types import CONDITIONS, Batch, DatasetInfo, check_seed, lookup

# Fields of some items, stacked: name -> (n, ...).
Fields = Mapping[str, Any]

# Stored fields -> ``(x, label)`` as ``Batch`` wants them; label None without classes.
Decode = Callable[[Fields], tuple[Any, Any]]

# Below this many bytes the items are kept in memory, decoded from records once.
MEMORY_LIMIT = 256 * 2**20

# Threads that read batches ahead where items come from disk one by one.
_READ_THREADS = 4


class Source(Protocol):
    """Random access to the stored fields of items."""

    def __len__(self) -> int: ...

    def gather(self, indices: np.ndarray) -> Fields: ...


@dataclasses.dataclass(frozen=True, eq=False)
class MemorySource:
    """All items in memory, stacked."""

    fields: Fields

    def __len__(self) -> int:
        return len(next(iter(self.fields.values())))

    def gather(self, indices: np.ndarray) -> Fields:
        return {name: values[indices] for name, values in self.fields.items()}


@dataclasses.dataclass(frozen=True, eq=False)
class ChangedSource:
    """A source whose fields are changed as they are read."""

    source: Source
    change: Callable[[Fields], Fields]

    def __len__(self) -> int:
        return len(self.source)

    def gather(self, indices: np.ndarray) -> Fields:
        return self.change(self.source.gather(indices))


def kept_in_memory(source: Source) -> Source:
    """Items that are drawn, drawn once, unless they take more than ``MEMORY_LIMIT``."""
    one = source.gather(np.arange(1))
    if sum(values.nbytes for values in one.values()) * len(source) > MEMORY_LIMIT:
        return source
    return _drawn(source)  # type: ignore[arg-type]  # sources that draw are frozen


@functools.lru_cache(maxsize=2)  # evaluators open the split of the training and test
def _drawn(source: Source) -> Source:
    fields = source.gather(np.arange(len(source)))
    for values in fields.values():
        values.setflags(write=False)
    return MemorySource(fields)


def read_prepared(
    folder: Path,
    split: str = "train",
    memory_limit: int = MEMORY_LIMIT,
    fields: Sequence[str] | None = None,
) -> Source:
    """Opens a split of a prepared dataset, in memory if it is small.

    Args:
      folder: what ``storage.prepared_folder`` returned.
      split: a tfds split, or a slice such as ``train[:90%]``.
      memory_limit: the most bytes of stored items to keep in memory.
      fields: the features to read; all by default.

    Raises:
      ValueError: no such split or feature, or the split is empty.
    """
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(folder)
    if builder.info.splits[split].num_examples == 0:
        raise ValueError(f"the split {split!r} of {folder} has no items")
    stored = builder.info.features
    for name in fields or ():
        lookup(dict(stored), name, f"feature of the prepared dataset {builder.name!r}")
    names = tuple(stored) if fields is None else tuple(fields)
    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    records = builder.as_data_source(split=split, deserialize_method=raw)
    source = RecordSource(records, stored, names)
    num_bytes = sum(values.nbytes for values in source.gather(np.arange(1)).values())
    if num_bytes * len(source) > memory_limit:
        return source
    return MemorySource(source.gather(np.arange(len(source))))


@flax.struct.dataclass
class RawBatch:
    """Items as they are stored: what crosses from the host to the devices."""

    fields: Fields  # name -> (b, ...); label is int32
    items: Any  # (b, 3) uint32: seed, epoch and item


# Apart from the keys that a training of the same seed draws its noise from.
_DATA = 0x64617461


def item_keys(items: jax.Array) -> jax.Array:
    """One key for each row of ``RawBatch.items``, a function of that row alone."""

    def key(identity: jax.Array) -> jax.Array:
        # Not the default generator: what some others draw depends on the whole batch.
        key = jax.random.key(_DATA, impl="threefry2x32")
        for number in identity:
            key = jax.random.fold_in(key, number)
        return key

    return jax.vmap(key)(items)


# Fields of an item that may hold several captions: their rank without that axis.
_RANKS = {"tokens": 2, "context": 3, "context_mask": 2, "pooled": 2}
_CAPTION = 0x63617074  # apart from the keys of augmentation


def one_caption(fields: Mapping[str, Any], keys: Any = None) -> dict[str, Any]:
    """Fields with one caption per item: a random one by its key, or the first.

    Args:
      fields: those of ``Batch`` that hold captions may have a further axis after the
        first; with ``num_captions`` ``(b,)`` int, only so many of it are filled.
      keys: one per item, a function of seed, epoch and item.
    """
    several = {k: v for k, v in fields.items() if v.ndim > _RANKS.get(k, v.ndim)}
    kept = {k: v for k, v in fields.items() if k != "num_captions"}
    if not several:
        return kept
    if keys is None:
        return {**kept, **{k: v[:, 0] for k, v in several.items()}}
    number = next(iter(several.values())).shape[1]
    count = fields.get("num_captions", number)
    keys = jax.vmap(lambda key: jax.random.fold_in(key, _CAPTION))(keys)
    u = jax.vmap(jax.random.uniform)(keys)
    chosen = jnp.floor(u * count).astype(jnp.int32)

    def take(a: jax.Array) -> jax.Array:
        index = chosen.reshape(-1, *[1] * (a.ndim - 1))
        return jnp.take_along_axis(jnp.asarray(a), index, axis=1)[:, 0]

    return {**kept, **{k: take(v) for k, v in several.items()}}


class Dataset(Protocol):
    """What every entry of ``DATASETS`` builds."""

    @property
    def info(self) -> DatasetInfo: ...

    @property
    def closed_form(self) -> Any:
        """The distribution with its exact maps, for synthetic data; else None."""
        ...

    def iterator(
        self, batch_size: int, seed: int, process_index: int = 0, process_count: int = 1
    ) -> BatchIterator:
        """Shuffled host batches without end; ``batch_size`` counts all processes."""
        ...

    def to_batch(self, raw: Any) -> Batch:
        """A host batch as the training wants it; pure, to be jitted, row by row."""
        ...

    def arrays(self) -> tuple[np.ndarray, np.ndarray | None]:
        """All items in stored order, unaugmented: ``x`` float32, ``label`` int32."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class FiniteDataset:
    """A dataset of stored items; see ``Dataset`` for the methods.

    Attributes:
      info: what the data are, ``num_items`` as in ``source``.
      source: the stored items. With classes, one field is ``label``.
      decode: works row by row, on numpy arrays and, under ``jax.jit``, on traced ones.
      randomize: augments stored fields before they are decoded, such as by flips:
        ``(fields, keys) -> fields`` with one key per item; traced. ``arrays`` leaves
        it out.
      identify: see ``identity.of_dataset``; None for data that are drawn.
    """

    info: DatasetInfo
    source: Source
    decode: Decode
    randomize: Callable[[Fields, jax.Array], Fields] | None = None
    identify: Callable[[], Identity] | None = None
    closed_form: ClassVar[None] = None

    def iterator(
        self, batch_size: int, seed: int, process_index: int = 0, process_count: int = 1
    ) -> BatchIterator:
        check_seed(seed)
        rows = process_rows(batch_size, process_index, process_count)
        row_numbers = np.arange(rows.start, rows.stop)

        def batch_at(index: int) -> RawBatch:
            positions = index * batch_size + row_numbers
            items = shuffled_items(positions, len(self.source), seed)
            epochs = positions // len(self.source)
            identity = np.stack([np.full_like(items, seed), epochs, items], axis=1)
            return RawBatch(self.gather(items), identity.astype(np.uint32))

        in_memory = isinstance(self.source, MemorySource)
        return BatchIterator(batch_at, num_threads=0 if in_memory else _READ_THREADS)

    def to_batch(self, raw: RawBatch) -> Batch:
        fields = raw.fields
        if self.randomize is not None:
            fields = self.randomize(fields, item_keys(raw.items))
        x, label = self.decode(fields)
        caption = {name: fields[name] for name in CONDITIONS[1:] if name in fields}
        if caption:
            more = {k: fields[k] for k in ("num_captions",) if k in fields}
            caption = one_caption({**caption, **more}, item_keys(raw.items))
        return Batch(x=x, label=label, **caption)

    def arrays(self) -> tuple[np.ndarray, np.ndarray | None]:
        return self.items(np.arange(len(self.source)))

    def items(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """The given items, checked and decoded, not augmented."""
        x, label = self.decode(self.gather(indices))
        return np.asarray(x), None if label is None else np.asarray(label)

    def gather(self, indices: np.ndarray) -> Fields:
        """The stored fields of items; a ValueError names one not as declared."""
        fields = self.source.gather(indices)
        specs = tuple((k, v.shape[1:], v.dtype) for k, v in sorted(fields.items()))
        if specs not in self._legal:
            self._check_decoded(specs, indices[0])
            self._legal.add(specs)
        return check_fields(self.info, indices, fields)

    @functools.cached_property
    def _legal(self) -> set:
        """Names, shapes and types of fields that decode to what ``info`` says."""
        return set()

    def _check_decoded(self, specs: tuple, item: int) -> None:
        # Not ShapeDtypeStruct, of whose int64 newer versions of JAX warn.
        one = {k: np.empty((1, *shape), d) for k, shape, d in specs}
        x, label = jax.eval_shape(self.decode, one)
        info = self.info
        if x.shape[1:] != info.sample_shape or x.dtype != np.float32:
            raise ValueError(
                f"dataset {info.name!r}: items are {x.dtype} {x.shape[1:]}; declared "
                f"are float32 {info.sample_shape} (first of them: item {item})"
            )
        if (label is None) == (info.num_classes > 0):
            raise ValueError(
                f"dataset {info.name!r} declares {info.num_classes} classes, but its "
                f"items have {'no' if label is None else 'a'} label"
            )


@dataclasses.dataclass(frozen=True, eq=False)
class LazyDataset:
    """A dataset that says what it is before its data are there.

    ``open`` is called once, when the first item is asked for.
    """

    info: DatasetInfo
    open: Callable[[], FiniteDataset]
    identify: Callable[[], Identity] | None = None
    closed_form: ClassVar[None] = None

    @functools.cached_property
    def opened(self) -> FiniteDataset:
        """The data themselves; a FileNotFoundError says where they must be."""
        return self.open()

    def iterator(self, *args: Any, **kwargs: Any) -> BatchIterator:
        return self.opened.iterator(*args, **kwargs)

    def to_batch(self, raw: RawBatch) -> Batch:
        return self.opened.to_batch(raw)

    def arrays(self) -> tuple[np.ndarray, np.ndarray | None]:
        return self.opened.arrays()

    def items(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        return self.opened.items(indices)


def check_fields(info: DatasetInfo, indices: np.ndarray, fields: Fields) -> Fields:
    """Stored fields, ``label`` as int32; a ValueError names an item that is damaged."""
    for name, values in fields.items():
        if not np.issubdtype(values.dtype, np.floating):
            continue
        finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
        if not finite.all():
            raise ValueError(
                f"dataset {info.name!r}: item {indices[~finite][0]} has values that "
                f"are not finite (NaN or infinity) in the field {name!r}"
            )
    if not info.num_classes:
        return fields
    label = lookup(dict(fields), "label", f"field of dataset {info.name!r}")
    legal = (label >= 0) & (label < info.num_classes)
    if not legal.all():
        raise ValueError(
            f"dataset {info.name!r}: item {indices[~legal][0]} has the label "
            f"{label[~legal][0]}; legal are 0..{info.num_classes - 1}"
        )
    return {**fields, "label": label.astype(np.int32)}
