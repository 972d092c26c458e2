"""What the manifest of a prepared dataset says of its captions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from scm_jax.datasets.captions import make_vocabulary, token_ids
from scm_jax.datasets.preparation.readers.items import ItemError
from scm_jax.types import TextInfo

MAX_WORDS = 50_000  # of a vocabulary: the most frequent; the rest is spelled
NAMED = 5  # items without a caption that are named
EXAMPLES = 64


class Said(NamedTuple):
    """An item and its captions."""

    name: str
    captions: Sequence[str]


def reading_part(items: Iterable[Said], split: str, length: int = 0) -> dict[str, Any]:
    """How captions become tokens, from those of one split.

    Args:
      items: all items of the split.
      split: its name.
      length: most tokens of a caption; 0 for the 99.9th percentile, rounded up to a
        multiple of 8.

    Returns:
      For the manifest: ``words``, ``length``, ``most_tokens``, the ``split``, and some
      captions as ``examples``.
    """
    items = list(items)
    said = [text for item in items for text in item.captions]
    words = make_vocabulary(said, max_words=MAX_WORDS) or make_vocabulary(said, 1)
    counts = token_counts(TextInfo(0, words), said)
    if not length:
        percentile = float(np.percentile(counts, 99.9)) if said else 1.0
        length = 8 * math.ceil(percentile / 8)
    first = [item.captions[0] for item in items if item.captions]
    return {
        "split": split,
        "words": list(words),
        "length": length,
        "most_tokens": max(counts, default=0),
        "examples": list(dict.fromkeys(first))[:EXAMPLES],
    }


def split_part(items: Iterable[Said], reading: dict[str, Any]) -> dict[str, Any]:
    """What the manifest says of the captions of one split."""
    items = list(items)
    text = TextInfo(reading["length"], tuple(reading["words"]))
    said = [caption for item in items for caption in item.captions]
    without = [item.name for item in items if not item.captions]
    longer = sum(count > text.length for count in token_counts(text, said))
    return {
        "count": len(said),
        "most": max((len(item.captions) for item in items), default=0),
        "longer": longer,
        "without": len(without),
        "first_without": without[:NAMED],
    }


def check_missing(manifest: dict[str, Any], split: str, refuse: bool) -> None:
    """Raises ItemError if items of a prepared split lack what ``refuse`` demands."""
    facts = manifest["splits"][split].get("captions")
    if refuse and facts and facts["without"]:
        raise ItemError(
            f"the split {split!r} is prepared already, with {facts['without']:,} items "
            f"without a caption, the first: {facts['first_without'][0]}. Add captions, "
            "remove the split and prepare it again"
        )


def token_counts(text: TextInfo, captions: Iterable[str]) -> list[int]:
    """Tokens of each caption."""
    return [len(token_ids(text, caption)) for caption in captions]


def summary(manifest: dict[str, Any], split: str) -> list[str]:
    """What to know of the captions of a split, a line each; none without captions."""
    reading, facts = manifest.get("captions"), manifest["splits"][split].get("captions")
    if not reading or not facts:
        return []
    lines = [
        f"{facts['count']:,} captions, at most {facts['most']} of an item; "
        f"{len(reading['words']):,} words of the split {reading['split']!r}, at most "
        f"{reading['most_tokens']} tokens; the context holds {reading['length']}"
    ]
    if facts["longer"]:
        lines.append(
            f"{facts['longer']:,} captions are longer than the context and will be "
            "cut; --context_length=N makes it longer"
        )
    if facts["without"]:
        names = ", ".join(facts["first_without"])
        more = ", ..." if facts["without"] > len(facts["first_without"]) else ""
        lines.append(
            f"items without a caption: {facts['without']:,} ({names}{more}). They are "
            "read with the null caption, as if theirs were dropped; "
            "--missing_captions=refuse stops instead"
        )
    return lines
