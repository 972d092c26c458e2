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
from scm_jax.types import Registry, lookup


@dataclasses.dataclass(frozen=True)
class Settings:
    """How captions are encoded; zero and empty values are the encoder's own.

    Attributes:
      model: folder or name of the weights.
      revision: of a model that is given by name.
      layer: hidden states that are taken, from 0 for the embeddings, or negative from
        the last layer; ``last`` for the output with its final norm.
      max_length: most tokens of a caption, the prefix included; longer ones are cut.
      prefix: instruction that is put before each caption, also the empty one.
      dtype: of the stored states.
    """

    model: str = ""
    revision: str = ""
    layer: str = ""
    max_length: int = 0
    prefix: str = ""
    dtype: str = "float16"


class TextEncoder(Protocol):
    """Captions -> states of true length.

    Attributes:
      identity: all that decides the states, ready for JSON: ``name``, ``revision``,
        ``sha256`` of weights and ``tokenizer_sha256``, ``layer``, ``dtype``,
        ``max_length``, ``prefix``, ``width``, ``pooled``.
    """

    @property
    def identity(self) -> dict[str, Any]: ...

    def encode(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """States ``(n, width)`` and pooled vector ``(pooled,)`` of each text."""
        ...


class HashedWords:
    """Words as fixed random vectors: no model, to try the way from text to samples.

    A caption ends with a token of its own, which is all that the empty one has.
    """

    WIDTH = 32

    def __init__(self, settings: Settings):
        self.identity: dict[str, Any] = {
            "name": "hashed_words",
            "revision": "1",
            "sha256": "none",
            "tokenizer_sha256": "none",
            "layer": "last",
            "dtype": settings.dtype,
            "max_length": settings.max_length or 32,
            "prefix": settings.prefix,
            "width": self.WIDTH,
            "pooled": self.WIDTH,
        }

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
        return np.random.default_rng(seed).standard_normal(self.WIDTH, np.float32)


_TRANSFORMERS = "scm_jax.datasets.preparation.transformers_text"
ENCODERS = Registry(
    clip=f"{_TRANSFORMERS}.make_clip",
    t5=f"{_TRANSFORMERS}.make_t5",
    gemma=f"{_TRANSFORMERS}.make_gemma",
    hashed=HashedWords,
)


def make_encoder(kind: str, settings: Settings) -> TextEncoder:
    """The encoder of a name.

    Raises:
      ValueError: no such encoder or settings.
      MissingPackageError: it needs packages that are not installed.
    """
    make = lookup(ENCODERS, kind, "--encoder")
    if settings.dtype not in ("float16", "float32"):
        raise ValueError(f"dtype = {settings.dtype!r} is not one of float16, float32")
    return make(settings)
