"""Noise with captions of noise, of any shape: what stands in for encoded data."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from scm_jax.datasets import images, pipeline
from scm_jax.types import Prompts, TextInfo, lookup


def make_noise_latents(
    split: str = "train",
    *,
    sample_shape: Sequence[int] = (8, 8, 4),
    length: int = 6,
    width: int = 32,
    pooled: int = 16,
    frame_rate: float = 0.0,
    num_items: int = 16,
) -> pipeline.LazyDataset:
    """Unit Gaussian noise ``(h, w, c)`` with states of captions, which are noise too.

    For smoke runs and cost estimates. Captions have up to ``length`` tokens with states
    of ``width`` channels, and a vector of ``pooled``; SD3's are 154, 4096, 2048, Wan's
    512, 4096, 0. Clips ``(t, h, w, c)`` have a ``frame_rate``, and latents ``(n, c)``
    of sound are no images. The splits ``train`` and ``test`` are different draws.
    """
    stream = lookup({"train": 0, "test": 1}, split, "split of dataset 'noise_latents'")
    shape = tuple(int(n) for n in sample_shape)

    def captions(n: int, rng: np.random.Generator) -> dict[str, Any]:
        found = {
            "context": rng.standard_normal((n, length, width), np.float32),
            "context_mask": np.arange(length) < 1 + np.arange(n)[:, None] % length,
        }
        if pooled:
            found["pooled"] = rng.standard_normal((n, pooled), np.float32)
        return found

    def examples() -> Prompts:
        texts = tuple(f"noise {i}" for i in range(4))
        return Prompts(texts, captions(len(texts), np.random.default_rng(2)))

    info = dataclasses.replace(
        images.image_info("noise_latents", shape, 0, num_items, "Gaussian noise"),
        sigma_data=1.0,
        to_pixels=None if len(shape) == 2 else lambda x: images.to_pixels(x / 2),
        frame_rate=frame_rate,
        text=TextInfo(length, width=width, pooled=pooled, encoder="noise"),
        examples=examples,
    )

    def draw() -> pipeline.FiniteDataset:
        rng = np.random.default_rng([stream, num_items])
        x = rng.standard_normal((num_items, *shape), np.float32)
        source = pipeline.MemorySource({"x": x, **captions(num_items, rng)})
        return pipeline.FiniteDataset(info, source, lambda f: (f["x"], None))

    return pipeline.LazyDataset(info, draw)
