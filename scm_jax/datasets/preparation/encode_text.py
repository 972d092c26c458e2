"""Captions -> stored states of a text encoder, which ``datasets.text_states`` reads.

A shard appears under its name by one rename and says in its own header which captions
and which encoder it is of, so the same command goes on where it was killed.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from safetensors.numpy import save

from scm_jax.datasets import pipeline
from scm_jax.datasets.captioned import split_captions
from scm_jax.datasets.preparation import progress
from scm_jax.datasets.preparation.text_encoders import TextEncoder
from scm_jax.datasets.text_states import (
    HEADER,
    MANIFEST,
    encoder_name,
    read_manifest,
)
from scm_jax.files.atomic import file_sha256, json_sha256, replacing, write_atomically

SHARD_CAPTIONS = 4096
BATCH = 32  # captions that the encoder sees at a time


def captions_of(folder: Path, split: str) -> list[str]:
    """The different captions of a prepared split, in order; a ValueError for none."""
    source = pipeline.read_prepared(folder, split, 0, ("caption",))
    found: dict[str, None] = {}
    for start in range(0, len(source), 1024):
        indices = np.arange(start, min(start + 1024, len(source)))
        for stored in source.gather(indices)["caption"]:
            found.update(dict.fromkeys(split_captions(stored)))
    return list(found)


def encode(
    texts: Sequence[str],
    encoder: TextEncoder,
    folder: Path,
    split: str,
    shard_captions: int = SHARD_CAPTIONS,
) -> Path:
    """Writes the states of ``texts``, and of none, as one split of ``folder``.

    Raises:
      ValueError: the folder holds states of another encoder, or states are not finite
        in the stored number format.
    """
    old: dict[str, Any] = {}
    with contextlib.suppress(FileNotFoundError):
        old = read_manifest(folder)
    name = encoder_name(encoder.identity)
    if old and encoder_name(old["encoder"]) != name:
        raise ValueError(
            f"{folder} holds states of {encoder_name(old['encoder'])}, and these would "
            f"be of {name}: choose another --out_name"
        )
    folder.mkdir(parents=True, exist_ok=True)
    said = ["", *(text for text in texts if text)]
    starts = range(0, len(said), shard_captions)
    say = progress.Progress(f"{folder.name} {split}", len(said))
    shards = []
    for number, start in enumerate(starts):
        file = folder / f"{split}-{number:05d}-of-{len(starts):05d}.safetensors"
        part = said[start : start + shard_captions]
        if not _is_whole(file, [name, part]):
            _write_shard(file, name, part, encoder)
        say.add(len(part))
        facts = {"bytes": file.stat().st_size, "sha256": file_sha256(file)}
        shards.append({"file": file.name, "captions": len(part), **facts})
    splits = {**old.get("splits", {}), split: shards}
    scale = _scale(folder, splits)
    found = {"encoder": encoder.identity, "scale": scale, "splits": splits}
    sealed = {**found, "sha256": json_sha256(found)}
    write_atomically(folder / MANIFEST, json.dumps(sealed, indent=1) + "\n")
    say.end()
    return folder


def _is_whole(file: Path, header: list[Any]) -> bool:
    with contextlib.suppress(FileNotFoundError, safetensors.SafetensorError):
        with safetensors.safe_open(file, "np") as shard:
            return json.loads(shard.metadata()[HEADER]) == header
    return False


def _write_shard(file: Path, name: str, texts: list[str], encoder: TextEncoder) -> None:
    dtype, found = encoder.identity["dtype"], []
    for start in range(0, len(texts), BATCH):
        found += encoder.encode(texts[start : start + BATCH])
    with np.errstate(over="ignore"):
        states = [np.asarray(each, dtype) for each, _ in found]
    for text, each in zip(texts, states, strict=True):
        if not len(each) or not np.isfinite(each).all():
            raise ValueError(
                f"the states of the caption {text!r} are none or not finite in {dtype}:"
                " choose --dtype=float32"
            )
    tensors = {
        "states": np.concatenate(states),
        "pooled": np.stack([np.asarray(pooled, np.float32) for _, pooled in found]),
        "ends": np.cumsum([len(each) for each in states]),
    }
    tensors["squares"] = np.square(tensors["states"], dtype=np.float64).sum(0)
    # One entry: several come in an order that differs from process to process.
    told = {HEADER: json.dumps([name, texts])}
    with replacing(file) as unfinished:
        unfinished.write_bytes(save(tensors, told))


def _scale(folder: Path, splits: dict[str, Any]) -> list[float]:
    """Mean square of the states per channel, of ``train`` or the first split."""
    tokens, squares = 0, np.zeros(())
    for shard in splits.get("train", next(iter(splits.values()))):
        with safetensors.safe_open(folder / shard["file"], "np") as file:
            tokens += int(file.get_tensor("ends")[-1])
            squares = squares + file.get_tensor("squares")
    return (squares / tokens).tolist()
