"""Prepared items with captions: stored texts become tokens, or states of an encoder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from scm_jax.datasets import captions, pipeline, storage
from scm_jax.datasets.text_states import States
from scm_jax.types import DatasetInfo, Prompts, TextInfo

STATES = "states"  # folder of stored states beside the shards of a prepared dataset

# The captions of some items -> fields of ``Batch`` with an axis of captions.
Read = Callable[[list[list[str]]], dict[str, Any]]


def split_captions(stored: bytes) -> list[str]:
    """The captions of one item, as ``data prepare`` stores them."""
    return [line for line in stored.decode().split("\n") if line]


def read_tokens(text: TextInfo, most: int, said: list[list[str]]) -> dict[str, Any]:
    """``tokens`` ``(n, most, text.length)`` and ``num_captions`` ``(n,)``, int32.

    Longer captions are cut. An item without a caption has the null caption.
    """
    tokens = np.zeros((len(said), max(most, 1), text.length), np.int32)
    for row, texts in zip(tokens, said, strict=True):
        row[: len(texts)] = captions.tokenize(text, texts, too_long="cut")
    counts = np.array([max(len(texts), 1) for texts in said], np.int32)
    return {"tokens": tokens, "num_captions": counts}


def open_captions(
    info: DatasetInfo, manifest: dict[str, Any], folder: Path, states: str, split: str
) -> tuple[DatasetInfo, Read]:
    """``info`` with how the captions of a prepared split are read, and what reads them.

    ``states`` is the name of stored states of the captions; empty for tokens.

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
    stored = States.open(folder / STATES / states) if states else None

    def read(said: list[list[str]], most: int = most) -> dict[str, Any]:
        return stored.fields(said, most) if stored else read_tokens(text, most, said)

    def find() -> Prompts:
        fields = read([[caption] for caption in examples], 1)
        rows = {k: v[:, 0] for k, v in fields.items() if v.ndim > 1}
        return Prompts(tuple(examples), rows)

    text_info = stored.text if stored else text
    return dataclasses.replace(info, text=text_info, examples=find), read


def with_captions(
    info: DatasetInfo,
    build: Callable[..., pipeline.FiniteDataset],
    manifest: dict[str, Any],
    where: tuple[Path, str],
    captioned: bool,
    states: str,
) -> tuple[DatasetInfo, Callable[..., pipeline.FiniteDataset], tuple[str, ...]]:
    """What a dataset with captions, where a config wants them, is and is built by.

    ``where`` is the root of prepared data and the split. The further features that are
    read come last. For errors see ``open_captions``.
    """
    if states and not captioned:
        raise ValueError(f"dataset.states = {states!r} needs dataset.captioned = True")
    if not captioned:
        return info, build, ()
    folder = storage.prepared_folder(manifest["name"], where[0])
    info, read = open_captions(info, manifest, folder, states, where[1])

    def replaced(fields: pipeline.Fields) -> pipeline.Fields:
        said = [split_captions(stored) for stored in fields["caption"]]
        return {k: v for k, v in fields.items() if k != "caption"} | read(said)

    def build_captioned(
        info: DatasetInfo, source: pipeline.Source, **options: Any
    ) -> pipeline.FiniteDataset:
        found: pipeline.Source = pipeline.ChangedSource(source, replaced)
        if not states and isinstance(source, pipeline.MemorySource):
            found = pipeline.MemorySource(found.gather(np.arange(len(found))))
        return build(info, found, **options)

    return info, build_captioned, ("caption",)
