"""``manifest.json`` of a prepared dataset: what it holds, measured and hashed.

It lies beside tfds's own files. Keys: ``name``, ``field``, ``shape``, ``dtype``,
``num_classes``, ``class_names``, ``encoder`` (of latents: what made them, and from
pixels in which ``pixel_range``), ``statistics_of``, and for each split ``count``,
``items_per_class``, ``mean`` and ``std`` per channel, ``recipe``, ``shards`` with their
items, bytes and sha256, ``skipped`` items, and ``made``: when and with which versions.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scm_jax.datasets.preparation import shard_files as files
from scm_jax.datasets.preparation import shards

FILE = "manifest.json"
STATISTICS_OF = {
    "image": "pixels scaled to [-1, 1]: level / 127.5 - 1",
    "latent": "latents as stored",
}
# What the splits of one folder share.
SHARED = ("name", "field", "shape", "dtype", "num_classes", "class_names", "encoder")


def read(folder: Path) -> dict[str, Any]:
    """The manifest of a prepared folder.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is not one.
    """
    file = folder / FILE
    if not file.is_file():
        raise FileNotFoundError(
            f"{folder} has no {FILE}: it was not prepared by `python -m scm_jax data "
            "prepare`"
        )
    try:
        found = json.loads(file.read_text())
        if not set(SHARED) | {"splits"} <= set(found):
            raise ValueError(f"it has the keys {sorted(found)}")
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file} is not a manifest: {error}") from error
    return found


def shared_part(plan: shards.Plan) -> dict[str, Any]:
    """What a manifest says of all splits, without ``splits``."""
    return {
        "name": plan.name,
        "field": plan.field,
        "shape": list(plan.shape),
        "dtype": plan.dtype,
        "num_classes": len(plan.class_names),
        "class_names": list(plan.class_names),
        "encoder": plan.encoder,
        "statistics_of": STATISTICS_OF[plan.field],
    }


def split_part(plan: shards.Plan, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What a manifest says of one split, from the records of its shards in order."""
    mean, std = moments(plan.field, records)
    classes = np.zeros(len(plan.class_names), np.int64)
    for record in records if plan.class_names else ():
        for label, count in record["classes"].items():
            classes[int(label)] += count
    return {
        "count": sum(record["items"] for record in records),
        "items_per_class": classes.tolist(),
        "mean": mean.tolist(),
        "std": std.tolist(),
        "recipe": recipe_part(plan),
        "shards": [
            {key: record[key] for key in ("file", "items", "bytes", "sha256")}
            for record in records
        ],
        "skipped": [item for record in records for item in record["skipped"]],
        "made": {
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            **versions(),
        },
    }


def recipe_part(plan: shards.Plan) -> dict[str, Any]:
    """How a split was made, for its manifest."""
    return {
        "recipe": plan.recipe,
        "size": plan.size,
        "shard_items": plan.shard_items,
        "origin": plan.origin,
        "options": plan.options,
    }


def versions() -> dict[str, str]:
    """The versions of what could change the stored bytes."""
    names = ("scm_jax", "numpy", "pillow", "array_record", "tensorflow-datasets")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # run from a checkout
            found[name] = "not installed"
    return found


def moments(
    field: str, records: Sequence[dict[str, Any]]
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation per channel, float64, over all values of all items.

    Sums of levels are whole numbers and exact, so they do not depend on the order;
    those of latents are added in the order of the shards.

    Returns:
      Of pixels in [-1, 1], or of latents as stored.
    """
    count = sum(record["count"] for record in records)
    exact: Any = object if field == "image" else np.float64
    total: Any = sum(np.array(record["total"], exact) for record in records)
    squares: Any = sum(np.array(record["squares"], exact) for record in records)
    if field == "image":
        # n * sum(x^2) - sum(x)^2 in whole numbers: nothing cancels.
        spread = [int(v) for v in count * squares - total * total]
        mean = np.array([int(t) / count for t in total]) / 127.5 - 1
        return mean, np.sqrt(np.array(spread, np.float64)) / count / 127.5
    mean = total / count
    return mean, np.sqrt(np.maximum(squares / count - mean**2, 0))


def check_shared(old: dict[str, Any], new: dict[str, Any], folder: Path) -> None:
    """Raises ValueError unless a further split fits those that a folder has."""
    for key in SHARED:
        if old[key] != new[key]:
            raise ValueError(
                f"{folder} holds splits {sorted(old['splits'])} with {key} = "
                f"{_short(old[key])}; the new split has {_short(new[key])}. Splits of "
                "one dataset must agree: choose another name or version"
            )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


# --- tfds's own description -----------------------------------------------------------


def write_dataset_info(folder: Path, manifest: dict[str, Any], version: str) -> None:
    """Writes ``dataset_info.json``, from which tfds knows splits and shards."""
    splits = [
        {
            "name": name,
            "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            "numBytes": str(sum(shard["bytes"] for shard in split["shards"])),
            "shardLengths": [str(shard["items"]) for shard in split["shards"]],
        }
        for name, split in sorted(manifest["splits"].items())
    ]
    info = {
        "description": f"Prepared by scm_jax; {FILE} says how.",
        "disableShuffling": True,
        "fileFormat": "array_record",
        "name": manifest["name"],
        "splits": splits,
        "version": version,
    }
    files.write_json(folder / "dataset_info.json", info, indent=1)


# --- data that a tfds builder made ----------------------------------------------------


def describe_prepared(folder: Path) -> dict[str, Any] | None:
    """Measures a folder that a tfds builder wrote and writes its manifest.

    Returns:
      The manifest; None where the items are neither images nor latents.
    """
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(folder)
    stored = builder.info.features
    field = next((name for name in shards.FIELDS if name in stored), None)
    if field is None or None in stored[field].shape or len(stored[field].shape) != 3:
        return None
    names = tuple(stored["label"].names) if "label" in stored else ()
    found: dict[str, Any] = {"splits": {}}
    for split, info in builder.info.splits.items():
        plan = shards.Plan(
            name=builder.name,
            split=split,
            field=field,
            shape=tuple(stored[field].shape),
            dtype=np.dtype(stored[field].np_dtype).name,
            class_names=names,
            recipe="none",
            size=0,
            shard_items=0,
            num_items=info.num_examples,
            origin={"kind": "tfds builder", "path": builder.info.full_name},
        )
        records = builder.as_data_source(split=split)
        parts = [
            _measured(plan, records, Path(file), items)
            for file, items in _runs(info.filepaths, info.shard_lengths)
        ]
        found |= shared_part(plan)
        found["splits"][split] = split_part(plan, parts)
    files.write_json(folder / FILE, found, indent=1)
    return found


def _runs(files: Sequence[Any], lengths: Sequence[int]) -> Iterator[tuple[Any, range]]:
    start = 0
    for file, length in zip(files, lengths, strict=True):
        yield file, range(start, start + length)
        start += length


def _measured(
    plan: shards.Plan, records: Any, file: Path, items: range
) -> dict[str, Any]:
    """The record of one shard that is there already."""
    sums, classes = shards.Sums.zeros(plan), np.zeros(len(plan.class_names) or 1, int)
    for index in items:
        item = records[index]
        sums.add(np.asarray(item[plan.field]))
        classes[int(item.get("label", 0))] += 1
    return shards.record_of(file.name, file, sums, classes, skipped=[])
