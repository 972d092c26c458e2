"""Stored states of captions: a table from texts to what a text encoder made of them.

A folder holds shards of true length and a manifest that says which encoder made them;
``datasets.preparation.encode_text`` writes it. The empty text is the null caption.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from scm_jax.files.atomic import json_sha256
from scm_jax.types import TextInfo

MANIFEST = "manifest.json"
HEADER = "encoder_and_texts"  # what the header of a shard says, as JSON


def encoder_name(identity: dict[str, Any]) -> str:
    """Name, revision and a hash of all that decides the states.

    Example:
      >>> encoder_name({"name": "clip-l", "revision": "local", "layer": -2})
      'clip-l local sha256:c540e2cd84ebb26a'
    """
    digest = json_sha256(identity)[:16]
    return f"{identity['name']} {identity['revision']} sha256:{digest}"


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of stored states.

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
    except (ValueError, KeyError) as error:
        raise ValueError(f"{file} is damaged ({error!r}): encode again") from error
    if told != (actual := json_sha256(found)):
        raise ValueError(
            f"{file} was changed after it was written: its SHA-256 is {actual}, and it "
            f"says {told}. Encode again"
        )
    return found


@dataclasses.dataclass(frozen=True, eq=False)
class States:
    """The captions of a folder and, read when they are asked for, their states."""

    folder: Path
    text: TextInfo  # how a network reads them
    dtype: str
    texts: tuple[str, ...]  # in the order in which they were given
    shards: list[Any]
    places: dict[str, tuple[int, int, int, int]]  # shard, row, first and end token

    @classmethod
    def open(cls, folder: Path) -> States:
        """The states in a folder.

        Raises:
          FileNotFoundError: there are none.
          ValueError: the manifest was changed, or a shard is missing or cut off.
        """
        manifest = read_manifest(folder)
        shards: list[Any] = []
        places, texts = {}, []
        for entry in (e for split in manifest["splits"].values() for e in split):
            file = folder / entry["file"]
            size = file.stat().st_size if file.is_file() else 0
            if size != entry["bytes"]:
                raise ValueError(
                    f"{file} has {size:,} bytes, and {MANIFEST} says "
                    f"{entry['bytes']:,}: run the same `data encode-text` again"
                )
            shard = safetensors.safe_open(file, "np")
            _, said = json.loads(shard.metadata()[HEADER])
            ends = [0, *shard.get_tensor("ends").tolist()]
            for row, text in enumerate(said):
                places[text] = (len(shards), row, ends[row], ends[row + 1])
            texts += [text for text in said if text]
            shards.append(shard)
        made = manifest["encoder"]
        text = TextInfo(
            made["max_length"],
            width=made["width"],
            pooled=made["pooled"],
            encoder=encoder_name(made),
        )
        found = cls(folder, text, made["dtype"], tuple(texts), shards, places)
        null = tuple(np.asarray(a, np.float32) for a in found.find(""))
        return dataclasses.replace(found, text=dataclasses.replace(text, null=null))

    def find(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """States ``(n, width)`` and pooled vector ``(pooled,)`` of a caption.

        Raises:
          ValueError: it was not encoded.
        """
        if text not in self.places:
            raise ValueError(
                f"{self.folder} has no states of the caption {text!r}: run `data "
                "encode-text` on this split, too"
            )
        number, row, start, end = self.places[text]
        shard = self.shards[number]
        pooled = shard.get_slice("pooled")[row : row + 1][0]
        return shard.get_slice("states")[start:end], pooled

    def fields(self, said: Sequence[Sequence[str]], most: int) -> dict[str, np.ndarray]:
        """The conditions of items with several captions each, padded.

        ``context`` ``(n, most, length, width)``, ``context_mask``, ``num_captions`` and
        ``pooled`` where the encoder has it. No caption is an empty mask, the null one.
        """
        shape = (len(said), max(most, 1), self.text.length)
        context = np.zeros((*shape, self.text.width), self.dtype)
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
