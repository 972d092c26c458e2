"""Coloured shapes on textured backgrounds: drawn, not stored; 10 classes, captions.

``captioned_shapes`` are the same with captions in place of classes. One colour of each
shape is held out of them, so that new combinations of known words can be asked for.
Item ``i`` of a split is a function of ``(seed, split, i)`` alone, the same on every
machine, so the set is as large as one likes. ``data/shapes/README.md`` is its card.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np

from scm_jax.datasets import images, pipeline
from scm_jax.datasets.captions import tokenize
from scm_jax.datasets.drawn import DrawnSource
from scm_jax.datasets.shape_captions import (
    CAPTION_LENGTH,
    NUM_CAPTIONS,
    caption,
    captions,
    targets,
    vocabulary,
)
from scm_jax.datasets.shape_drawing import (
    BACKGROUNDS,
    COLORS,
    NUM_CLASSES,
    SHAPES,
    Attributes,
    draw,
)
from scm_jax.types import DatasetInfo, Prompts, Questions, TextInfo, check_choice

RESOLUTIONS = (32, 64)

# Which colours the shapes have: any; all but the shape's held-out one; only that one.
COMBINATIONS = ("all", "seen", "held_out")
_BLOCK = 64  # images drawn at a time: their planes fit into a core's cache


def held_out_color(shape: np.ndarray) -> np.ndarray:
    """The colour that a shape has in no captioned training image."""
    return (3 * np.asarray(shape) + 1) % len(COLORS)


def attributes(
    indices: np.ndarray, uniform: np.ndarray, combinations: str = "all"
) -> Attributes:
    """The attributes of some items by their numbers; see ``COMBINATIONS``."""
    shape = np.asarray(indices, np.int64) % NUM_CLASSES
    u = uniform.T
    num_colors = len(COLORS)
    color = (num_colors * u[0]).astype(np.int64)
    held_out = held_out_color(shape)
    if combinations == "seen":
        other = ((num_colors - 1) * u[0]).astype(np.int64)
        color = (held_out + 1 + other) % num_colors
    elif combinations == "held_out":
        color = held_out
    # Two steps of the hue circle between the background and what lies on it.
    distance = 2 + ((num_colors - 3) * u[1]).astype(np.int64)
    second = (NUM_CLASSES * u[2]).astype(np.int64)
    size = 0.36 + 0.3 * u[3]
    room = (0.95 - size)[:, None]
    return Attributes(
        shape=shape,
        color=color,
        size=size,
        center=room * (2 * uniform[:, 4:6] - 1),
        # Upright with a tilt: a turned square would be a diamond.
        angle=0.45 * (2 * u[6] - 1),
        shadow=np.where(u[7] < 0.5, 0.35 + 0.25 * u[8], 0.0),
        background=(len(BACKGROUNDS) * u[9]).astype(np.int64),
        background_color=(color + distance) % num_colors,
        second=np.where(u[10] < 0.25, second, -1),
        # The neighbour of the shape's colour that is farther from the background's.
        second_color=(color + np.where(distance > 4, 1, -1)) % num_colors,
        uniform=uniform[:, 11:],
    )


@dataclasses.dataclass(frozen=True)
class ShapeSource(DrawnSource):
    """Shapes as a source of a dataset, and as raw items.

    ``class_names``, ``origin``, ``name`` and ``read`` are for ``datasets.preparation``.
    """

    dataset = "shapes"
    stream = 0
    resolution: int = 32
    combinations: str = "all"  # one of COMBINATIONS
    captioned: bool = False  # gives tokens of the captions, too

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resolution not in RESOLUTIONS:
            raise ValueError(
                f"dataset.resolution = {self.resolution} of dataset 'shapes' is not "
                f"one of {RESOLUTIONS}"
            )
        check_choice(self.combinations, COMBINATIONS, "dataset.combinations")

    @property
    def class_names(self) -> tuple[str, ...]:
        return () if self.captioned else tuple(SHAPES)

    @property
    def origin(self) -> dict[str, Any]:
        names = ["split", "num_items", "resolution", "seed"]
        names += ["combinations"] * self.captioned
        return {"kind": "shapes", **{name: getattr(self, name) for name in names}}

    def name(self, index: int) -> str:
        return f"shapes {self.split} item {index}: {self.caption(index)}"

    def read(self, index: int) -> dict[str, Any]:
        fields = self.gather(np.array([index]))
        found: dict[str, Any] = {name: values[0] for name, values in fields.items()}
        if self.captioned:  # the preparation makes a vocabulary of its own
            del found["tokens"]
            found["captions"] = captions(self.attributes(np.array([index])))
        return found

    def attributes(self, indices: np.ndarray) -> Attributes:
        """What is seen on some items; an IndexError where there is no such item."""
        indices = np.asarray(indices)
        outside = (indices < 0) | (indices >= self.num_items)
        if outside.any():
            raise IndexError(
                f"dataset 'shapes' has no item {indices[outside][0]}: "
                f"legal are 0..{self.num_items - 1}"
            )
        return attributes(indices, self.uniforms(indices, 28), self.combinations)

    def caption(self, index: int) -> str:
        """One item in words.

        Example:
          >>> ShapeSource().caption(7)
          'a medium blue heart on yellow stripes, upper left'
        """
        return caption(self.attributes(np.array([index])))

    def gather(self, indices: np.ndarray) -> pipeline.Fields:
        """``image`` uint8 ``(n, h, w, 3)`` and ``label`` int64 of some items.

        With ``captioned``, the label gives way to ``tokens`` int32
        ``(n, NUM_CAPTIONS, CAPTION_LENGTH)``.
        """
        indices = np.asarray(indices)
        side, said = self.resolution, []
        image = np.empty((len(indices), side, side, 3), np.uint8)
        for start in range(0, len(indices), _BLOCK):
            block = slice(start, start + _BLOCK)
            found = self.attributes(indices[block])
            image[block] = draw(found, side)
            if self.captioned:
                said += [t for i in range(len(found.size)) for t in captions(found, i)]
        if self.captioned:
            tokens = tokenize(TEXT, said).reshape(-1, NUM_CAPTIONS, CAPTION_LENGTH)
            return {"image": image, "tokens": tokens}
        return {"image": image, "label": indices.astype(np.int64) % NUM_CLASSES}


TEXT = TextInfo(CAPTION_LENGTH, vocabulary())
# How the training data of text to image differ from those of classes.
CAPTIONED: dict[str, Any] = {"combinations": "seen", "captioned": True}


def make_shapes(
    split: str = "train",
    *,
    resolution: int = 32,
    num_items: int = 20_000,
    conditional: bool = True,
    flip: bool = False,
) -> pipeline.LazyDataset:
    """Shapes, 32x32 or 64x64; drawn once if they fit into memory, else when needed.

    Args:
      split: ``train`` or ``test``; no slices.
      resolution: side in pixels, in ``RESOLUTIONS``.
      num_items: how many there are.
      conditional: give the 10 classes, too.
      flip: mirror half of the images, anew in every epoch.
    """
    source = ShapeSource(split, num_items, resolution)
    info = images.image_info(
        "shapes",
        (resolution, resolution, 3),
        NUM_CLASSES if conditional else 0,
        num_items,
        "pixels in [-1, 1]; mean 0, standard deviation 0.5",
    )

    return _lazy(info, source, flip=flip)


def make_captioned_shapes(
    split: str = "train",
    *,
    resolution: int = 32,
    num_items: int = 20_000,
    combinations: str = "seen",
) -> pipeline.LazyDataset:
    """Shapes with captions in place of classes; a word of a caption can be checked.

    Each image has its full caption and three that say less; a visit draws one of them.

    Args:
      split: ``train`` or ``test``; no slices.
      resolution: side in pixels, in ``RESOLUTIONS``.
      num_items: how many there are.
      combinations: ``seen`` leaves one colour of each shape out, ``held_out`` has
        these pairs only, ``all`` has both.
    """
    source = ShapeSource(
        split, num_items, resolution, combinations=combinations, captioned=True
    )
    shape = (resolution, resolution, 3)
    description = "pixels in [-1, 1]; mean 0, standard deviation 0.5; captions"
    info = images.image_info("captioned_shapes", shape, 0, num_items, description)
    info = dataclasses.replace(
        info,
        text=TEXT,
        examples=lambda: questions(64, "seen", resolution).prompts,
        questions=functools.partial(questions, resolution=resolution),
    )
    return _lazy(info, source)


def questions(
    num: int, combinations: str, resolution: int = 32, text: TextInfo = TEXT
) -> Questions:
    """Items of the split ``test`` with their full captions, as ``text`` reads them."""
    source = ShapeSource("test", num, resolution, combinations=combinations)
    found, indices = source.attributes(np.arange(num)), np.arange(num)
    texts = tuple(caption(found, row) for row in range(num))
    prompts = Prompts(texts, {"tokens": tokenize(text, texts)})
    return Questions(prompts, targets(found), source.gather(indices)["image"])


def _lazy(
    info: DatasetInfo, source: ShapeSource, *, flip: bool = False
) -> pipeline.LazyDataset:
    def open_data() -> pipeline.FiniteDataset:
        opened = pipeline.kept_in_memory(source)
        return images.image_dataset(info, opened, flip=flip)

    return pipeline.LazyDataset(info, open_data)
