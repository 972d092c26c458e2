"""Noise with captions of noise, of any shape: what stands in for encoded data."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Sequence
from typing import Any

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
    examples = functools.partial(_examples, text)
    return pipeline.LazyDataset(
        dataclasses.replace(info, examples=examples),
        lambda: pipeline.FiniteDataset(
            info, pipeline.MemorySource(_draw(info, stream)), lambda f: (f["x"], None)
        ),
    )


def _to_pixels(x: np.ndarray) -> np.ndarray:
    """Two standard deviations of the first channels are black and white."""
    return images.to_pixels(x / 2)


def _draw(info: DatasetInfo, stream: int) -> dict[str, np.ndarray]:
    assert info.text is not None
    rng, n = np.random.default_rng([stream, info.num_items]), info.num_items
    x = rng.standard_normal((n, *info.sample_shape), np.float32)
    return {"x": x, **_captions(info.text, n, rng)}


def _captions(text: TextInfo, n: int, rng: np.random.Generator) -> dict[str, Any]:
    tokens = 1 + np.arange(n) % text.length
    return {
        "context": rng.standard_normal((n, text.length, text.width), np.float32),
        "context_mask": np.arange(text.length) < tokens[:, None],
        "pooled": rng.standard_normal((n, text.pooled), np.float32),
    }


def _examples(text: TextInfo) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    names = tuple(f"noise {i}" for i in range(4))
    return names, _captions(text, len(names), np.random.default_rng(2))
