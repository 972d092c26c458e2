"""What captions say of drawn shapes: words, their legal values, phrases."""

from __future__ import annotations

import numpy as np

from scm_jax.datasets.shape_drawing import BACKGROUNDS, COLORS, SHAPES, Attributes

SIZES = ("small", "medium", "large")
PLACES = (
    ("upper left", "top", "upper right"),
    ("left", "center", "right"),
    ("lower left", "bottom", "lower right"),
)

CAPTION_LENGTH = 16
NUM_CAPTIONS = 4
_SYNONYMS = {"small": "little", "large": "big", "center": "middle"}

# What each key of ``words`` can be; "" where there is no second shape.
LEGAL: dict[str, tuple[str, ...]] = {
    "size": SIZES,
    "color": tuple(COLORS),
    "shape": tuple(SHAPES),
    "second_color": ("", *COLORS),
    "second": ("", *SHAPES),
    "background_color": tuple(COLORS),
    "background": BACKGROUNDS,
    "place": tuple(place for row in PLACES for place in row),
}


def targets(item: Attributes) -> dict[str, np.ndarray]:
    """``words`` of all rows, as indices into ``LEGAL``."""
    said = [words(item, row) for row in range(len(item.size))]
    return {
        key: np.array([legal.index(w[key]) for w in said])
        for key, legal in LEGAL.items()
    }


def words(item: Attributes, row: int = 0) -> dict[str, str]:
    """What a caption can say of one item; ``second`` is empty without a second shape.

    Its keys are those of the frozen classifier's heads.
    """
    colors, shapes = list(COLORS), list(SHAPES)
    second, second_color = int(item.second[row]), ""
    if second >= 0:
        second_color = colors[item.second_color[row]]
    right, down = item.center[row]
    height, side = np.searchsorted((-0.15, 0.15), (down, right))
    return {
        "size": SIZES[int(np.searchsorted((0.46, 0.56), item.size[row]))],
        "color": colors[item.color[row]],
        "shape": shapes[item.shape[row]],
        "second_color": second_color,
        "second": shapes[second] if second >= 0 else "",
        "background_color": colors[item.background_color[row]],
        "background": BACKGROUNDS[item.background[row]],
        "place": PLACES[height][side],
    }


def caption(item: Attributes, row: int = 0) -> str:
    """One item in words, such as ``a small red star on blue stripes, upper left``."""
    return phrase(**words(item, row))


def phrase(
    *,
    shape: str,
    color: str = "",
    size: str = "",
    second: str = "",
    second_color: str = "",
    background: str = "",
    background_color: str = "",
    place: str = "",
) -> str:
    """A caption that says what is given.

    Example:
      >>> phrase(shape="star", color="red", place="upper left")
      'a red star, upper left'
    """
    kind = " ".join(word for word in (size, color, shape) if word)
    text = f"{'an' if kind.startswith('orange') else 'a'} {kind}"
    if second:
        text += f" and a tiny {second_color} {second}"
    if background:
        article = "a " if background == "gradient" else ""
        text += f" on {article}{background_color} {background}"
    return f"{text}, {place}" if place else text


def captions(item: Attributes, row: int = 0) -> tuple[str, ...]:
    """The full caption, and three that leave something out or use other words."""
    said = words(item, row)
    color, shape, place = said["color"], said["shape"], said["place"]
    back = {k: said[k] for k in ("background", "background_color")}
    second = {k: said[k] for k in ("second", "second_color")}
    other = {k: _SYNONYMS.get(said[k], said[k]) for k in ("size", "place")}
    return (
        phrase(**said),
        phrase(shape=shape, color=color, **second, **back, **other),
        phrase(shape=shape, color=color, size=other["size"], **back),
        phrase(shape=shape, color=color, place=place if item.angle[row] > 0 else ""),
    )


def vocabulary() -> tuple[str, ...]:
    """All words of ``captions``."""
    lists = (SIZES, COLORS, SHAPES, BACKGROUNDS, *PLACES, _SYNONYMS.values())
    said = {word for names in lists for name in names for word in name.split()}
    return tuple(sorted(said | {"a", "an", "and", "tiny", "on", ","}))
