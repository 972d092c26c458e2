"""The outlines of the dataset ``shapes``: distances to the edge of each shape."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

# ``(u, v) -> distance`` from the edge, negative inside, for a shape that about fills
# the unit disc; u points right and v down. Away from the edge it may be less than the
# true distance: only the last pixel before the edge is blended.
Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]


def norm(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """``sqrt(u^2 + v^2)``."""
    return np.sqrt(u * u + v * v)


def _sides(u: np.ndarray, v: np.ndarray, num: int) -> list[np.ndarray]:
    """Heights over the lines through 0 that ``num`` sides are parallel to."""
    angles = 2 * np.pi * (np.arange(num) + 0.5) / num
    normals = np.stack([np.sin(angles), -np.cos(angles)], -1).astype(np.float32)
    return [a * u + b * v for a, b in normals]


def _circle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return norm(u, v) - np.float32(0.9)


def _ring(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.abs(norm(u, v) - np.float32(0.72)) - np.float32(0.23)


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
    disc = norm(along, across - side) - side
    return np.minimum(square, disc)


def _moon(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    u = u + np.float32(0.15)
    bite = np.float32(0.8) - norm(u - np.float32(0.55), v)
    return np.maximum(norm(u, v) - np.float32(0.98), bite)


def _leaf(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Between two circles that meet in two points."""
    return norm(np.abs(u) + np.float32(0.75), v) - np.float32(1.3)


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
