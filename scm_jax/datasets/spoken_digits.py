"""Digits that eSpeak NG speaks, a word of half a second at 8 kHz.

Item ``i`` of a split is said by a speaker that is a function of ``(seed, split, i)``:
accent, voice, pitch and rate. Every fourth voice is kept for the split ``test``.
``data/spoken_digits/README.md`` is the card.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import Any

import numpy as np

from scm_jax.datasets import pipeline, speech
from scm_jax.datasets.drawn import DrawnSource
from scm_jax.datasets.front_ends import SIGMA_DATA, Whitened
from scm_jax.datasets.sound_clips import fitted, resampled, scaled, trimmed
from scm_jax.datasets.speech import ACCENTS, VOICES, Speaker
from scm_jax.files import shipped
from scm_jax.types import DatasetInfo, lookup

NAME = "spoken_digits"
WORDS = tuple("zero one two three four five six seven eight nine".split())
RATE = 8_000  # samples a second
PEAK = 0.5  # of every word
PITCHES, RATES = (20, 80), (170, 230)  # of the speakers, the latter words a minute
HELD_OUT_EVERY = 4


@functools.cache
def open_front_end(name: str) -> Whitened:
    """A front end of ``data/spoken_digits/front_ends.json``, for a clip of one digit.

    The moments of every bin were measured by ``measure_front_ends.py`` beside it.
    """
    path = shipped.folder("data") / NAME / "front_ends.json"
    known = json.loads(path.read_text(encoding="utf-8"))
    found = lookup(known, name, "dataset.front_end")
    return Whitened.from_manifest(found)


@dataclasses.dataclass(frozen=True)
class SpeechSource(DrawnSource):
    """Spoken digits as a source of a dataset."""

    dataset = NAME
    stream = 32
    front_end: str = "log_mel"

    def said(self, indices: np.ndarray) -> tuple[np.ndarray, list[Speaker]]:
        """Digits ``(n,)`` and who says them."""
        u = self.uniforms(indices, 5)
        number = np.arange(len(VOICES))
        held_out = number % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
        voices = np.array(VOICES)[held_out == (self.split == "test")]
        speakers = [
            Speaker(
                ACCENTS[int(a * len(ACCENTS))],
                str(voices[int(v * len(voices))]),
                int(PITCHES[0] + p * (PITCHES[1] - PITCHES[0])),
                int(RATES[0] + r * (RATES[1] - RATES[0])),
            )
            for a, v, p, r in u[:, 1:]
        ]
        return (u[:, 0] * len(WORDS)).astype(np.int64), speakers

    def sound(self, indices: np.ndarray) -> np.ndarray:
        """Clips ``(n, samples)`` float32."""
        samples = open_front_end(self.front_end).front_end.samples
        digits, speakers = self.said(indices)
        words = map(say_digit, digits, speakers)
        return np.stack([fitted(word, samples, RATE) for word in words])

    def gather(self, indices: np.ndarray) -> pipeline.Fields:
        """``values`` of the front end, float32, and ``label`` int64, the digit."""
        values = open_front_end(self.front_end).front_end.values(self.sound(indices))
        return {"values": values.astype(np.float32), "label": self.said(indices)[0]}


def say_digit(digit: int, speaker: Speaker) -> np.ndarray:
    """A digit in float32 at ``RATE``, trimmed, with the same peak as all others."""
    samples, rate = speech.engine()(WORDS[digit], speaker)
    sound = resampled(samples / np.float32(32768), rate, RATE)
    return scaled(trimmed(sound, RATE), PEAK)


def make_spoken_digits(
    split: str = "train",
    *,
    front_end: str = "log_mel",
    num_items: int = 20_000,
    conditional: bool = True,
) -> pipeline.LazyDataset:
    """Ten spoken digits; needs eSpeak NG (extra ``speech``, or its program).

    Args:
      split: ``train`` or ``test``, of other voices; no slices.
      front_end: a key of ``data/spoken_digits/front_ends.json``.
      num_items: how many clips there are; ``test`` has a tenth of them.
      conditional: give the digit, too.
    """
    num_items = num_items if split == "train" else -(-num_items // 10)
    source = SpeechSource(split, num_items, front_end)
    return spoken(NAME, front_end, source, len(WORDS) if conditional else 0)


def spoken(
    name: str, front_end: str, source: Any, num_classes: int = 0, **more: Any
) -> pipeline.LazyDataset:
    """A dataset of what is spoken, by its source and the front end of the source.

    ``more`` are further fields of ``DatasetInfo``.
    """
    seen = open_front_end(front_end)
    info = DatasetInfo(
        name=name,
        sample_shape=seen.front_end.shape,
        num_classes=num_classes,
        sigma_data=SIGMA_DATA,
        num_items=len(source),
        description=f"{front_end} at 8 kHz, each bin with standard deviation 0.5",
        to_pixels=seen.to_pixels,
        to_sound=seen.to_sound,
        sample_rate=RATE,
        quantization="sound, 16 bits",
        **more,
    )

    def decode(fields: pipeline.Fields) -> tuple[Any, Any]:
        x = seen.whiten(fields["values"])
        return x, fields["label"].astype(np.int32) if num_classes else None

    def open_data() -> pipeline.FiniteDataset:
        return pipeline.FiniteDataset(info, pipeline.kept_in_memory(source), decode)

    return pipeline.LazyDataset(info, open_data)
