"""Noise with captions of noise, of any shape: what stands in for encoded data."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Sequence

import numpy as np

from scm_jax.datasets import images, pipeline
from scm_jax.types import DatasetInfo, TextInfo, lookup

_STREAMS = {"train": 0, "test": 1}


def make_noise_latents(
    split: str = "train",
    *,
    root: str | os.PathLike[str] | None = None,
    prepare: bool = False,
    sample_shape: Sequence[int] = (8, 8, 4),
    length: int = 6,
    width: int = 32,
    pooled: int = 16,
    num_items: int = 16,
) -> pipeline.LazyDataset:
    """Unit Gaussian noise ``(h, w, c)`` with the states of captions, noise too.

    For smoke runs and cost estimates of text-to-image models. The splits ``train`` and
    ``test`` are different draws; ``root`` and ``prepare`` are without effect.

    Args:
      split: ``train`` or ``test``.
      root: nothing is on disk.
      prepare: likewise.
      sample_shape: of the latents; SD3's at 1024x1024 are ``(128, 128, 16)``.
      length: tokens of the longest caption; item ``i`` has ``1 + i % length``.
      width: channels of a token's state; SD3's are 154 tokens of 4096.
      pooled: channels of the pooled vector; SD3's has 2048.
      num_items: how many there are.
    """
    del root, prepare
    stream = lookup(_STREAMS, split, "split of dataset 'noise_latents'")
    shape = tuple(int(n) for n in sample_shape)
    text = TextInfo(length, width=width, pooled=pooled, encoder="noise")
    info = images.image_info("noise_latents", shape, 0, num_items, "Gaussian noise")
    info = dataclasses.replace(info, sigma_data=1.0, text=text, to_pixels=_to_pixels)
    return pipeline.LazyDataset(info, functools.partial(_draw, info, text, stream))


def _to_pixels(x: np.ndarray) -> np.ndarray:
    """Two standard deviations of the first channels are black and white."""
    return images.to_pixels(x / 2)


def _draw(info: DatasetInfo, text: TextInfo, stream: int) -> pipeline.FiniteDataset:
    rng, n = np.random.default_rng([stream, info.num_items]), info.num_items

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal((n, *shape), np.float32)

    tokens = 1 + np.arange(n) % text.length
    fields = {
        "x": draw(*info.sample_shape),
        "context": draw(text.length, text.width),
        "context_mask": np.arange(text.length) < tokens[:, None],
        "pooled": draw(text.pooled),
    }
    return pipeline.FiniteDataset(
        info, pipeline.MemorySource(fields), lambda f: (f["x"], None)
    )
