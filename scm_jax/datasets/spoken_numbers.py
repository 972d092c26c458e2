"""Two to four spoken digits from a written prompt: "three one four".

Digit ``k`` of a clip begins at sample ``4096 k``, all by one speaker; the rest is
silent. A fifth of all sequences is kept out of the training.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from scm_jax.datasets import pipeline
from scm_jax.datasets.captions import tokenize
from scm_jax.datasets.drawn import DrawnSource
from scm_jax.datasets.sound_clips import fitted
from scm_jax.datasets.speech import VOICES, Speaker
from scm_jax.datasets.spoken_digits import (
    RATE,
    WORDS,
    SpeechSource,
    open_front_end,
    say_digit,
    spoken,
)
from scm_jax.types import Prompts, Questions, TextInfo

NAME = "spoken_numbers"
FRONT_END = "log_mel_4"
SLOT = 4_096  # samples from the start of one digit to that of the next
WORD = 3_968  # samples of a digit, as in ``spoken_digits``
SAMPLES = 3 * SLOT + WORD  # 128 frames
LENGTHS = (2, 4)
NONE = -1  # where a sequence has no digit

_WORDS = sorted({*WORDS, "says", *(voice.lower() for voice in VOICES)})
TEXT = TextInfo(length=6, words=tuple(_WORDS), spells=False)


def held_out(digits: np.ndarray) -> np.ndarray:
    """Whether sequences ``(n, 4)``, padded with -1, are kept out of the training.

    Example:
      >>> held_out(np.array([[3, 1, 4, -1], [3, 1, 5, -1]])).tolist()
      [True, False]
    """
    return (digits + 1) @ np.array([1, 3, 4, 2]) % 5 == 0


@dataclasses.dataclass(frozen=True)
class NumberSource(DrawnSource):
    """Spoken sequences as a source of a dataset.

    ``combinations`` are those of ``Questions``: ``seen`` or ``held_out``.
    """

    dataset = NAME
    stream = 34
    combinations: str = "seen"

    def said(self, indices: np.ndarray) -> tuple[np.ndarray, list[Speaker]]:
        """Digits ``(n, 4)``, padded with -1, and who says them."""
        _, speakers = SpeechSource(split=self.split, seed=self.seed).said(indices)
        u = self.uniforms(indices, 5)
        shortest, longest = LENGTHS
        length = shortest + (u[:, 0] * (longest - shortest + 1)).astype(np.int64)
        digits = (u[:, 1:] * len(WORDS)).astype(np.int64)
        digits = np.where(np.arange(longest) < length[:, None], digits, NONE)
        # Other sequences get another first digit until they belong here.
        wanted = self.combinations == "held_out"
        for _ in WORDS:
            wrong = held_out(digits) != wanted
            digits[wrong, 0] = (digits[wrong, 0] + 1) % len(WORDS)
        return digits, speakers

    def sound(self, indices: np.ndarray) -> np.ndarray:
        """Clips ``(n, samples)`` float32."""
        clips = np.zeros((len(indices), LENGTHS[1], SLOT), np.float32)
        for row, digits, speaker in zip(clips, *self.said(indices), strict=True):
            for slot, digit in zip(row, digits[digits != NONE], strict=False):
                slot[:WORD] = fitted(say_digit(digit, speaker), WORD, RATE)
        return clips.reshape(len(indices), -1)[:, :SAMPLES]

    def gather(self, indices: np.ndarray) -> pipeline.Fields:
        """``values`` float32, ``tokens`` ``(n, 2, length)``: without and with voice."""
        values = open_front_end(FRONT_END).front_end.values(self.sound(indices))
        digits, speakers = self.said(indices)
        said = [
            text
            for row, speaker in zip(digits, speakers, strict=True)
            for text in (written(row), f"{speaker.voice} says {written(row)}")
        ]
        tokens = tokenize(TEXT, said).reshape(len(values), 2, TEXT.length)
        return {"values": values.astype(np.float32), "tokens": tokens}


def written(digits: np.ndarray) -> str:
    """The prompt of a sequence.

    Example:
      >>> written(np.array([3, 1, 4, -1]))
      'three one four'
    """
    return " ".join(WORDS[digit] for digit in digits if digit != NONE)


def questions(num: int, combinations: str, text: TextInfo = TEXT) -> Questions:
    """Sequences of the split ``test``, of voices that no training clip has."""
    source, indices = NumberSource("test", num, combinations), np.arange(num)
    digits, _ = source.said(indices)
    texts = tuple(map(written, digits))
    prompts = Prompts(texts, {"tokens": tokenize(text, texts)})
    seen = open_front_end(FRONT_END)
    pixels = seen.to_pixels(seen.to_x(source.sound(indices)))
    return Questions(prompts, {"digits": digits}, pixels)


def make_spoken_numbers(
    split: str = "train", *, num_items: int = 15_000
) -> pipeline.LazyDataset:
    """Sequences of spoken digits with captions; needs eSpeak NG, as ``spoken_digits``.

    Each clip has two captions, the second of which names the voice, as in "f2 says
    three one four"; a visit draws one of them.

    Args:
      split: ``train`` or ``test``, of other voices; no slices.
      num_items: how many clips there are; ``test`` has a tenth of them.
    """
    num_items = num_items if split == "train" else -(-num_items // 10)
    return spoken(
        NAME,
        FRONT_END,
        NumberSource(split, num_items),
        text=TEXT,
        examples=functools.cache(lambda: questions(64, "seen").prompts),
        questions=questions,
    )
