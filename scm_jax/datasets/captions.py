"""Captions -> the tokens of a network's text tower.

A caption is cut into lower-case words and punctuation. A word of the vocabulary is one
token; any other is spelled: its UTF-8 bytes and an end mark, so that no prompt is lost.
Where training spells no word, such as in spoken digits, another word is an error.
"""

from __future__ import annotations

import collections
import functools
import re
from collections.abc import Iterable, Sequence

import numpy as np

from scm_jax.types import FIRST_BYTE, FIRST_WORD, TextInfo

_PIECE = re.compile(r"\w+|[^\w\s]")
_END_OF_WORD = 1


def split_words(caption: str) -> list[str]:
    """Lower-case words and punctuation.

    Example:
      >>> split_words("A red star, upper left")
      ['a', 'red', 'star', ',', 'upper', 'left']
    """
    return _PIECE.findall(caption.lower())


def make_vocabulary(
    captions: Iterable[str], min_count: int = 2, max_words: int | None = None
) -> tuple[str, ...]:
    """Words that occur at least ``min_count`` times, sorted; at most ``max_words``.

    The rarer words are spelled in training, too: this is what trains the bytes.

    Example:
      >>> make_vocabulary(["a red star", "a red moon"])
      ('a', 'red')
    """
    counts = collections.Counter(w for text in captions for w in split_words(text))
    frequent = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:max_words]
    return tuple(sorted(w for w, count in frequent if count >= min_count))


def tokenize(
    text: TextInfo, captions: Sequence[str], *, too_long: str = "refuse"
) -> np.ndarray:
    """Tokens of captions, ``(len(captions), text.length)`` int32, padded with 0.

    Args:
      text: has the vocabulary.
      captions: the captions; an empty one is the null caption.
      too_long: what becomes of a longer caption: ``refuse`` or ``cut``.

    Raises:
      ValueError: a caption is too long, or has a word that ``text`` lacks and does not
        spell.

    Example:
      >>> tokenize(TextInfo(4, ("a", "red")), ["a red é"]).tolist()
      Traceback (most recent call last):
      ValueError: caption 'a red é' has 5 tokens; the context holds 4: shorten it
      >>> tokenize(TextInfo(5, ("a", "red")), ["a red é", ""]).tolist()
      [[258, 259, 197, 171, 1], [0, 0, 0, 0, 0]]
    """
    if not text.spells and (unknown := unknown_words(text, captions)):
        raise ValueError(
            f"no caption of the training has {', '.join(map(repr, unknown))}: its "
            f"words are {', '.join(text.words)}"
        )
    tokens = np.zeros((len(captions), text.length), np.int32)
    for row, caption in zip(tokens, captions, strict=True):
        found = token_ids(text, caption)
        if len(found) > text.length and too_long != "cut":
            raise ValueError(
                f"caption {caption!r} has {len(found)} tokens; the context holds "
                f"{text.length}: shorten it"
            )
        row[: len(found)] = found[: text.length]
    return tokens


def token_ids(text: TextInfo, caption: str) -> list[int]:
    """All tokens of a caption, however many."""
    ids, found = _word_ids(text.words), []
    for word in split_words(caption):
        if word in ids:
            found.append(ids[word])
        else:
            found += [FIRST_BYTE + byte for byte in word.encode()]
            found.append(_END_OF_WORD)
    return found


@functools.lru_cache(maxsize=8)
def _word_ids(words: tuple[str, ...]) -> dict[str, int]:
    return {word: FIRST_WORD + i for i, word in enumerate(words)}


def unknown_words(text: TextInfo, captions: Iterable[str]) -> list[str]:
    """Words that the vocabulary lacks, in order, each once."""
    words, known = (w for c in captions for w in split_words(c)), set(text.words)
    return list(dict.fromkeys(word for word in words if word not in known))
