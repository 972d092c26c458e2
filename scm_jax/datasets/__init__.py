"""Datasets: a name -> an endless, restartable iterator of ``Batch``.

A builder function takes ``split``, then whatever is its own. One that reads from disk
takes ``root`` (folder of prepared data), and ``prepare`` if it can prepare what is
missing.
"""

from __future__ import annotations

import inspect
from typing import Any

from scm_jax.datasets.order import BatchIterator
from scm_jax.datasets.pipeline import Dataset, FiniteDataset, LazyDataset
from scm_jax.datasets.storage import default_root, prepare, prepared_folder
from scm_jax.types import Registry, lookup

DATASETS = Registry(
    captioned_shapes="scm_jax.datasets.shapes.make_captioned_shapes",
    cifar10="scm_jax.datasets.images.make_cifar10",
    digits="scm_jax.datasets.digits.make_digits",
    emoji="scm_jax.datasets.emoji.make_emoji",
    gaussian="scm_jax.datasets.synthetic.make_gaussian",
    images="scm_jax.datasets.prepared_images.make_images",
    imagenet512_latents="scm_jax.datasets.latents.make_imagenet512_latents",
    imagenet64="scm_jax.datasets.images.make_imagenet64",
    latents="scm_jax.datasets.prepared_latents.make_latents",
    mixture="scm_jax.datasets.synthetic.make_mixture",
    moving_digits="scm_jax.datasets.moving_digits.make_moving_digits",
    noise_images="scm_jax.datasets.images.make_noise_images",
    noise_latents="scm_jax.datasets.noise_latents.make_noise_latents",
    shapes="scm_jax.datasets.shapes.make_shapes",
    sounds="scm_jax.datasets.prepared_sounds.make_sounds",
    spoken_digits="scm_jax.datasets.spoken_digits.make_spoken_digits",
    spoken_numbers="scm_jax.datasets.spoken_numbers.make_spoken_numbers",
)

__all__ = [
    "DATASETS",
    "BatchIterator",
    "Dataset",
    "FiniteDataset",
    "LazyDataset",
    "default_root",
    "make_dataset",
    "prepare",
    "prepared_folder",
]


def make_dataset(name: str, split: str = "train", **kwargs: Any) -> Dataset:
    """Builds the dataset of a name.

    Args:
      name: a key of ``DATASETS``.
      split: which part of it, usually ``train``.
      **kwargs: for the builder function; ``root`` and ``prepare`` are without effect
        for data that are drawn.

    Raises:
      ValueError: unknown name or argument; the message lists the legal ones.
      FileNotFoundError: not prepared, and ``prepare`` is false.

    Example:
      >>> make_dataset("mixture").info.sample_shape
      (1,)
    """
    build = lookup(DATASETS, name, "dataset.name")
    parameters = inspect.signature(build).parameters
    for key in kwargs:
        if key not in ("root", "prepare"):
            lookup(parameters, key, f"argument of dataset {name!r}")
    return build(split, **{k: v for k, v in kwargs.items() if k in parameters})
