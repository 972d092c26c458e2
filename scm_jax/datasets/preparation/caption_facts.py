"""What the manifest of a prepared dataset says of its captions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from scm_jax.datasets.captions import make_vocabulary, token_ids
from scm_jax.types import TextInfo

MAX_WORDS = 50_000  # of a vocabulary: the most frequent; the rest is spelled
NAMED, EXAMPLES = 5, 64  # items without a caption, and captions, that are listed


Said = tuple[str, Sequence[str]]  # the name of an item, and its captions


def reading_part(items: list[Said], split: str, length: int = 0) -> dict[str, Any]:
    """How captions become tokens, from all items of one split.

    ``length`` is the most tokens of a caption; 0 for the 99.9th percentile, rounded up
    to a multiple of 8.
    """
    said = [text for _, captions in items for text in captions]
    words = make_vocabulary(said, max_words=MAX_WORDS) or make_vocabulary(said, 1)
    counts = [len(token_ids(TextInfo(0, words), text)) for text in said] or [1]
    first = dict.fromkeys(captions[0] for _, captions in items if captions)
    return {
        "split": split,
        "words": list(words),
        "length": length or 8 * math.ceil(float(np.percentile(counts, 99.9)) / 8),
        "most_tokens": max(counts),
        "examples": list(first)[:EXAMPLES],
    }


def split_part(items: list[Said], reading: dict[str, Any]) -> dict[str, Any]:
    """What the manifest says of the captions of one split."""
    text = TextInfo(reading["length"], tuple(reading["words"]))
    said = [caption for _, captions in items for caption in captions]
    without = [name for name, captions in items if not captions]
    return {
        "count": len(said),
        "most": max(len(captions) for _, captions in items),
        "longer": sum(len(token_ids(text, caption)) > text.length for caption in said),
        "without": len(without),
        "first_without": without[:NAMED],
    }


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
            f"captions longer than the context: {facts['longer']:,}. They will be cut; "
            "--context_length=N makes it longer"
        )
    if facts["without"]:
        more = ", ..." if facts["without"] > NAMED else ""
        lines.append(
            f"items without a caption: {facts['without']:,} "
            f"({', '.join(facts['first_without'])}{more}). They are read with the "
            "null caption, as if theirs were dropped; --missing_captions=refuse stops"
        )
    return lines
