"""The pixels of the dataset ``shapes``, from the attributes of its items.

Pixels are the same on every machine: all that is done to them (sums, products, roots,
comparisons, roundings) is defined by IEEE 754 to the last bit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

# ``(u, v) -> distance`` from the edge, negative inside, for a shape that about fills
# the unit disc; u points right and v down. Away from the edge it may be less than the
# true distance: only the last pixel before the edge is blended.
Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _norm(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.sqrt(u * u + v * v)


def _sides(u: np.ndarray, v: np.ndarray, num: int) -> list[np.ndarray]:
    """Heights over the lines through 0 that ``num`` sides are parallel to."""
    angles = 2 * np.pi * (np.arange(num) + 0.5) / num
    normals = np.stack([np.sin(angles), -np.cos(angles)], -1).astype(np.float32)
    return [a * u + b * v for a, b in normals]


def _star(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Five points: inside of at least four of the five lines of a pentagram."""
    first, *others = _sides(u, v, 5)
    largest, second = first, np.full_like(first, -np.inf)
    for height in others:
        second = np.maximum(second, np.minimum(largest, height))
        largest = np.maximum(largest, height)
    return second - np.float32(0.34)


def _cross(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    u, v = np.abs(u), np.abs(v)
    long, wide = np.maximum(u, v), np.minimum(u, v)
    return np.maximum(long - np.float32(0.95), wide - np.float32(0.31))


def _heart(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """A square on its corner with a half disc on each of its upper sides."""
    u, v = np.abs(u), v + np.float32(0.1)
    side = np.float32(0.56)
    along = (u + v) * np.float32(np.sqrt(0.5))
    across = (u - v) * np.float32(np.sqrt(0.5))
    square = np.maximum(np.abs(along), np.abs(across)) - side
    disc = _norm(along, across - side) - side
    return np.minimum(square, disc)


def _moon(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    u = u + np.float32(0.15)
    bite = np.float32(0.8) - _norm(u - np.float32(0.55), v)
    return np.maximum(_norm(u, v) - np.float32(0.98), bite)


SHAPES: dict[str, Distance] = {
    "circle": lambda u, v: _norm(u, v) - np.float32(0.9),
    "ring": lambda u, v: np.abs(_norm(u, v) - np.float32(0.72)) - np.float32(0.23),
    "square": lambda u, v: np.maximum(np.abs(u), np.abs(v)) - np.float32(0.78),
    "triangle": lambda u, v: np.max(_sides(u, v, 3), axis=0) - np.float32(0.55),
    "hexagon": lambda u, v: np.max(np.abs(_sides(u, v, 6)[:3]), 0) - np.float32(0.84),
    "star": _star,
    "cross": _cross,
    "heart": _heart,
    "moon": _moon,
    # Between two circles that meet in two points.
    "leaf": lambda u, v: _norm(np.abs(u) + np.float32(0.75), v) - np.float32(1.3),
}
NUM_CLASSES = len(SHAPES)

# The order of the hue circle: backgrounds keep two steps of it from their shape.
COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.87, 0.14, 0.16),
    "orange": (0.96, 0.53, 0.10),
    "yellow": (0.98, 0.87, 0.16),
    "green": (0.20, 0.68, 0.26),
    "cyan": (0.12, 0.78, 0.82),
    "blue": (0.14, 0.32, 0.88),
    "purple": (0.53, 0.20, 0.76),
    "pink": (0.98, 0.52, 0.74),
}

BACKGROUNDS = ("gradient", "stripes", "checks", "dots")


# Pixels are ``0.5 + CONTRAST * (paint - MEAN_PAINT)`` in 0..1. With these constants,
# measured, they have mean 0 and standard deviation 0.5 where 0..1 becomes [-1, 1].
CONTRAST = 0.89
MEAN_PAINT = 0.52


@dataclasses.dataclass(frozen=True, eq=False)
class Attributes:
    """What is seen on some items: arrays of length ``n``, named values as indices."""

    shape: np.ndarray  # in SHAPES: the class, which items take in turn
    color: np.ndarray  # in COLORS, as all colours are
    size: np.ndarray  # radius of the shape over half the image
    center: np.ndarray  # (n, 2), right and down, in halves of the image from its middle
    angle: np.ndarray  # rotation, clockwise, in radians
    shadow: np.ndarray  # strength of the shadow, 0 for none
    background: np.ndarray  # in BACKGROUNDS
    background_color: np.ndarray
    second: np.ndarray  # in SHAPES, the smaller shape on the other side; -1 for none
    second_color: np.ndarray
    uniform: np.ndarray  # (n, k) numbers in [0, 1) behind all that has no name


_PALETTE = np.array(list(COLORS.values()), np.float32)


def draw(item: Attributes, resolution: int) -> np.ndarray:
    """Images of ``item``, ``(n, resolution, resolution, 3)`` uint8."""
    # Colours as planes, for numpy's inner loop; channels last only at the end.
    image = _background(item, resolution)
    small = np.flatnonzero(item.second >= 0)
    if len(small):
        image[small] = _add(image[small], _second(item, small), resolution)
    image = _add(image, item, resolution)
    image = np.float32(CONTRAST) * (image - np.float32(MEAN_PAINT)) + np.float32(0.5)
    levels = np.floor(np.clip(image, 0, 1) * np.float32(255) + np.float32(0.5))
    return np.ascontiguousarray(levels.astype(np.uint8).transpose(0, 2, 3, 1))


def _column(values: np.ndarray) -> np.ndarray:
    # (n,) -> (n, 1, 1), beside planes of pixels
    return np.asarray(values, np.float32)[:, None, None]


def _grid(
    center: np.ndarray, angle: np.ndarray, scale: np.ndarray, resolution: int
) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates ``u, v`` ``(n, h, w)`` around a centre, turned and in units of scale.

    ``(u, v) = R(-angle) ((x, y) - center) / scale``: the sum of a term per column and
    one per row.
    """
    axis = (2 * np.arange(resolution) + 1) / resolution - 1
    x = (axis[None] - center[:, :1]) / scale[:, None]
    y = (axis[None] - center[:, 1:]) / scale[:, None]
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    terms = (cos * x, sin * y, -sin * x, cos * y)
    ux, uy, vx, vy = (term.astype(np.float32) for term in terms)
    return ux[:, None, :] + uy[:, :, None], vx[:, None, :] + vy[:, :, None]


def _background(item: Attributes, resolution: int) -> np.ndarray:
    """``(n, 3, h, w)``: two tones of a colour, mixed by a gradient and a pattern."""
    c = item.uniform.T
    base = _PALETTE[item.background_color]
    # Dark or light, so that no shape has the lightness of all backgrounds.
    light = (c[0] < 0.5)[:, None]
    strength = (0.45 + 0.25 * c[1])[:, None].astype(np.float32)
    ends = np.where(light, np.float32(1.0), np.float32(0.05))
    first = base + strength * (ends - base)
    second = base + np.float32(0.15) * (ends - base)
    turn = 2 * np.pi * c[2]
    zero = np.zeros_like(item.center)
    u, _ = _grid(zero, turn, np.full(len(turn), 2.4), resolution)
    mix = np.clip(u + np.float32(0.5), 0, 1)
    for kind, pattern in enumerate((_stripes, _checks, _dots), start=1):
        rows = np.flatnonzero(item.background == kind)
        if len(rows):
            period = 0.45 + 0.25 * c[3, rows]
            offset = np.stack([c[4, rows], c[5, rows]], -1)
            grid = _grid(offset, turn[rows], period, resolution)
            # Edges of patterns are a pixel wide, too.
            pixels = _column(period * resolution / 2)
            faint = np.float32(0.35)
            mix[rows] = faint * mix[rows] + (1 - faint) * pattern(*grid, pixels)
    first, second = (a.astype(np.float32)[:, :, None, None] for a in (first, second))
    return first + mix[:, None] * (second - first)


def _edge(distance: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Share of a pixel inside: from 1 to 0 over a pixel around distance 0."""
    return np.clip(np.float32(0.5) - distance * pixels, 0, 1)


def _wave(u: np.ndarray) -> np.ndarray:
    """Distance from the nearest whole number, less 1/4: a wave of period 1."""
    return np.abs(u - np.rint(u)) - np.float32(0.25)


def _stripes(u: np.ndarray, v: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    del v
    return _edge(_wave(u), pixels)


def _checks(u: np.ndarray, v: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    half = np.float32(0.5)
    a, b = _edge(_wave(half * u), half * 2 * pixels), _edge(_wave(half * v), pixels)
    return a + b - 2 * a * b


def _dots(u: np.ndarray, v: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    return _edge(_norm(u - np.rint(u), v - np.rint(v)) - np.float32(0.3), pixels)


def _second(item: Attributes, rows: np.ndarray) -> Attributes:
    """The smaller shapes of some items, as items."""
    c = item.uniform[rows].T
    # On the other side of the middle, where the first leaves the most room.
    center = item.center[rows]
    side = np.where(np.abs(center) < 0.05, 0.05, center)
    corner = -np.sign(side) * (0.55 + 0.2 * c[6:8].T)
    return dataclasses.replace(
        item,
        shape=item.second[rows],
        color=item.second_color[rows],
        size=0.2 + 0.03 * c[8],
        center=corner,
        angle=0.45 * (2 * c[9] - 1),
        shadow=item.shadow[rows],
        uniform=item.uniform[rows, ::-1],
    )


def _add(image: np.ndarray, item: Attributes, resolution: int) -> np.ndarray:
    """``image`` with a shadow and a shape over it."""
    pixels = _column(item.size * resolution / 2)
    shaded = np.flatnonzero(item.shadow > 0)
    if len(shaded):
        offset = np.array([0.12, 0.14]) * item.size[shaded, None] * 1.6
        center = item.center[shaded] + offset
        grid = _grid(center, item.angle[shaded], item.size[shaded], resolution)
        softness = np.float32(0.25)
        shadow = _edge(_distance(item.shape[shaded], *grid), pixels[shaded] * softness)
        shadow = 1 - _column(item.shadow[shaded]) * shadow
        image[shaded] *= shadow[:, None]
    u, v = _grid(item.center, item.angle, item.size, resolution)
    alpha = _edge(_distance(item.shape, u, v), pixels)
    # Lit from above, and every item has a slightly different paint.
    paint = 1 + 0.12 * (2 * item.uniform[:, -3:] - 1)
    color = (_PALETTE[item.color] * paint).astype(np.float32)[:, :, None, None]
    light = np.float32(1) - np.float32(0.16) * (v + np.float32(0.3) * u)
    return image + alpha[:, None] * (color * light[:, None] - image)


def _distance(shape: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The distance of each item's own shape, ``(n, h, w)``."""
    distance = np.empty_like(u)
    for kind, function in enumerate(SHAPES.values()):
        rows = np.flatnonzero(shape == kind)
        if len(rows):
            distance[rows] = function(u[rows], v[rows])
    return distance
