"""``manifest.json`` of a prepared dataset: what it holds, measured and hashed.

It lies beside the files of tfds; docs/data.md lists its keys.
"""

from __future__ import annotations

import collections
import contextlib
import datetime
import importlib.metadata
import itertools
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scm_jax.datasets.preparation import shards
from scm_jax.datasets.preparation.readers.items import damaged
from scm_jax.datasets.preparation.sums import PIXELS, Sums, record_of
from scm_jax.files.atomic import write_atomically

FILE = "manifest.json"
STATISTICS_OF = {
    "image": "pixels scaled to [-1, 1]: level / 127.5 - 1",
    "clip": "pixels of all frames scaled to [-1, 1]: level / 127.5 - 1",
    "latent": "latents as stored",
    "sound": "values of the front end, for each bin",
}
# They could change the stored bytes.
_PACKAGES = (
    *("scm_jax", "numpy", "pillow", "scipy", "soundfile"),
    *("array_record", "tensorflow-datasets"),
)
# What the splits of one folder share.
SHARED = ("name", "field", "shape", "dtype", "num_classes", "class_names", "encoder")
_OF_SOME = ("frame_rate", "front_end")  # likewise, of clips and of sound


def read(folder: Path) -> dict[str, Any]:
    """The manifest of a folder; FileNotFoundError or ValueError where it has none."""
    file = folder / FILE
    if not file.is_file():
        raise FileNotFoundError(
            f"{folder} has no {FILE}: it was not prepared by `python -m scm_jax data "
            "prepare`"
        )
    with damaged(f"{file} is not a manifest", (ValueError, TypeError)):
        found = json.loads(file.read_text())
        if not set(SHARED) | {"splits"} <= set(found):
            raise ValueError(f"it has the keys {sorted(found)}")
    return found


def shared_part(plan: shards.Plan) -> dict[str, Any]:
    """What a manifest says of all splits, without ``splits``."""
    own = {key: plan.origin.get(key) for key in _OF_SOME}
    return {
        **{key: value for key, value in own.items() if value is not None},
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
    classes = [0] * len(plan.class_names)
    for record in records if plan.class_names else ():
        for label, count in record["classes"].items():
            classes[int(label)] += count
    noted: collections.Counter[str] = collections.Counter()
    for record in records:
        noted.update(record.get("noted", {}))
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        versions[package] = "not installed"  # such as scm_jax, run from a checkout
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {
        "count": sum(record["items"] for record in records),
        "items_per_class": classes,
        "mean": mean.tolist(),
        "std": std.tolist(),
        "recipe": recipe_part(plan),
        "shards": [
            {key: record[key] for key in ("file", "items", "bytes", "sha256")}
            for record in records
        ],
        "skipped": [item for record in records for item in record["skipped"]],
        **({"noted": dict(sorted(noted.items()))} if noted else {}),
        "made": {"date": date, **versions},
    }


def recipe_part(plan: shards.Plan) -> dict[str, Any]:
    """How a split was made, for its manifest."""
    keys = ("recipe", "size", "shard_items", "origin", "options")
    return {key: getattr(plan, key) for key in keys}


def moments(
    field: str, records: Sequence[dict[str, Any]]
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation per channel, float64, over all values of all items.

    The values are pixels in [-1, 1], from exact sums of levels, or latents as stored
    and what a front end sees of sound, whose sums are added in the order of the shards.
    """
    count = sum(record["count"] for record in records)
    exact: Any = object if field in PIXELS else np.float64
    total: Any = sum(np.array(record["total"], exact) for record in records)
    squares: Any = sum(np.array(record["squares"], exact) for record in records)
    if field in PIXELS:
        # n * sum(x^2) - sum(x)^2 in whole numbers: nothing cancels.
        spread = [int(v) for v in count * squares - total * total]
        mean = np.array([int(t) / count for t in total]) / 127.5 - 1
        return mean, np.sqrt(np.array(spread, np.float64)) / count / 127.5
    mean = total / count
    return mean, np.sqrt(np.maximum(squares / count - mean**2, 0))


def check_shared(old: dict[str, Any], new: dict[str, Any], folder: Path) -> None:
    """Raises ValueError unless a further split fits those that a folder has."""
    for key in (*_OF_SOME, *SHARED):
        there, now = old.get(key), new.get(key)
        if there != now:
            if isinstance(there, dict) and isinstance(now, dict):  # what differs
                keys = [k for k in {**there, **now} if there.get(k) != now.get(k)]
                there, now = ({k: x.get(k) for k in keys} for x in (there, now))
            raise ValueError(
                f"{folder} holds splits {sorted(old['splits'])} with {key} = "
                f"{_short(there)}; the new split has {_short(now)}. Splits of one "
                "dataset must agree: choose another name or version"
            )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def write(folder: Path, manifest: dict[str, Any], version: str) -> None:
    """Writes the manifest, and ``dataset_info.json``, which tfds reads."""
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
    # The manifest last: with it the split counts as there.
    write_atomically(folder / "dataset_info.json", json.dumps(info, indent=1) + "\n")
    write_atomically(folder / FILE, json.dumps(manifest, indent=1) + "\n")


# --- data that a tfds builder made ----------------------------------------------------


def describe_prepared(folder: Path) -> dict[str, Any] | None:
    """Measures what a tfds builder wrote; None where it has no images or latents."""
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
        items, parts = iter(builder.as_data_source(split=split)), []
        for file, length in zip(info.filepaths, info.shard_lengths, strict=True):
            sums = Sums.zeros(plan)
            for item in itertools.islice(items, length):
                sums.add(np.asarray(item[field]), item.get("label", 0))
            parts.append(record_of(Path(file).name, Path(file), sums, []))
        found |= shared_part(plan)
        found["splits"][split] = split_part(plan, parts)
    write_atomically(folder / FILE, json.dumps(found, indent=1) + "\n")
    return found
