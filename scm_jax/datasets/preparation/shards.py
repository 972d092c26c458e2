"""One shard of prepared items: what goes in, and how it gets to disk.

A shard holds a run of items in their order. It appears under its name by one rename,
beside a JSON file of its count, hash and sums; without that file it does not count.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import errno
import functools
import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scm_jax.datasets.front_ends import FrontEnd, from_settings
from scm_jax.datasets.preparation.readers.items import ItemError, Items, check_pixels
from scm_jax.datasets.preparation.sums import PIXELS, Sums, record_of
from scm_jax.files.atomic import json_sha256, write_atomically

FORMAT = 1  # of the stored bytes; goes up when the same recipe would give others
FIELDS = ("image", "clip", "latent", "sound")
SHARD_ITEMS = 4096
SHARD_BYTES = 256 * 2**20


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that determines the stored bytes of one split."""

    name: str  # of the dataset
    split: str
    field: str  # of ``FIELDS``
    shape: tuple[int, ...]  # of one stored item, channels last; of sound the samples
    dtype: str  # as stored
    class_names: tuple[str, ...]  # empty where no classes are stored
    recipe: str  # a name in ``preparation.resize.RECIPES``
    size: int  # in pixels; 0 with the recipe ``none`` for that of the first item
    shard_items: int
    num_items: int  # raw items
    origin: dict[str, Any]  # ``Items.origin``
    # How the raw data were opened, where that says more.
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    # What made the latents, ``pixel_range`` above all; empty for images.
    encoder: dict[str, Any] = dataclasses.field(default_factory=dict)
    captioned: bool = False

    @property
    def num_shards(self) -> int:
        return -(-self.num_items // self.shard_items)

    @functools.cached_property
    def front_end(self) -> FrontEnd | None:
        """How sound is seen; None for all other data."""
        found = self.origin.get("front_end")
        return None if found is None else from_settings(found)

    def items_of(self, shard: int) -> range:
        """The raw items that a shard is made from."""
        start = shard * self.shard_items
        return range(start, min(start + self.shard_items, self.num_items))

    def file(self, shard: int) -> str:
        """Name of a shard's file, as tfds has it."""
        number = f"{shard:05d}-of-{self.num_shards:05d}"
        return f"{self.name}-{self.split}.array_record-{number}"

    def hash(self) -> str:
        """A hash of what two preparations must share to use each other's shards.

        The number of raw items and the sizes of their files do not count: a bad file
        may be mended or removed. Each shard has a hash of the names of its items, so
        that a shard whose items moved is made again.
        """
        own = ["name", "split", "field", "shape", "dtype", "recipe", "size"]
        own += ["class_names", "shard_items", "options", "encoder"]
        where = {key: self.origin.get(key) for key in ("kind", "path", "split")}
        shared = {key: getattr(self, key) for key in own}
        identity = {"format": FORMAT, **shared, "origin": where}
        if self.captioned:  # as before where there are none
            identity["captioned"] = True
        if self.front_end is not None:
            identity["front_end"] = self.origin["front_end"]
        return json_sha256(identity)[:12]


@dataclasses.dataclass(frozen=True)
class Work:
    """What the processes of one preparation share; picklable."""

    items: Items
    plan: Plan
    staging: Path  # hidden folder where it is made
    target: Path
    skip_bad: int = 0  # how many bad items may be left out

    @property
    def folder(self) -> Path:
        """Whole shards."""
        return self.staging / "folder"

    @property
    def state(self) -> Path:
        """Their records, claims, and what is incomplete."""
        return self.staging / "state"

    def record_file(self, shard: int) -> Path:
        return self.state / f"{self.plan.file(shard)}.json"

    def captions_file(self, shard: int) -> Path:
        """Names and captions of a shard's items; there before its record."""
        return self.state / f"{self.plan.file(shard)}.captions"

    def record(self, shard: int) -> dict[str, Any] | None:
        """The record of a shard if it is whole and still of the same items."""
        try:
            record = json.loads(self.record_file(shard).read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return None
        if record["skipped"] and not self.skip_bad:
            return None  # of a command that allowed it; its items may be mended now
        sizes = []
        for folder in (self.folder, self.target):
            # One look: another process may publish the file between two.
            with contextlib.suppress(FileNotFoundError):
                sizes.append((folder / record["file"]).stat().st_size)
        same = record["bytes"] in sizes and record["names"] == self.names_hash(shard)
        return record if same else None

    def names_hash(self, shard: int) -> str:
        """A hash of the names of a shard's raw items, in order."""
        return json_sha256([self.items.name(k) for k in self.plan.items_of(shard)])

    def temporary(self, shard: int) -> Path:
        """Where this process, of this machine, writes a shard until it is whole."""
        return self.state / f"{_own_prefix(self.plan.file(shard))}{os.getpid()}"

    def remove_leftovers(self, shard: int) -> None:
        """Removes what killed processes of this machine left of a shard.

        For the holder of its claim: no other process of this machine writes it.
        """
        for file in self.state.glob(f"{_own_prefix(self.plan.file(shard))}*"):
            file.unlink(missing_ok=True)


def _own_prefix(name: str) -> str:
    return f".{name}.{socket.gethostname()}."


def features(plan: Plan) -> Any:
    """What is stored, in the words of tfds."""
    import tensorflow_datasets as tfds

    dtype = np.dtype(plan.dtype).type
    # "bytes": by default tfds turns every value into a 64-bit number, which takes
    # twelve times as long to write, and more room.
    stored = tfds.features.Tensor(shape=plan.shape, dtype=dtype, encoding="bytes")
    fields = {plan.field: stored}
    if plan.class_names:
        names = plan.class_names
        # tfds stores names as the stripped lines of a file.
        usable = all(n and n == n.strip() and len(n.splitlines()) == 1 for n in names)
        usable = usable and len(set(names)) == len(names)
        known: Any = {"names": names} if usable else {"num_classes": len(names)}
        fields["label"] = tfds.features.ClassLabel(**known)
    if plan.captioned:
        fields["caption"] = tfds.features.Text()  # one in each line
    return tfds.features.FeaturesDict(fields)


# --- one item -------------------------------------------------------------------------


class Item(NamedTuple):
    """A raw item as it is stored."""

    field: str
    value: np.ndarray
    label: int | None
    captions: tuple[str, ...] | None
    noted: tuple[str, ...] = ()


def read_item(items: Items, index: int, recipe: str, size: int, dtype: str) -> Item:
    """Reads a raw item, resizes an image, casts a latent or sound to ``dtype``.

    Raises:
      ItemError: it cannot be used.
    """
    fields, name = items.read(index), items.name(index)
    field = next((name for name in FIELDS if name in fields), None)
    if field is None:
        raise ItemError(f"{name} has none of {FIELDS}: {sorted(fields)}")
    value = np.asarray(fields[field])
    if field in PIXELS:
        dtype = "uint8"
        check_pixels(field, value, name)
        if recipe != "none" or size:
            from scm_jax.datasets.preparation import resize

            frames = value[None] if field == "image" else value
            resized = [resize.resize(frame, size, recipe, name) for frame in frames]
            value = resized[0] if field == "image" else np.stack(resized)
    label = None if fields.get("label") is None else int(fields["label"])
    with np.errstate(over="ignore"):
        value = np.ascontiguousarray(value, dtype)
    if not np.isfinite(value).all():
        raise ItemError(
            f"{name} has values that are not finite in {dtype} (NaN, infinity, or too "
            "large)"
        )
    return Item(field, value, label, fields.get("captions"), fields.get("noted", ()))


def planned_item(items: Items, index: int, plan: Plan) -> tuple[dict[str, Any], Item]:
    """An item as stored, and as read; raises ItemError where it is not as planned."""
    item = read_item(items, index, plan.recipe, plan.size, plan.dtype)
    field, value, label, captions, _ = item
    name = items.name(index)
    if field != plan.field:
        raise ItemError(f"{name} is of the kind {field!r}; the first is a {plan.field}")
    if value.shape != plan.shape:
        raise ItemError(
            f"{name} has shape {value.shape}, and the first item {plan.shape}; all "
            "must have one. Images of several sizes need a size and a recipe, such as "
            "--size=64 --recipe=center_crop_dhariwal"
        )
    stored: dict[str, Any] = {plan.field: value}
    if plan.captioned:
        stored["caption"] = "\n".join(captions or ())
        if not captions and plan.options.get("missing_captions") == "refuse":
            raise ItemError(f"{name} has no caption, which --missing_captions refuses")
    if not plan.class_names:
        return stored, item
    if label is None:
        raise ItemError(f"{name} has no label, and others have")
    if not 0 <= label < len(plan.class_names):
        raise ItemError(
            f"{name} has the label {label}; legal are 0..{len(plan.class_names) - 1}"
        )
    return {**stored, "label": np.int64(label)}, item


# --- one shard ------------------------------------------------------------------------


def write_shard(
    work: Work, shard: int, on_item: Callable[[], None] = lambda: None
) -> None:
    """Writes a shard and then its record; calls ``on_item`` after each item.

    Raises:
      ItemError: an item cannot be used, and no more may be skipped.
      OSError: it could not be written, such as on a full disk.
    """
    items, plan, temporary = work.items, work.plan, work.temporary(shard)
    sums = Sums.zeros(plan)
    skipped: list[dict[str, str]] = []
    said: list[tuple[str, list[str]]] = []
    counts: collections.Counter[str] = collections.Counter()

    def stored() -> Iterator[dict[str, Any]]:
        for index in plan.items_of(shard):
            try:
                item, read = planned_item(items, index, plan)
            except ItemError as error:
                _check_skips(work, shard, len(skipped), error)
                skipped.append({"item": items.name(index), "why": str(error)})
            else:
                sums.add(item[plan.field], item.get("label", 0))
                counts.update(read.noted)
                if plan.captioned:
                    lines = item["caption"].split("\n")
                    said.append((items.name(index), [c for c in lines if c]))
                yield item
            on_item()

    try:
        _write_records(plan, stored(), temporary)
        record = record_of(plan.file(shard), temporary, sums, skipped)
        record |= {"names": work.names_hash(shard), "noted": dict(counts)}
        os.replace(temporary, work.folder / plan.file(shard))
        if plan.captioned:
            write_atomically(work.captions_file(shard), json.dumps(said))
        write_atomically(work.record_file(shard), json.dumps(record))
    finally:
        temporary.unlink(missing_ok=True)


def _check_skips(work: Work, shard: int, before: int, error: ItemError) -> None:
    """Raises ItemError unless one more item may be skipped, over all shards."""
    if not work.skip_bad:
        raise error
    records = (work.record(k) for k in range(work.plan.num_shards) if k != shard)
    elsewhere = sum(len(record["skipped"]) for record in records if record is not None)
    if elsewhere + before >= work.skip_bad:
        raise ItemError(
            f"{error}; {work.skip_bad} other bad items were skipped already, and "
            f"skip_bad = {work.skip_bad} allows no more"
        )


def _write_records(plan: Plan, items: Iterator[dict[str, Any]], file: Path) -> None:
    from array_record.python import array_record_module as array_record
    from tensorflow_datasets.core import example_serializer

    connector = features(plan)
    serializer = example_serializer.ExampleSerializer(connector.get_serialized_info())
    with _disk_errors(file):
        writer = array_record.ArrayRecordWriter(str(file), "group_size:1")
    written = 0
    try:
        for item in items:
            example = serializer.get_tf_example(connector.encode_example(item))
            # Else its fields come in an order that differs from process to process.
            record = example.SerializeToString(deterministic=True)
            with _disk_errors(file):
                writer.write(record)
            written += 1
    except BaseException:
        with contextlib.suppress(RuntimeError, ValueError):
            writer.close()
        raise
    with _disk_errors(file):
        writer.close()
        with open(file, "rb") as opened:
            os.fsync(opened.fileno())
        reader = array_record.ArrayRecordReader(str(file))
        number = reader.num_records()
        reader.close()
        if written != number:
            raise OSError(errno.EIO, "not all records arrived on disk")


@contextlib.contextmanager
def _disk_errors(file: Path) -> Iterator[None]:
    """Array records report a full disk as a RuntimeError; here it is an OSError."""
    try:
        yield
    except (RuntimeError, ValueError, OSError) as error:
        no = error.errno if isinstance(error, OSError) else None
        known = {"No space left": errno.ENOSPC, "File too large": errno.EFBIG}
        no = no or next((n for text, n in known.items() if text in str(error)), None)
        raise OSError(
            no or errno.EIO,
            f"cannot write {file}: {os.strerror(no) if no else error}. Make room and "
            "run the same command again: whole shards are kept",
        ) from error
