"""Coloured shapes on textured backgrounds: drawn, not stored; 10 classes, captions.

Item ``i`` of a split is a function of ``(seed, split, i)`` and of nothing else: its
numbers come from a counter, and its pixels from distances to the edges of its shapes.
So the set is as large as one likes and needs neither a download nor a disk. Everything
per pixel is an addition, a product, a root, a comparison or a rounding, which IEEE 754
defines to the last bit: the same images come out on every machine.

The card with counts, moments and what the features see is ``data/shapes/README.md``.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from scm_jax.datasets import images, pipeline
from scm_jax.types import DatasetInfo, check_seed, lookup

RESOLUTIONS = (32, 64)
SIGMA_DATA = 0.5

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
SIZES = ("small", "medium", "large")
PLACES = (
    ("upper left", "top", "upper right"),
    ("left", "center", "right"),
    ("lower left", "bottom", "lower right"),
)

# Pixels are ``0.5 + CONTRAST * (paint - MEAN_PAINT)`` in 0..1. With these constants,
# measured, they have mean 0 and standard deviation 0.5 where 0..1 becomes [-1, 1].
CONTRAST = 0.89
MEAN_PAINT = 0.52

_STREAMS = {"train": 0, "test": 1}
_BLOCK = 64  # images drawn at a time: their planes fit into a core's cache


# --- shapes ---------------------------------------------------------------------------

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


def _circle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return _norm(u, v) - np.float32(0.9)


def _ring(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.abs(_norm(u, v) - np.float32(0.72)) - np.float32(0.23)


def _square(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(u), np.abs(v)) - np.float32(0.78)


def _triangle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return functools.reduce(np.maximum, _sides(u, v, 3)) - np.float32(0.55)


def _hexagon(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    heights = [np.abs(height) for height in _sides(u, v, 6)[:3]]
    return functools.reduce(np.maximum, heights) - np.float32(0.84)


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


def _leaf(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Between two circles that meet in two points."""
    return _norm(np.abs(u) + np.float32(0.75), v) - np.float32(1.3)


SHAPES: dict[str, Distance] = {
    "circle": _circle,
    "ring": _ring,
    "square": _square,
    "triangle": _triangle,
    "hexagon": _hexagon,
    "star": _star,
    "cross": _cross,
    "heart": _heart,
    "moon": _moon,
    "leaf": _leaf,
}
NUM_CLASSES = len(SHAPES)


