"""What samples are asked to be: classes and prompts become fields of a ``Cond``."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from scm_jax.datasets import captions, text_states
from scm_jax.files import user_paths
from scm_jax.files.jsonl import write_json
from scm_jax.runs.directory.layout import RunDir
from scm_jax.types import DatasetInfo, Prompts, TextInfo, known_frames

logger = logging.getLogger(__name__)


def from_texts(
    text: TextInfo | None, texts: Sequence[str], *, too_long: str = "refuse"
) -> Prompts:
    """Prompts for a network with a text tower; an empty one is the null caption.

    Words that the training data lack are spelled in bytes, with a warning.

    Raises:
      ValueError: the network reads no captions or those of another encoder, a prompt is
        longer than the context and ``too_long`` is not ``cut``, or it has a word that
        the training data lack and does not spell.
    """
    if text is None:
        raise ValueError("this run was trained without captions: it takes no prompt")
    if not text.words:
        raise ValueError(
            f"this run reads the states of {text.encoder}, which does not run here: "
            "encode the prompts with `data encode-text` and pass its folder"
        )
    if (unknown := captions.unknown_words(text, texts)) and text.spells:
        logger.warning(
            "not in the captions that this run was trained on, and read letter by "
            "letter: %s",
            ", ".join(unknown),
        )
    tokens = captions.tokenize(text, texts, too_long=too_long)
    for prompt in texts:
        if len(captions.token_ids(text, prompt)) > text.length:
            logger.warning("prompt %r was cut to %d tokens", prompt, text.length)
    return Prompts(tuple(texts), {"tokens": tokens})


def read_states(path: str | os.PathLike[str], text: TextInfo | None) -> Prompts:
    """Prompts that ``data encode-text --prompts`` encoded, in the order of their file.

    Raises:
      FileNotFoundError: there are no states at ``path``.
      ValueError: they are damaged, or of another encoder than the run's.
    """
    states = text_states.States.open(user_paths.expand(path))
    if text is None or states.text.encoder != text.encoder:
        reads = "no captions" if text is None else text.encoder or "words by a tower"
        raise ValueError(
            f"{path} holds states of {states.text.encoder}, and this run reads {reads}:"
            " encode the prompts as the run's captions were"
        )
    fields = states.fields([[prompt] for prompt in states.texts], 1)
    rows = {name: a[:, 0] for name, a in fields.items() if a.ndim > 1}
    return Prompts(states.texts, rows)


def asked(
    info: DatasetInfo,
    num: int,
    labels: np.ndarray | int | None = None,
    prompts: Prompts | Sequence[str] | str | None = None,
) -> dict[str, np.ndarray]:
    """Fields of ``Cond`` for ``num`` samples, a row each.

    Args:
      info: the data that the network was trained on.
      num: number of samples.
      labels: one per sample or one for all; default is all classes in turn.
      prompts: taken in turn; default is the data's example captions.

    Raises:
      ValueError: labels or prompts that do not fit.
    """
    fields = {}
    if (found := _labels(info.num_classes, num, labels)) is not None:
        fields["label"] = found.astype(np.int32)
    if prompts is not None or info.text is not None:
        prompts = as_prompts(info, prompts)
        rows = np.arange(num) % len(prompts.texts)
        fields |= {name: values[rows] for name, values in prompts.fields.items()}
    return fields


def first_frames(
    info: DatasetInfo, consumes: Container[str], num: int, pixels: np.ndarray
) -> np.ndarray:
    """``Cond.frames`` of ``num`` clips whose first frames are told.

    Args:
      info: the data that the network was trained on.
      consumes: fields that the network reads.
      num: number of clips.
      pixels: uint8 ``(k, h, w, c)``, or ``(num, k, h, w, c)``.

    Raises:
      ValueError: the run reads no frames, or these do not fit its clips.
    """
    if "frames" not in consumes or info.from_pixels is None:
        raise ValueError(
            "this run takes no first frames: it was trained without "
            "network.use_frames = True, or its dataset cannot read pixels"
        )
    length, *frame = info.sample_shape
    pixels = np.asarray(pixels)
    number = pixels.shape[-4] if pixels.ndim in (4, 5) else 0
    fits = pixels.shape in ((number, *frame), (num, number, *frame))
    if not fits or pixels.dtype != np.uint8 or not 0 < number < length:
        raise ValueError(
            f"first frames are {pixels.dtype} {pixels.shape}: expected uint8 (k, "
            f"{', '.join(map(str, frame))}), or ({num}, k, ...), with k below {length}"
        )
    x = np.zeros((num, *info.sample_shape), np.float32)
    x[:, :number] = info.from_pixels(pixels) / info.sigma_data
    return np.asarray(known_frames(jnp.asarray(x), jnp.full((num,), number)))


def read_prompts(prompt: str | None, file: str | os.PathLike | None) -> tuple[str, ...]:
    """One prompt, or those of a text file, one a line; blank lines are left out.

    Raises:
      ValueError: both are given, or the file has no prompt.
    """
    if file is None or not os.fspath(file):
        assert prompt is not None
        return (prompt,)
    if prompt is not None:
        raise ValueError("give --prompt or --prompts, not both")
    lines = Path(file).read_text("utf-8").splitlines()
    if not (found := tuple(line.strip() for line in lines if line.strip())):
        raise ValueError(f"{file} has no prompt: write one a line")
    return found


def as_prompts(
    info: DatasetInfo, prompts: Prompts | Sequence[str] | str | None = None
) -> Prompts:
    """Prompts as a network reads them; by default the data's example captions."""
    if prompts is None and info.examples is not None:
        return info.examples()
    if prompts is None:
        raise ValueError(f"dataset {info.name!r} has no example captions: give prompts")
    if isinstance(prompts, Prompts):
        return prompts
    return from_texts(info.text, (prompts,) if isinstance(prompts, str) else prompts)


