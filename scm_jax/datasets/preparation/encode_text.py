"""Captions -> stored states of a text encoder, which ``datasets.text_states`` reads.

A shard appears under its name by one rename and says in its own header which captions
and which encoder it is of, so the same command goes on where it was killed.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
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
    NULL,
    encoder_name,
    json_sha256,
    key_of,
    read_manifest,
)
from scm_jax.files.atomic import file_sha256, replacing, write_atomically

SHARD_CAPTIONS = 4096
BATCH = 32  # captions that the encoder sees at a time


def captions_of(folder: Path, split: str) -> list[str]:
    """The different captions of a prepared split, in order.

    Raises:
      ValueError: it has none.
    """
    source = pipeline.read_prepared(folder, split, 0, ("caption",))
    found: dict[str, None] = {}
    for start in range(0, len(source), 1024):
        indices = np.arange(start, min(start + 1024, len(source)))
        for stored in source.gather(indices)["caption"]:
            found.update(dict.fromkeys(split_captions(stored)))
    if not found:
        raise ValueError(f"the split {split!r} of {folder} has no captions")
    return list(found)


def encode(
    texts: Sequence[str],
    encoder: TextEncoder,
    folder: Path,
    split: str,
    shard_captions: int = SHARD_CAPTIONS,
) -> Path:
    """Writes the states of ``texts`` as one split of ``folder``, which it returns.

    Raises:
      ValueError: the folder holds states of another encoder, or states are not finite
        in the stored number format.
    """
    old: dict[str, Any] = {}
    with contextlib.suppress(FileNotFoundError):
        old = read_manifest(folder)
    identity = json.loads(json.dumps(encoder.identity))
    name = encoder_name(identity)
    if old and old["encoder"] != identity:
        raise ValueError(
            f"{folder} holds states of {encoder_name(old['encoder'])}, and these would "
            f"be of {name}: choose another --out_name"
        )
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, len(texts), shard_captions)
    say = progress.Progress(f"{folder.name} {split}", len(texts))
    shards = []
    for number, start in enumerate(starts):
        file = folder / f"{split}-{number:05d}-of-{len(starts):05d}.safetensors"
        part = list(texts[start : start + shard_captions])
        if not _is_whole(file, name, part):
            _write_shard(file, name, part, encoder)
        say.add(len(part))
        shards.append(
            {
                "file": file.name,
                "captions": len(part),
                "bytes": file.stat().st_size,
                "sha256": file_sha256(file),
            }
        )
    null = _write_shard(folder / NULL, name, [""], encoder)
    splits = {**old.get("splits", {}), split: shards}
    manifest = {
        "encoder": identity,
        "null_sha256": json_sha256(
            [null["states"].tolist(), null["pooled"][0].tolist()]
        ),
        "scale": _scale(folder, splits),
        "splits": splits,
    }
    sealed = {**manifest, "sha256": json_sha256(manifest)}
    write_atomically(folder / MANIFEST, json.dumps(sealed, indent=1) + "\n")
    say.end()
    return folder


def _is_whole(file: Path, name: str, texts: list[str]) -> bool:
    with contextlib.suppress(FileNotFoundError, safetensors.SafetensorError):
        with safetensors.safe_open(file, "np") as shard:
            return json.loads(shard.metadata()[HEADER]) == [name, texts]
    return False


def _write_shard(
    file: Path, name: str, texts: list[str], encoder: TextEncoder
) -> dict[str, np.ndarray]:
    dtype = encoder.identity["dtype"]
    states, pooled = [], []
    for text, found, vector in _encoded(texts, encoder):
        with np.errstate(over="ignore"):
            states.append(np.asarray(found, dtype))
        if not np.isfinite(states[-1]).all() or not len(found):
            raise ValueError(
                f"the states of the caption {text!r} are none or not finite in {dtype}:"
                " choose --dtype=float32"
            )
        pooled.append(np.asarray(vector, np.float32))
    joined = np.concatenate(states)
    tensors = {
        "states": joined,
        "pooled": np.stack(pooled),
        "ends": np.cumsum([len(found) for found in states]),
        "keys": np.array([key_of(text) for text in texts], np.uint64),
        "squares": np.square(joined, dtype=np.float64).sum(0),
    }
    with replacing(file) as unfinished:
        # One entry: several come in an order that differs from process to process.
        told = {HEADER: json.dumps([name, texts])}
        unfinished.write_bytes(save(tensors, told))
    return tensors


def _encoded(
    texts: list[str], encoder: TextEncoder
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    for start in range(0, len(texts), BATCH):
        batch = texts[start : start + BATCH]
        for text, (states, pooled) in zip(batch, encoder.encode(batch), strict=True):
            yield text, states, pooled


def _scale(folder: Path, splits: dict[str, Any]) -> list[float]:
    """Mean square of the states per channel, of ``train`` or the first split."""
    tokens, squares = 0, np.zeros(())
    for shard in splits.get("train", next(iter(splits.values()))):
        with safetensors.safe_open(folder / shard["file"], "np") as file:
            tokens += int(file.get_tensor("ends")[-1])
            squares = squares + file.get_tensor("squares")
    return (squares / tokens).tolist()
