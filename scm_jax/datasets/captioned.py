"""Prepared items with captions: stored texts become tokens, or states of an encoder."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from scm_jax.datasets import captions, pipeline
from scm_jax.datasets.text_states import States
from scm_jax.types import DatasetInfo, TextInfo

STATES = "states"  # folder of stored states beside the shards of a prepared dataset


class Said(Protocol):
    """The conditions of some items, from their stored captions."""

    def __call__(self, stored: np.ndarray) -> pipeline.Fields: ...


@dataclasses.dataclass(frozen=True, eq=False)
class CaptionedSource:
    """A source whose texts are replaced by what a network reads of them."""

    source: pipeline.Source
    said: Said

    def __len__(self) -> int:
        return len(self.source)

    def gather(self, indices: np.ndarray) -> pipeline.Fields:
        fields = dict(self.source.gather(indices))
        stored = fields.pop("caption")
        return {**fields, **self.said(stored)}


def with_captions(source: pipeline.Source, said: Said) -> pipeline.Source:
    """``source`` with the conditions of its captions; tokens in memory as it is."""
    found = CaptionedSource(source, said)
    if isinstance(said, Tokens) and isinstance(source, pipeline.MemorySource):
        return pipeline.MemorySource(found.gather(np.arange(len(found))))
    return found


def split_captions(stored: bytes) -> list[str]:
    """The captions of one item, as ``data prepare`` stores them."""
    return [line for line in stored.decode().split("\n") if line]


@dataclasses.dataclass(frozen=True)
class Tokens:
    """``tokens`` ``(n, most, text.length)`` int32 and ``num_captions`` ``(n,)`` int32.

    Longer captions are cut. An item without a caption has the null caption.
    """

    text: TextInfo
    most: int  # captions of an item

    def __call__(self, stored: np.ndarray) -> pipeline.Fields:
        said = [split_captions(text) for text in stored]
        tokens = np.zeros((len(said), max(self.most, 1), self.text.length), np.int32)
        for row, texts in zip(tokens, said, strict=True):
            row[: len(texts)] = captions.tokenize(self.text, texts, too_long="cut")
        counts = np.array([max(len(texts), 1) for texts in said], np.int32)
        return {"tokens": tokens, "num_captions": counts}


@dataclasses.dataclass(frozen=True)
class Encoded:
    """``context``, ``context_mask`` and ``pooled`` from stored states."""

    states: States
    most: int  # captions of an item

    def __call__(self, stored: np.ndarray) -> pipeline.Fields:
        return self.states.fields([split_captions(t) for t in stored], self.most)


def open_captions(
    info: DatasetInfo, manifest: dict[str, Any], folder: Path, states: str, split: str
) -> tuple[DatasetInfo, Said]:
    """How captions are read: ``info`` with it, and what reads the stored ones.

    Args:
      info: of a prepared dataset.
      manifest: its manifest.
      folder: where it lies.
      states: name of stored states of its captions; empty for tokens.
      split: the split that is opened.

    Raises:
      ValueError: the prepared data have no captions, or the states are damaged.
      FileNotFoundError: there are no such states.
    """
    reading = manifest.get("captions")
    if reading is None:
        raise ValueError(
            f"the prepared dataset {manifest['name']!r} has no captions: prepare it "
            "again with --captions=required, or set dataset.captioned to False"
        )
    most, examples = manifest["splits"][split]["captions"]["most"], reading["examples"]
    text = TextInfo(reading["length"], tuple(reading["words"]))
    said: Said = Tokens(text, most)
    if states:
        opened = States.open(folder / STATES / states)
        text, said = opened.text, Encoded(opened, most)

    def find() -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
        stored = np.array([caption.encode() for caption in examples], object)
        fields = {k: v for k, v in said(stored).items() if k != "num_captions"}
        return tuple(examples), {k: v[:, 0] for k, v in fields.items()}

    return dataclasses.replace(info, text=text, examples=find), said
