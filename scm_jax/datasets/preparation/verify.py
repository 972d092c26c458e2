"""Checks a prepared dataset: which shard is broken, and which item of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from scm_jax.datasets.preparation import manifest
from scm_jax.files.atomic import file_sha256
from scm_jax.types import lookup


def verify(
    folder: Path,
    split: str | None = None,
    *,
    quick: bool = False,
    on_shard: Callable[[int], None] = lambda items: None,
) -> Iterator[str]:
    """Yields what is wrong with a prepared dataset, a sentence each.

    Args:
      folder: ``ROOT/NAME/VERSION`` with a manifest.
      split: one split only; None for all.
      quick: sizes and hashes of the shards, without decoding items.
      on_shard: called after each shard with its number of items.

    Raises:
      FileNotFoundError: there is no manifest.
      ValueError: no such split.
    """
    import tensorflow_datasets as tfds

    found = manifest.read(folder)
    names = list(found["splits"]) if split is None else [split]
    for name in names:
        lookup(found["splits"], name, f"split of {folder}")
    yield from _check_declared(folder, found)
    features = None if quick else tfds.features.FeaturesDict.from_config(str(folder))
    for name in names:
        counts = np.zeros(found["num_classes"], np.int64)
        start, broken = 0, False
        for shard in found["splits"][name]["shards"]:
            for problem in _check_shard(folder, shard, found, features, start, counts):
                broken = True
                yield f"split {name!r}: {problem}"
            start += shard["items"]
            on_shard(shard["items"])
        declared = found["splits"][name]["items_per_class"]
        if not quick and not broken and counts.tolist() != declared:
            yield f"split {name!r}: the items per class are not those of the manifest"


def _check_declared(folder: Path, found: dict[str, Any]) -> Iterator[str]:
    """tfds's files and the manifest must say the same."""
    import tensorflow_datasets as tfds

    try:
        known = tfds.builder_from_directory(folder).info.splits
    except Exception as error:  # tfds raises all kinds
        yield f"tfds cannot open it: {error}"
        return
    for name, split in found["splits"].items():
        declared = [shard["items"] for shard in split["shards"]]
        if name not in known:
            yield f"split {name!r} is in {manifest.FILE} and not in dataset_info.json"
        elif list(known[name].shard_lengths) != declared:
            yield (
                f"split {name!r}: dataset_info.json has shards of other lengths than "
                f"{manifest.FILE}"
            )


def _check_shard(
    folder: Path,
    shard: dict[str, Any],
    found: dict[str, Any],
    features: Any,
    start: int,
    counts: np.ndarray,
) -> Iterator[str]:
    """What is wrong with a shard; without ``features`` its items are not decoded."""
    file = folder / shard["file"]
    if not file.is_file():
        yield f"{file} is missing"
        return
    size = file.stat().st_size
    if size < shard["bytes"]:
        yield f"{file} is cut off: {size:,} of {shard['bytes']:,} bytes"
    elif size > shard["bytes"]:
        yield f"{file} has grown: {size:,} instead of {shard['bytes']:,} bytes"
    elif file_sha256(file) != shard["sha256"]:
        yield f"{file} has another sha256 than in {manifest.FILE}: it was changed"
    if features is None:
        return
    from array_record.python import array_record_module as array_record

    try:
        options = "readahead_buffer_size:0,max_parallelism:0"
        reader = array_record.ArrayRecordReader(str(file), options)
        if not reader.ok():
            reader.close()  # raises what is wrong
        number = reader.num_records()
    except (RuntimeError, ValueError) as error:
        yield f"{file}: cannot be opened: {_first_line(error)}"
        return
    if number != shard["items"]:
        yield f"{file}: holds {number} items, and {manifest.FILE} says {shard['items']}"
    for index in range(number):
        try:
            item = features.deserialize_example_np(reader.read([index])[0])
            problem = _problem(item, found)
        except Exception as error:  # of array records, protobuf or tfds
            problem = f"cannot be decoded: {_first_line(error)}"
        if problem:
            yield f"{file}: item {index} (item {start + index} of the split) {problem}"
        elif counts.size:
            counts[int(item["label"])] += 1
    with contextlib.suppress(RuntimeError):  # of an item that was named already
        reader.close()


def _problem(item: dict[str, Any], found: dict[str, Any]) -> str:
    """What is wrong with a decoded item; empty if nothing is."""
    value = np.asarray(item[found["field"]])
    if list(value.shape) != found["shape"] or value.dtype.name != found["dtype"]:
        return f"is {value.dtype} {value.shape}"
    if not np.isfinite(value).all():
        return "has values that are not finite"
    if found["num_classes"] and not 0 <= int(item["label"]) < found["num_classes"]:
        return f"has the label {item['label']}; legal are 0..{found['num_classes'] - 1}"
    return ""


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]