def _labels(
    num_classes: int, num: int, labels: np.ndarray | int | None
) -> np.ndarray | None:
    """One label per sample, checked; None for unconditional data."""
    if not num_classes:
        if labels is not None:
            raise ValueError("labels were asked for, but the data has no classes")
        return None
    if labels is None:
        return np.arange(num) % num_classes
    labels = np.broadcast_to(np.asarray(labels), (num,))
    bad = labels[(labels < 0) | (labels >= num_classes)]
    if bad.size:
        raise ValueError(f"label {bad[0]} is not in 0..{num_classes - 1}")
    return labels


def write_text(run_dir: RunDir, text: TextInfo | None) -> None:
    """Keeps with the run what its captions mean: ``text.json``.

    Raises:
      ValueError: the run was trained with another vocabulary or encoder.
    """
    if text is None:
        return
    saved = read_text(run_dir)
    if saved is not None and saved != text:
        raise ValueError(
            f"{run_dir.text_path}: the captions of this dataset are read differently "
            f"({_summary(text)}) than those that the run was trained on "
            f"({_summary(saved)}): prepare the former data again, or use another "
            "workdir"
        )
    values = {f.name: getattr(text, f.name) for f in dataclasses.fields(text)}
    write_json(run_dir.text_path, {k: v for k, v in values.items() if k != "null"})


def read_text(run_dir: RunDir) -> TextInfo | None:
    """What ``write_text`` kept, without stored states; None where there is nothing."""
    try:
        values: dict[str, Any] = json.loads(run_dir.text_path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{run_dir.text_path} is damaged: {error}") from error
    tuples = {k: tuple(v) for k, v in values.items() if isinstance(v, list)}
    return TextInfo(**{**values, **tuples})


def _summary(text: TextInfo) -> str:
    return text.encoder or f"{len(text.words)} words, at most {text.length} tokens"
