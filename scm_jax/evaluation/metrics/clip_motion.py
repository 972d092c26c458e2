"""How what is seen on a clip moves: its path, against the law of bouncing.

A clip whose light moves on a straight line that is reflected at two walls has the
residual 0; a frozen one has it, too, and another speed than real clips.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import stats

THRESHOLD = 0.15  # darker pixels, of 0..1, are no part of a digit
_STARTS, _SPEEDS = 41, 121  # of the grid on which lines are tried
_BLOCK = 32  # clips at a time


class Fit(NamedTuple):
    """The best line of each of ``n`` clips."""

    residual: np.ndarray  # (n,), pixels: root mean square over the frames
    speed: np.ndarray  # (n,), pixels per frame


def centroids(pixels: np.ndarray) -> np.ndarray:
    """Mean position of the light, ``(n, t, 2)`` down and right, in pixels.

    ``pixels`` are ``(n, t, h, w, 1)`` uint8. An empty frame has its middle.
    """
    light = pixels[..., 0] / 255.0
    light = np.where(light >= THRESHOLD, light, 0.0)
    h, w = light.shape[-2:]
    total = light.sum((-2, -1))
    down = (light.sum(-1) @ (np.arange(h) + 0.5)) / np.maximum(total, 1e-9)
    right = (light.sum(-2) @ (np.arange(w) + 0.5)) / np.maximum(total, 1e-9)
    middle = np.array([h / 2, w / 2])
    return np.where(total[..., None] > 0, np.stack([down, right], -1), middle)


def fit_bounces(paths: np.ndarray, room: float, most: float) -> Fit:
    """The reflected straight line that is nearest to each path, axis by axis.

    ``c + room - |(p + v i) mod 2 room - room|`` for frame ``i``, over starts ``p`` from
    0 to ``2 room``, which has both directions, speeds ``v`` from 0 to ``most`` and the
    best offset ``c``, the middle of the light within the digit.

    Args:
      paths: ``(n, t, 2)``, pixels.
      room: between the walls.
      most: the highest speed that is tried.
    """
    frames = np.arange(paths.shape[1])
    starts = np.linspace(0, 2 * room, 2 * _STARTS, endpoint=False)
    speeds = np.linspace(0, most, _SPEEDS)
    along = starts[:, None, None] + speeds[None, :, None] * frames[None, None]
    lines = room - np.abs(np.mod(along, 2 * room) - room)
    lines = (lines - lines.mean(-1, keepdims=True)).reshape(-1, len(frames))
    square = (lines**2).sum(-1)
    errors, found = [], []
    for first in range(0, len(paths), _BLOCK):
        path = paths[first : first + _BLOCK].swapaxes(1, 2)
        path = path - path.mean(-1, keepdims=True)
        error = (path**2).sum(-1)[..., None] - 2 * path @ lines.T + square
        best = error.argmin(-1)
        errors.append(np.take_along_axis(error, best[..., None], -1)[..., 0])
        found.append(speeds[best % _SPEEDS])
    error, speed = np.concatenate(errors), np.concatenate(found)
    residual = np.sqrt(np.maximum(error.sum(-1), 0) / len(frames))
    return Fit(residual, np.linalg.norm(speed, axis=-1))


def compare(pixels: np.ndarray, real: np.ndarray) -> dict[str, float]:
    """Median residual and distance of the speeds from those of real clips.

    ``residual`` and ``residual_real`` are in pixels; ``speed_distance`` is the
    Wasserstein distance of the fitted speeds, in pixels per frame.
    """
    side = pixels.shape[2]
    made, true = (
        fit_bounces(centroids(clips), side / 2, side / 4) for clips in (pixels, real)
    )
    return {
        "residual": float(np.median(made.residual)),
        "residual_real": float(np.median(true.residual)),
        "speed_distance": float(stats.wasserstein_distance(made.speed, true.speed)),
        "speed": float(made.speed.mean()),
        "speed_real": float(true.speed.mean()),
    }