# --- what an item is ------------------------------------------------------------------

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(z: np.ndarray) -> np.ndarray:
    """SplitMix64's finalizer (Steele, Lea, Flood 2014, Fig. 17); wraps around."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def uniforms(seed: int, stream: int, indices: np.ndarray, num: int) -> np.ndarray:
    """``num`` numbers in [0, 1) for each item, ``(n, num)`` float64.

    A counter-based generator: no state, and all items at once.

    >>> uniforms(0, 0, np.array([5, 6]), 2).round(3).tolist()
    [[0.086, 0.973], [0.563, 0.568]]
    """
    item = np.asarray(indices, np.uint64)[:, None]
    start = _mix(np.array([[seed]], np.uint64) + _GOLDEN)
    start = _mix(start + np.array([[stream]], np.uint64) * _GOLDEN)
    start = _mix(start + item * _GOLDEN)
    counter = np.arange(1, num + 1, dtype=np.uint64)[None]
    return (_mix(start + counter * _GOLDEN) >> np.uint64(11)) * 2.0**-53


@dataclasses.dataclass(frozen=True, eq=False)
class Attributes:
    """What is seen on some items; arrays of length ``n``, named values as indices.

    Attributes:
      shape: in ``SHAPES``; the class. Items take the classes in turn.
      color: of the shape, in ``COLORS``.
      size: radius of the shape over half the image.
      center: ``(n, 2)``, right and down, in halves of the image from its middle.
      angle: rotation, clockwise, in radians.
      shadow: strength of the shadow, 0 for none.
      background: in ``BACKGROUNDS``.
      background_color: in ``COLORS``.
      second: in ``SHAPES``, the smaller shape on the other side; -1 for none.
      second_color: in ``COLORS``.
      chance: ``(n, k)`` numbers in [0, 1) behind all that has no name.
    """

    shape: np.ndarray
    color: np.ndarray
    size: np.ndarray
    center: np.ndarray
    angle: np.ndarray
    shadow: np.ndarray
    background: np.ndarray
    background_color: np.ndarray
    second: np.ndarray
    second_color: np.ndarray
    chance: np.ndarray


def attributes(seed: int, stream: int, indices: np.ndarray) -> Attributes:
    """The attributes of some items."""
    chance = uniforms(seed, stream, indices, 28)
    u = chance.T
    num_colors = len(COLORS)
    color = (num_colors * u[0]).astype(np.int64)
    # Two steps of the hue circle between the background and what lies on it.
    distance = 2 + ((num_colors - 3) * u[1]).astype(np.int64)
    second = ((NUM_CLASSES * u[2]).astype(np.int64), -1)
    size = 0.36 + 0.3 * u[3]
    room = (0.95 - size)[:, None]
    return Attributes(
        shape=np.asarray(indices, np.int64) % NUM_CLASSES,
        color=color,
        size=size,
        center=room * (2 * chance[:, 4:6] - 1),
        # Upright with a tilt: a turned square would be a diamond.
        angle=0.45 * (2 * u[6] - 1),
        shadow=np.where(u[7] < 0.5, 0.35 + 0.25 * u[8], 0.0),
        background=(len(BACKGROUNDS) * u[9]).astype(np.int64),
        background_color=(color + distance) % num_colors,
        second=np.where(u[10] < 0.25, second[0], second[1]),
        # The neighbour of the shape's colour that is farther from the background's.
        second_color=(color + np.where(distance > 4, 1, -1)) % num_colors,
        chance=chance[:, 11:],
    )


def caption(item: Attributes, row: int = 0) -> str:
    """One item in words, such as ``a small red star on blue stripes, upper left``."""
    colors = list(COLORS)
    words = [_size_name(item.size[row]), colors[item.color[row]]]
    text = f"{' '.join(words)} {list(SHAPES)[item.shape[row]]}"
    if item.second[row] >= 0:
        other = list(SHAPES)[item.second[row]]
        text += f" and a tiny {colors[item.second_color[row]]} {other}"
    background = BACKGROUNDS[item.background[row]]
    article = "a " if background == "gradient" else ""
    text += f" on {article}{colors[item.background_color[row]]} {background}"
    return f"a {text}, {_place_name(*item.center[row])}"


def _size_name(size: float) -> str:
    return SIZES[int(np.searchsorted((0.46, 0.56), size))]


def _place_name(right: float, down: float) -> str:
    row, column = np.searchsorted((-0.15, 0.15), (down, right))
    return PLACES[row][column]


# --- drawing --------------------------------------------------------------------------

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
    """``(n,) -> (n, 1, 1)`` float32, beside planes of pixels."""
    return np.asarray(values, np.float32)[:, None, None]


def _grid(center: np.ndarray, angle: np.ndarray, scale: np.ndarray, resolution: int):
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
    c = item.chance.T
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
    for kind, pattern in enumerate((None, _stripes, _checks, _dots)):
        rows = np.flatnonzero(item.background == kind)
        if pattern is not None and len(rows):
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
    c = item.chance[rows].T
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
        chance=item.chance[rows, ::-1],
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
    paint = 1 + 0.12 * (2 * item.chance[:, -3:] - 1)
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


# --- the set --------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ShapeSource:
    """A split that is drawn when it is asked for: ``pipeline.Source``, and raw items.

    As raw data for ``scm_jax.datasets.preparation`` it has ``class_names``, ``origin``,
    ``name`` and ``read``.

    Attributes:
      split: ``train`` or ``test``: independent items.
      num_items: how many there are; a longer set begins with a shorter one.
      resolution: side in pixels.
      seed: of the whole set.
    """

    split: str = "train"
    num_items: int = 20_000
    resolution: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        lookup(_STREAMS, self.split, "split of dataset 'shapes'")
        if self.resolution not in RESOLUTIONS:
            raise ValueError(
                f"dataset.resolution = {self.resolution} of dataset 'shapes' is not "
                f"one of {RESOLUTIONS}"
            )
        if self.num_items < 1:
            raise ValueError(
                f"dataset.num_items = {self.num_items} of dataset 'shapes' must be at "
                "least 1"
            )
        check_seed(self.seed)

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(SHAPES)

    @property
    def origin(self) -> dict[str, Any]:
        return {"kind": "shapes", **dataclasses.asdict(self)}

    def __len__(self) -> int:
        return self.num_items

    def name(self, index: int) -> str:
        return f"shapes {self.split} item {index}: {self.caption(index)}"

    def read(self, index: int) -> dict[str, np.ndarray]:
        fields = self.gather(np.array([index]))
        return {name: values[0] for name, values in fields.items()}

    def attributes(self, indices: np.ndarray) -> Attributes:
        """What is seen on some items.

        Raises:
          IndexError: no such item.
        """
        indices = np.asarray(indices)
        outside = (indices < 0) | (indices >= self.num_items)
        if outside.any():
            raise IndexError(
                f"dataset 'shapes' has no item {indices[outside][0]}: "
                f"legal are 0..{self.num_items - 1}"
            )
        return attributes(self.seed, _STREAMS[self.split], indices)

    def caption(self, index: int) -> str:
        """One item in words.

        >>> ShapeSource().caption(7)
        'a medium blue heart on yellow stripes, upper left'
        """
        return caption(self.attributes(np.array([index])))

    def gather(self, indices: np.ndarray) -> pipeline.Fields:
        """``image`` uint8 ``(n, h, w, 3)`` and ``label`` int64 of some items."""
        indices = np.asarray(indices)
        side = self.resolution
        image = np.empty((len(indices), side, side, 3), np.uint8)
        for start in range(0, len(indices), _BLOCK):
            block = slice(start, start + _BLOCK)
            image[block] = draw(self.attributes(indices[block]), side)
        return {"image": image, "label": indices.astype(np.int64) % NUM_CLASSES}


@functools.lru_cache(maxsize=1)  # evaluators and runs of one process open it often
def _drawn(source: ShapeSource) -> pipeline.MemorySource:
    fields = source.gather(np.arange(len(source)))
    for values in fields.values():
        values.setflags(write=False)
    return pipeline.MemorySource(fields)


def make_shapes(
    split: str = "train",
    *,
    root: str | os.PathLike[str] | None = None,
    prepare: bool = False,
    resolution: int = 32,
    num_items: int = 20_000,
    conditional: bool = True,
    flip: bool = False,
) -> pipeline.LazyDataset:
    """Shapes, 32x32 or 64x64; drawn once if they fit into memory, else when needed.

    Args:
      split: ``train`` or ``test``; no slices.
      root: without effect; nothing is on disk.
      prepare: without effect.
      resolution: side in pixels, in ``RESOLUTIONS``.
      num_items: how many; above ``pipeline.MEMORY_LIMIT`` bytes of pixels each item is
        drawn anew in every epoch.
      conditional: give the 10 classes, too.
      flip: mirror half of the images, anew in every epoch.

    Raises:
      ValueError: no such split, resolution or number.
    """
    del root, prepare
    source = ShapeSource(split, num_items, resolution)
    info = DatasetInfo(
        name="shapes",
        sample_shape=(resolution, resolution, 3),
        num_classes=NUM_CLASSES if conditional else 0,
        sigma_data=SIGMA_DATA,
        num_items=num_items,
        description="pixels in [-1, 1]; mean 0, standard deviation 0.5",
        to_pixels=images.to_pixels,
        quantization=images.QUANTIZATION,
    )

    def open_data() -> pipeline.FiniteDataset:
        fits = num_items * resolution**2 * 3 <= pipeline.MEMORY_LIMIT
        opened = _drawn(source) if fits else source
        return images.image_dataset(info, opened, Path(), flip=flip)

    return pipeline.LazyDataset(info, open_data)
