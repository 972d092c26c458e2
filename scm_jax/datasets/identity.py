"""What identifies prepared data, wherever they lie: counts and hashes of shards."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from scm_jax.files.atomic import file_sha256, json_sha256


@dataclasses.dataclass(frozen=True)
class Identity:
    """A split of prepared data."""

    name: str  # of the prepared dataset; two of one content may have two names
    split: str  # the whole split, also where a slice of it is read
    count: int
    shards: tuple[str, ...]  # SHA-256 of its files, in order

    @property
    def sha256(self) -> str:
        """One hash of all shards."""
        return hashlib.sha256("\n".join(self.shards).encode()).hexdigest()

    def same_data(self, other: Identity) -> bool:
        """Whether both hold the same items in the same order."""
        return (self.count, self.shards) == (other.count, other.shards)

    def __str__(self) -> str:
        return f"{self.name}, {self.count:,} items, sha256 {self.sha256[:12]}"


def of_dataset(dataset: Any) -> Identity | None:
    """The identity of a dataset's data; None where its config says all of it."""
    identify = getattr(dataset, "identify", None)
    return None if identify is None else identify()


def of_prepared(folder: Path, split: str) -> Identity:
    """The identity of a split in ``folder``, by the hashes that its manifest records.

    Files that are not in the manifest, or have another size there, are read.
    """
    import tensorflow_datasets as tfds

    base = split.split("[", 1)[0]
    builder = tfds.builder_from_directory(folder)
    info = builder.info.splits[base]
    known, front_end = _recorded(folder / "manifest.json", base)
    hashes = []
    for file in map(Path, info.filepaths):
        size, sha256 = known.get(file.name, (None, ""))
        hashes.append(sha256 if file.stat().st_size == size else file_sha256(file))
    if front_end:  # the same sound, seen otherwise, is other data
        hashes.append(json_sha256(front_end))
    return Identity(builder.name, base, info.num_examples, tuple(hashes))


def _recorded(path: Path, split: str) -> tuple[dict[str, tuple[int, str]], Any]:
    """Size and hash of the shards that a manifest names, and its front end."""
    try:
        found = json.loads(path.read_text())
        shards = found["splits"][split]["shards"]
        known = {s["file"]: (s["bytes"], s["sha256"]) for s in shards}
        return known, found.get("front_end")
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return {}, None
