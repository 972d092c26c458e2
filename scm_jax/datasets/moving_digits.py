"""Handwritten digits on bouncing straight paths: clips that are drawn, not stored.

Item ``i`` of a split is a function of ``(seed, split, i)`` alone, so the set is as
large as one likes and no clip comes twice; label and motion are known. Every fifth
digit of scikit-learn's 1,797 is kept for the split ``test``.
``data/moving_digits/README.md`` is the card.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import numpy as np

from scm_jax.datasets import digits, pipeline
from scm_jax.datasets.drawn import DrawnSource
from scm_jax.files.optional import require
from scm_jax.types import DatasetInfo

NAME = "moving_digits"
SIDES = (16, 32)  # of a frame; a digit is half as wide
SPEEDS = (0.75, 2.0)  # pixels per frame of 16x16
FRAME_RATE = 8.0  # at which they are shown
SIGMA_DATA = 0.5
# Mean and standard deviation of 0..1 by side and number of digits, over 20,000 clips.
MOMENTS = {
    (16, 1): (0.0763, 0.2044),
    (16, 2): (0.1351, 0.2625),
    (32, 1): (0.0763, 0.2045),
    (32, 2): (0.1351, 0.2625),
}
HELD_OUT_EVERY = 5
_BLOCK = 256  # clips drawn at a time


class Motion(NamedTuple):
    """What is seen on ``n`` clips of ``d`` digits each."""

    image: np.ndarray  # (n, d), rows of the digits
    start: np.ndarray  # (n, d, 2), down and right, corner of the digit in pixels
    velocity: np.ndarray  # (n, d, 2), pixels per frame


def bounce(start: np.ndarray, velocity: np.ndarray, frames: int, room: float) -> Any:
    """Positions ``(frames, ...)`` on a straight line reflected at 0 and ``room``.

    Example:
      >>> bounce(np.array(3.0), np.array(2.0), 4, 5.0).tolist()
      [3.0, 5.0, 3.0, 1.0]
    """
    time = np.arange(frames).reshape(-1, *[1] * np.ndim(start))
    return room - np.abs(np.mod(start[None] + time * velocity[None], 2 * room) - room)


@functools.cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    """Levels 0..1 ``(1797, 8, 8)`` float32 and labels."""
    found = require(
        "sklearn.datasets", f"dataset {NAME!r}", "scikit-learn"
    ).load_digits()
    return found.images.astype(np.float32) / digits.MAX_LEVEL, found.target


@dataclasses.dataclass(frozen=True)
class ClipSource(DrawnSource):
    """Clips of digits as a source of a dataset."""

    dataset = NAME
    stream = 16
    side: int = 16
    frames: int = 8
    num_digits: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, legal in {"side": SIDES, "num_digits": (1, 2)}.items():
            if getattr(self, name) not in legal:
                raise ValueError(
                    f"dataset.{name} = {getattr(self, name)} is not one of {legal}"
                )
        if self.frames < 1:
            raise ValueError(f"dataset.frames = {self.frames} must be at least 1")

    @property
    def room(self) -> float:
        """How far the corner of a digit can move."""
        return self.side / 2

    def motion(self, indices: np.ndarray) -> Motion:
        """Digits and paths of some items."""
        d = self.num_digits
        u = self.uniforms(indices, 5 * d).reshape(-1, d, 5)
        rows = np.arange(len(_digits()[0]))
        rows = rows[(rows % HELD_OUT_EVERY == 0) == (self.split == "test")]
        low, high = (speed * self.side / 16 for speed in SPEEDS)
        speed, angle = low + (high - low) * u[..., 1], 2 * np.pi * u[..., 2]
        direction = np.stack([np.sin(angle), np.cos(angle)], axis=-1)
        image = rows[(len(rows) * u[..., 0]).astype(np.int64)]
        return Motion(image, self.room * u[..., 3:], speed[..., None] * direction)

    def gather(self, indices: np.ndarray) -> pipeline.Fields:
        """``clip`` uint8 ``(n, frames, side, side, 1)`` and ``label`` int64.

        The label is the digit; of two digits ``a >= b`` it is ``a (a + 1)/2 + b``.
        """
        indices = np.asarray(indices)
        shape = (len(indices), self.frames, self.side, self.side, 1)
        clip, images = np.empty(shape, np.uint8), []
        for first in range(0, len(indices), _BLOCK):
            block = slice(first, first + _BLOCK)
            motion = self.motion(indices[block])
            images.append(motion.image)
            clip[block] = draw(motion, self.frames, self.side)
        label = np.sort(_digits()[1][np.concatenate(images)], axis=1)
        if self.num_digits == 1:
            return {"clip": clip, "label": label[:, 0]}
        small, large = label.T
        return {"clip": clip, "label": large * (large + 1) // 2 + small}


def draw(motion: Motion, frames: int, side: int) -> np.ndarray:
    """Clips ``(n, frames, side, side, 1)`` uint8: digits by bilinear interpolation.

    Where two digits meet, the lighter one is seen.
    """
    scale = side / 16
    corner = bounce(motion.start, motion.velocity, frames, side / 2)
    pixel, source = np.arange(side) + 0.5, np.arange(8) + 0.5
    # (frames, n, d, axis, pixels, 8): the weight of each row or column of the digit.
    away = (pixel[:, None] - corner[..., None, None]) / scale - source
    weight = np.maximum(0, 1 - np.abs(away)).astype(np.float32)
    # Not optimized: a sum of numpy's own has the same bits on every machine.
    shown = _digits()[0][motion.image]
    rows = np.einsum("tndpr,ndrc->tndpc", weight[..., 0, :, :], shown)
    image = np.einsum("tndqc,tndpc->ntdpq", weight[..., 1, :, :], rows)
    levels = np.floor(image.max(axis=2) * np.float32(255) + np.float32(0.5))
    return levels.astype(np.uint8)[..., None]


def wander(
    source: ClipSource, indices: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """The digits of some clips on random walks, with normal steps of one pixel."""
    motion = source.motion(indices)
    place, frames = motion.start, []
    for _ in range(source.frames):
        still = Motion(motion.image, place, np.zeros_like(place))
        frames.append(draw(still, 1, source.side)[:, 0])
        place = np.clip(place + rng.normal(size=place.shape), 0, source.room)
    return np.stack(frames, axis=1)


def make_moving_digits(
    split: str = "train",
    *,
    side: int = 16,
    frames: int = 8,
    num_digits: int = 1,
    num_items: int = 20_000,
    conditional: bool = True,
) -> pipeline.LazyDataset:
    """Clips of digits that move; needs the extra ``analysis`` for the digits.

    Args:
      split: ``train`` or ``test``; no slices.
      side: of a frame, in ``SIDES``.
      frames: how many.
      num_digits: 1 or 2.
      num_items: how many clips there are.
      conditional: give the label, too.
    """
    source = ClipSource(split, num_items, side, frames, num_digits)
    mean, std = (np.float32(moment) for moment in MOMENTS[side, num_digits])

    def to_x(pixels: np.ndarray) -> np.ndarray:
        levels = pixels.astype(np.float32) / np.float32(255)
        return (levels - mean) * (SIGMA_DATA / std)

    def decode(fields: pipeline.Fields) -> tuple[Any, Any]:
        x = to_x(fields["clip"])
        return x, fields["label"].astype(np.int32) if conditional else None

    def to_pixels(x: np.ndarray) -> np.ndarray:
        levels = np.asarray(x, np.float64) * (std / SIGMA_DATA) + mean
        return np.round(255 * np.clip(levels, 0, 1)).astype(np.uint8)

    info = DatasetInfo(
        name=NAME,
        sample_shape=(frames, side, side, 1),
        num_classes={1: 10, 2: 55}[num_digits] if conditional else 0,
        sigma_data=SIGMA_DATA,
        num_items=num_items,
        description="grey levels, centred and scaled to standard deviation 0.5",
        to_pixels=to_pixels,
        from_pixels=to_x,
        frame_rate=FRAME_RATE,
        quantization="256 levels, rounded",
    )

    def open_data() -> pipeline.FiniteDataset:
        return pipeline.FiniteDataset(info, pipeline.kept_in_memory(source), decode)

    return pipeline.LazyDataset(info, open_data)
