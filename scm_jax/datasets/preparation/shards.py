"""One shard of prepared items: what goes in, and how it gets to disk.

A shard holds a run of items in their order. It appears under its name by one rename,
beside a JSON file of its count, hash and sums; without that file it does not count.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scm_jax.datasets.preparation import shard_files
from scm_jax.datasets.preparation.readers.items import ItemError, Items

FORMAT = 1  # of the stored bytes; goes up when the same recipe would give others
FIELDS = ("image", "latent")
SHARD_ITEMS = 4096
SHARD_BYTES = 256 * 2**20


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that determines the stored bytes of one split.

    Attributes:
      name: of the dataset.
      split: of it.
      field: ``image`` or ``latent``.
      shape: of one stored item, channels last.
      dtype: of its values as stored.
      class_names: names of the classes; empty where none are stored.
      recipe: how images are resized, a name in ``preparation.resize.RECIPES``.
      size: what they are resized to, in pixels; 0 with ``none``: as the first is.
      shard_items: items in a shard.
      num_items: how many there are.
      origin: ``Items.origin``.
      options: how the raw data were opened, where that says more.
      encoder: what made the latents, ``pixel_range`` above all; empty for images.
    """

    name: str
    split: str
    field: str
    shape: tuple[int, ...]
    dtype: str
    class_names: tuple[str, ...]
    recipe: str
    size: int
    shard_items: int
    num_items: int
    origin: dict[str, Any]
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    encoder: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def num_shards(self) -> int:
        return -(-self.num_items // self.shard_items)

    def items_of(self, shard: int) -> range:
        """The raw items that a shard is made from."""
        start = shard * self.shard_items
        return range(start, min(start + self.shard_items, self.num_items))

    def file(self, shard: int) -> str:
        """Name of a shard's file, as tfds has it."""
        number = f"{shard:05d}-of-{self.num_shards:05d}"
        return f"{self.name}-{self.split}.array_record-{number}"

    def identity(self) -> dict[str, Any]:
        """What two preparations must share to use the shards of each other.

        Neither the number of raw items nor the sizes of their files: a bad file may be
        mended or removed, and what was done before still counts. Each shard has the
        names of its items to itself, so a shard whose items moved is made again.
        """
        own = ["name", "split", "field", "shape", "dtype", "recipe", "size"]
        own += ["class_names", "shard_items", "options", "encoder"]
        where = {key: self.origin.get(key) for key in ("kind", "path", "split")}
        return {
            "format": FORMAT,
            **{key: getattr(self, key) for key in own},
            "origin": where,
        }

    def hash(self) -> str:
        """A hash of the identity, for names of folders."""
        text = json.dumps(self.identity(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def features(plan: Plan) -> Any:
    """What is stored, as tfds says it.

    ``bytes``: by default tfds turns every value into a 64-bit number, which takes
    twelve times as long to write, and more room.
    """
    import tensorflow_datasets as tfds

    dtype = np.dtype(plan.dtype).type
    stored = tfds.features.Tensor(shape=plan.shape, dtype=dtype, encoding="bytes")
    fields = {plan.field: stored}
    if plan.class_names:
        names = plan.class_names
        # tfds stores names as the stripped lines of a file.
        usable = all(n and n == n.strip() and len(n.splitlines()) == 1 for n in names)
        usable = usable and len(set(names)) == len(names)
        known: dict[str, Any] = {"names": names} if usable else {}
        fields["label"] = tfds.features.ClassLabel(
            **(known or {"num_classes": len(names)})
        )
    return tfds.features.FeaturesDict(fields)


# --- one item -------------------------------------------------------------------------


class Item(NamedTuple):
    """One raw item, resized and cast; ``label`` is None where it has none."""

    field: str
    value: np.ndarray
    label: int | None


def read_item(items: Items, index: int, recipe: str, size: int, dtype: str) -> Item:
    """Reads a raw item, resizes an image, casts a latent to ``dtype``.

    Raises:
      ItemError: it cannot be used.
    """
    fields = items.read(index)
    field = next((name for name in FIELDS if name in fields), None)
    if field is None:
        raise ItemError(f"{items.name(index)} has none of {FIELDS}: {sorted(fields)}")
    value = np.asarray(fields[field])
    if field == "image":
        value = _resized(items.name(index), value, recipe, size)
    label = None if fields.get("label") is None else int(fields["label"])
    with np.errstate(over="ignore"):
        value = np.ascontiguousarray(value, "uint8" if field == "image" else dtype)
    if not np.isfinite(value).all():
        raise ItemError(
            f"{items.name(index)} has values that are not finite in {dtype} (NaN, "
            "infinity, or too large)"
        )
    return Item(field, value, label)


def _resized(name: str, image: np.ndarray, recipe: str, size: int) -> np.ndarray:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] not in (1, 3):
        raise ItemError(
            f"{name} is {image.dtype} {image.shape}; images are uint8 (h, w, 1 or 3)"
        )
    if recipe == "none" and size == 0:
        return image
    from scm_jax.datasets.preparation import resize

    return resize.resize(image, size, recipe, name)


def planned_item(items: Items, index: int, plan: Plan) -> dict[str, Any]:
    """One item as it is stored.

    Raises:
      ItemError: it is not what the plan says.
    """
    field, value, label = read_item(items, index, plan.recipe, plan.size, plan.dtype)
    name = items.name(index)
    if field != plan.field:
        raise ItemError(f"{name} is of the kind {field!r}; the first is a {plan.field}")
    if value.shape != plan.shape:
        raise ItemError(
            f"{name} has shape {value.shape}, and the first item {plan.shape}; all "
            "must have one. Images of several sizes need a size and a recipe, such as "
            "--size=64 --recipe=center_crop_dhariwal"
        )
    if not plan.class_names:
        return {plan.field: value}
    if label is None:
        raise ItemError(f"{name} has no label, and others have")
    if not 0 <= label < len(plan.class_names):
        raise ItemError(
            f"{name} has the label {label}; legal are 0..{len(plan.class_names) - 1}"
        )
    return {plan.field: value, "label": np.int64(label)}


# --- one shard ------------------------------------------------------------------------


@dataclasses.dataclass
class Sums:
    """Sums over the values of items, by channel; exact whole numbers for images."""

    total: np.ndarray
    squares: np.ndarray
    count: int = 0  # values in each channel

    @classmethod
    def zeros(cls, plan: Plan) -> Sums:
        dtype = np.int64 if plan.field == "image" else np.float64
        zeros = np.zeros(plan.shape[-1], dtype)
        return cls(zeros, zeros.copy())

    def add(self, value: np.ndarray) -> None:
        values = value.reshape(-1, value.shape[-1]).astype(self.total.dtype)
        self.total += values.sum(0)
        self.squares += (values * values).sum(0)
        self.count += len(values)


def write_shard(
    items: Items,
    plan: Plan,
    shard: int,
    folder: Path,
    state: Path,
    on_bad: Callable[[ItemError, int], None],
    on_item: Callable[[], None] = lambda: None,
) -> None:
    """Writes a shard and then its record.

    Args:
      items: the raw items.
      plan: what to make of them.
      shard: which shard.
      folder: where its file goes.
      state: where its record goes, and both while they are incomplete.
      on_bad: takes the error of an item that cannot be used and how many there were
        before in this shard; raises it, or returns to go on without the item.
      on_item: called after each item.

    Raises:
      ItemError: see ``on_bad``.
      OSError: it could not be written, such as on a full disk.
    """
    temporary = shard_files.temporary(state, plan.file(shard))
    sums, classes = Sums.zeros(plan), np.zeros(max(len(plan.class_names), 1), np.int64)
    skipped: list[dict[str, str]] = []

    def stored() -> Iterator[dict[str, Any]]:
        for index in plan.items_of(shard):
            try:
                item = planned_item(items, index, plan)
            except ItemError as error:
                on_bad(error, len(skipped))
                skipped.append({"item": items.name(index), "why": str(error)})
            else:
                sums.add(item[plan.field])
                classes[item.get("label", 0)] += 1
                yield item
            on_item()

    try:
        _write_records(plan, stored(), temporary)
        record = record_of(plan.file(shard), temporary, sums, classes, skipped)
        record["names"] = names_hash(items, plan, shard)
        os.replace(temporary, folder / plan.file(shard))
    finally:
        temporary.unlink(missing_ok=True)
    shard_files.write_json(record_file(state, plan, shard), record)


def _write_records(plan: Plan, items: Iterator[dict[str, Any]], file: Path) -> None:
    from array_record.python import array_record_module as array_record
    from tensorflow_datasets.core import example_serializer

    connector = features(plan)
    serializer = example_serializer.ExampleSerializer(connector.get_serialized_info())
    with shard_files.disk_errors(file):
        writer = array_record.ArrayRecordWriter(str(file), "group_size:1")
    written = 0
    try:
        for item in items:
            example = serializer.get_tf_example(connector.encode_example(item))
            # Else its fields come in an order that differs from process to process.
            record = example.SerializeToString(deterministic=True)
            with shard_files.disk_errors(file):
                writer.write(record)
            written += 1
    except BaseException:
        with contextlib.suppress(RuntimeError, ValueError):
            writer.close()
        raise
    with shard_files.disk_errors(file):
        writer.close()
        with open(file, "rb") as opened:
            os.fsync(opened.fileno())
        if written != shard_files.num_records(file):
            raise OSError(errno.EIO, "not all records arrived on disk")


def record_of(
    name: str,
    file: Path,
    sums: Sums,
    classes: np.ndarray,
    skipped: list[dict[str, str]],
) -> dict[str, Any]:
    """What is known of a whole shard, for JSON.

    Args:
      name: what its file is called in the end.
      file: where it lies now.
      sums: over its items.
      classes: its number of items of each class; without classes, of all.
      skipped: items that could not be used: ``item`` and ``why``.
    """
    return {
        "file": name,
        "items": int(classes.sum()),
        "bytes": file.stat().st_size,
        "sha256": shard_files.sha256(file),
        "count": sums.count,
        "total": sums.total.tolist(),
        "squares": sums.squares.tolist(),
        "classes": {str(k): int(classes[k]) for k in np.flatnonzero(classes)},
        "skipped": skipped,
    }


# --- records of shards ----------------------------------------------------------------


def record_file(state: Path, plan: Plan, shard: int) -> Path:
    """Where the JSON of a whole shard lies."""
    return state / f"{plan.file(shard)}.json"


def read_record(
    items: Items, plan: Plan, shard: int, state: Path, folders: tuple[Path, ...]
) -> dict[str, Any] | None:
    """The record of a shard if it is whole and still of the same items, else None."""
    try:
        record = json.loads(record_file(state, plan, shard).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    sizes = []
    for folder in folders:
        # One look: another process may publish the file between two.
        with contextlib.suppress(FileNotFoundError):
            sizes.append((folder / record["file"]).stat().st_size)
    if record["bytes"] not in sizes or record["names"] != names_hash(
        items, plan, shard
    ):
        return None
    return record


def names_hash(items: Items, plan: Plan, shard: int) -> str:
    """A hash of the names of a shard's raw items, in order."""
    text = json.dumps([items.name(index) for index in plan.items_of(shard)])
    return hashlib.sha256(text.encode()).hexdigest()
