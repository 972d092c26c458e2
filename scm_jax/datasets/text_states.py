"""Stored states of captions: a table from texts to what a text encoder made of them.

A folder holds shards of true length, the states of the null caption, and a manifest
that says which encoder made them; ``datasets.preparation.encode_text`` writes it.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from scm_jax.types import TextInfo

MANIFEST = "manifest.json"
NULL = "null.safetensors"
HEADER = "encoder_and_texts"  # what the header of a shard says, as JSON


def key_of(text: str) -> int:
    """64 bits that stand for a caption in the index of a shard."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def json_sha256(value: Any) -> str:
    """SHA-256 of a value's one JSON text."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def encoder_name(identity: dict[str, Any]) -> str:
    """Name, revision and a hash of all that decides the states.

    Example:
      >>> encoder_name({"name": "clip-l", "revision": "local", "layer": -2})
      'clip-l local sha256:d9bf5b5e3ed8f2b1'
    """
    digest = json_sha256(identity)[:16]
    return f"{identity['name']} {identity['revision']} sha256:{digest}"


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of stored states, if it is whole and as it was written.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is not JSON, or was changed.
    """
    file = folder / MANIFEST
    if not file.is_file():
        raise FileNotFoundError(
            f"{folder} has no {MANIFEST}: write states of captions there with "
            "`python -m scm_jax data encode-text`, or finish it by the same command"
        )
    try:
        found = json.loads(file.read_text("utf-8"))
        told = found.pop("sha256")
    except (ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{file} is damaged ({error!r}): encode again") from error
    if told != json_sha256(found):
        raise ValueError(
            f"{file} was changed after it was written: its SHA-256 is "
            f"{json_sha256(found)}, and it says {told}. Encode again"
        )
    return found


@dataclasses.dataclass(frozen=True, eq=False)
class States:
    """All captions of a folder; see ``open``.

    Attributes:
      folder: where they are.
      manifest: ``read_manifest(folder)``.
      text: how a network reads them.
    """

    folder: Path
    manifest: dict[str, Any]
    text: TextInfo

    @classmethod
    def open(cls, folder: Path) -> States:
        """The states in a folder; the shards are looked at when they are needed.

        Raises:
          FileNotFoundError: there are none.
          ValueError: the manifest or the null caption is damaged.
        """
        manifest = read_manifest(folder)
        identity = manifest["encoder"]
        with safetensors.safe_open(folder / NULL, "np") as file:
            null = file.get_tensor("states"), file.get_tensor("pooled")[0]
        if json_sha256([a.tolist() for a in null]) != manifest["null_sha256"]:
            raise ValueError(f"{folder / NULL} was changed: encode again")
        text = TextInfo(
            identity["max_length"],
            width=identity["width"],
            pooled=identity["pooled"],
            encoder=encoder_name(identity),
            null=tuple(np.asarray(a, np.float32) for a in null),
        )
        return cls(folder, manifest, text)

    @functools.cached_property
    def _shards(self) -> list[Any]:
        """Open shards, whose states are read when they are asked for."""
        shards = [s for split in self.manifest["splits"].values() for s in split]
        for shard in shards:
            file = self.folder / shard["file"]
            size = file.stat().st_size if file.is_file() else 0
            if size != shard["bytes"]:
                raise ValueError(
                    f"{file} has {size:,} bytes, and {MANIFEST} says "
                    f"{shard['bytes']:,}: run the same `data encode-text` again"
                )
        paths = [self.folder / shard["file"] for shard in shards]
        return [safetensors.safe_open(path, "np") for path in paths]

    @functools.cached_property
    def _index(self) -> tuple[np.ndarray, np.ndarray]:
        """Sorted keys of all captions; where each is: shard, row, first, last token."""
        keys, places = [np.zeros(0, np.uint64)], [np.zeros((0, 4), np.int64)]
        for number, shard in enumerate(self._shards):
            ends = shard.get_tensor("ends")
            starts, rows = np.append(0, ends[:-1]), np.arange(len(ends))
            keys.append(shard.get_tensor("keys"))
            shards = np.full_like(rows, number)
            places.append(np.stack([shards, rows, starts, ends], axis=1))
        joined = np.concatenate(keys)
        order = np.argsort(joined, kind="stable")
        return joined[order], np.concatenate(places)[order]

    def find(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """States ``(n, width)`` of a caption and its pooled vector ``(pooled,)``.

        Raises:
          ValueError: it was not encoded.
        """
        keys, places = self._index
        key = np.uint64(key_of(text))
        at = int(np.searchsorted(keys, key))
        if at == len(keys) or keys[at] != key:
            raise ValueError(
                f"{self.folder} has no states of the caption {text!r}: run `data "
                "encode-text` on this split, too"
            )
        number, row, start, end = (int(n) for n in places[at])
        shard = self._shards[number]
        states = shard.get_slice("states")[start:end]
        return states, shard.get_slice("pooled")[row : row + 1][0]

    def fields(self, said: Sequence[Sequence[str]], most: int) -> dict[str, np.ndarray]:
        """The conditions of items with several captions each, padded.

        ``context`` ``(n, most, length, width)``, ``context_mask``, ``num_captions`` and
        ``pooled`` where the encoder has it. No caption is an empty mask, the null one.
        """
        shape = (len(said), max(most, 1), self.text.length)
        dtype = self.manifest["encoder"]["dtype"]
        context = np.zeros((*shape, self.text.width), dtype)
        mask = np.zeros(shape, np.bool_)
        pooled = np.zeros((*shape[:2], self.text.pooled), np.float32)
        for i, texts in enumerate(said):
            for k, text in enumerate(texts):
                states, pooled[i, k] = self.find(text)
                context[i, k, : len(states)] = states
                mask[i, k, : len(states)] = True
        counts = np.array([max(len(texts), 1) for texts in said], np.int32)
        found = {"context": context, "context_mask": mask, "num_captions": counts}
        return {**found, "pooled": pooled} if self.text.pooled else found

    def prompts(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """The conditions of one caption a row, as fields of ``Cond``."""
        found = self.fields([[text] for text in texts], 1)
        return {k: a[:, 0] for k, a in found.items() if k != "num_captions"}

    def texts(self) -> tuple[str, ...]:
        """All captions, in the order in which they were given."""
        lists = (json.loads(shard.metadata()[HEADER])[1] for shard in self._shards)
        return tuple(text for texts in lists for text in texts)
