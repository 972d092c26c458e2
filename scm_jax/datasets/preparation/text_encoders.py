"""Text encoders by name; a further one is a class as below and a line of ``ENCODERS``.

None of them runs in a training: ``encode_text`` stores what they compute.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from scm_jax.datasets.captions import split_words
from scm_jax.types import Registry, check_choice, lookup


@dataclasses.dataclass(frozen=True)
class Settings:
    """How captions are encoded; empty values are the encoder's own."""

    model: str = ""  # folder or name of the weights
    revision: str = ""  # of a model that is given by name
    # Hidden states, from 0 for the embeddings or negative from the last; or ``last``,
    # the output with its final norm.
    layer: str = ""
    max_length: int = 0  # tokens with the prefix; longer captions are cut
    prefix: str = ""  # put before each caption, also the empty one
    dtype: str = "float16"  # of the stored states


class TextEncoder(Protocol):
    """Captions -> states of true length.

    ``identity`` is all that decides them, ready for JSON: ``name``, ``revision``,
    ``sha256`` of the weights, ``tokenizer_sha256``, ``layer``, ``dtype``,
    ``max_length``, ``prefix``, and the channels ``width`` and ``pooled``.
    """

    identity: dict[str, Any]

    def encode(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """States ``(n, width)`` and pooled vector ``(pooled,)`` of each text."""
        ...


class HashedWords:
    """Words as fixed random vectors: no model, to try the way from text to samples.

    A caption ends with a token of its own, which is all that the empty one has.
    """

    def __init__(self, settings: Settings):
        none = {"revision": "1", "sha256": "none", "tokenizer_sha256": "none"}
        own = {"layer": "last", "max_length": settings.max_length or 32}
        own |= {"dtype": settings.dtype, "prefix": settings.prefix}
        size = {"width": 32, "pooled": 32}
        self.identity: dict[str, Any] = {"name": "hashed_words", **none, **own, **size}

    def encode(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        found = []
        for text in texts:
            words = split_words(self.identity["prefix"] + text)
            kept = [*words[: self.identity["max_length"] - 1], "\n"]
            states = np.stack([self._vector(word) for word in kept])
            found.append((states, states.mean(0)))
        return found

    def _vector(self, word: str) -> np.ndarray:
        seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8])
        rng = np.random.default_rng(seed)
        return rng.standard_normal(self.identity["width"], np.float32)


_TRANSFORMERS = "scm_jax.datasets.preparation.transformers_text"
ENCODERS = Registry(
    clip=f"{_TRANSFORMERS}.make_clip",
    t5=f"{_TRANSFORMERS}.make_t5",
    umt5=f"{_TRANSFORMERS}.make_umt5",
    gemma=f"{_TRANSFORMERS}.make_gemma",
    hashed=HashedWords,
)


def make_encoder(kind: str, settings: Settings) -> TextEncoder:
    """The encoder of a name; a MissingPackageError says what must be installed."""
    check_choice(settings.dtype, ("float16", "float32"), "--dtype")
    return lookup(ENCODERS, kind, "--encoder")(settings)
