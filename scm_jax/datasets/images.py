"""Images in [-1, 1]: CIFAR-10, ImageNet 64x64, and noise that stands in for them.

Nothing is read, and nothing has to be there, before the first item is asked for: a
config can be built and described on a machine without the data.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scm_jax.datasets import identity, pipeline, pixels, storage
from scm_jax.datasets.imagenet64_variants import IMAGENET64_VARIANTS
from scm_jax.types import DatasetInfo, lookup

logger = logging.getLogger(__name__)

# EDM's convention, which the paper follows, for pixels in [-1, 1]. Published moments of
# CIFAR-10 give a standard deviation of 0.503.
SIGMA_DATA = 0.5
QUANTIZATION = pixels.PIXEL_RANGES["pm1"].rule

CIFAR10_ITEMS = {"train": 50_000, "test": 10_000}
IMAGENET_ITEMS = {"train": 1_281_167, "validation": 50_000}


def to_x(image: np.ndarray) -> np.ndarray:
    """uint8 0..255 -> float32 in [-1, 1]: ``image / 127.5 - 1``.

    Example:
      >>> to_x(np.array([0, 255], np.uint8)).tolist()
      [-1.0, 1.0]
    """
    # The same bits for numpy and JAX: whole numbers are exact, and one product rounds.
    # A compiler may fuse a quotient and a difference.
    centred = image.astype(np.float32) * np.float32(2) - np.float32(255)
    return centred * np.float32(1 / 255)


def to_pixels(x: np.ndarray) -> np.ndarray:
    """Inverts ``to_x`` by EDM2's rule, for three channels or, of fewer, the first."""
    shown = np.asarray(x)[..., : 3 if x.shape[-1] >= 3 else 1]
    return np.asarray(pixels.pm1_to_uint8(shown))


def flip_at_random(fields: pipeline.Fields, keys: jax.Array) -> pipeline.Fields:
    """Mirrors images or clips with probability 1/2; see ``FiniteDataset``."""
    field = "image" if "image" in fields else "clip"
    image = fields[field]
    mirrored = jax.vmap(jax.random.bernoulli)(keys)
    mirrored = mirrored.reshape(-1, *[1] * (image.ndim - 1))
    return {**fields, field: jnp.where(mirrored, image[..., ::-1, :], image)}


def image_info(
    name: str,
    sample_shape: tuple[int, ...],
    num_classes: int,
    num_items: int = 0,
    description: str = "pixels in [-1, 1]; standard deviation about 0.5",
) -> DatasetInfo:
    """What a dataset of images in [-1, 1] declares about itself."""
    return DatasetInfo(
        name=name,
        sample_shape=sample_shape,
        num_classes=num_classes,
        sigma_data=SIGMA_DATA,
        num_items=num_items,
        description=description,
        to_pixels=to_pixels,
        from_pixels=to_x,
        quantization=QUANTIZATION,
    )


def make_prepared(
    info: DatasetInfo,
    split: str,
    num_items: dict[str, int],
    root: str | os.PathLike[str] | None,
    build: Callable[[DatasetInfo, pipeline.Source], pipeline.FiniteDataset],
    *,
    field: str = "image",
    folder: str = "",
    flags: str = "",
    features: str = "",
    beside: Sequence[str] = (),
) -> pipeline.LazyDataset:
    """A prepared tfds dataset that is opened when its first item is asked for.

    Args:
      info: what the data are; ``num_items`` is filled in.
      split: a split, or a slice of one such as ``train[:90%]``.
      num_items: published number of items of each split.
      root: folder of prepared datasets, by default ``storage.default_root()``.
      build: makes the dataset of what was opened, such as ``image_dataset``.
      field: the stored feature that is read; with classes, ``label`` is read, too.
      folder: name of the prepared dataset, by default that of ``info``.
      flags: of ``data prepare``, for the error where the data are not there.
      features: what must be stored, in words, for that error.
      beside: further stored features that are read.

    Raises:
      ValueError: no such split.
    """
    name, base = folder or info.name, split.split("[", 1)[0]
    more = features and (
        f"; data/{info.name.removesuffix('_latents')}/README.md says where the source "
        f"comes from. Or put a tfds dataset in array records into {name}/1.0.0 there, "
        f"with the features {features}"
    )
    declared = lookup(num_items, base, f"split of dataset {info.name!r}")
    info = dataclasses.replace(info, num_items=declared)

    def find() -> Path:
        return storage.prepared_folder(name, root, flags=flags, more=more)

    def open_data() -> pipeline.FiniteDataset:
        where = find()
        fields = (field, *(("label",) if info.num_classes else ()), *beside)
        source = pipeline.read_prepared(where, split, fields=fields)
        if split == base and len(source) != declared:
            logger.warning(
                "dataset %r: %s holds %s items in the split %r, not the published %s: "
                "this is a subset or another version, and results on it are not those "
                "of the full data",
                *(info.name, where, f"{len(source):,}", split, f"{declared:,}"),
            )
        dataset = build(dataclasses.replace(info, num_items=len(source)), source)
        dataset.gather(np.arange(1))  # bad data are an error here, not in some batch
        return dataset

    return pipeline.LazyDataset(
        info, open_data, lambda: identity.of_prepared(find(), split)
    )


def stored(
    fields: pipeline.Fields, name: str, dtypes: Sequence[str], dataset: str
) -> Any:
    """One stored field; a ValueError where it is missing or of another type."""
    lookup(dict.fromkeys(fields), name, f"feature of the prepared dataset {dataset!r}")
    values = fields[name]
    if values.dtype.name not in dtypes:
        raise ValueError(
            f"dataset {dataset!r}: the feature {name!r} is stored as {values.dtype}; "
            f"legal are {', '.join(dtypes)}"
        )
    return values


def stored_label(fields: pipeline.Fields, dataset: str) -> Any:
    """The stored classes as int32."""
    return stored(fields, "label", ("int64", "int32"), dataset).astype(np.int32)


def image_dataset(
    info: DatasetInfo,
    source: pipeline.Source,
    *,
    to_x: Callable[[Any], Any] = to_x,
    flip: bool = False,
    field: str = "image",
) -> pipeline.FiniteDataset:
    """uint8 images in a field; see ``make_prepared``.

    Args:
      info: what the data are; with classes, the field ``label`` is read, too.
      source: the stored items.
      to_x: levels 0..255 -> ``Batch.x``.
      flip: mirror half of the images, anew in every epoch.
      field: ``image``, or ``clip`` for clips.
    """

    def decode(fields: pipeline.Fields) -> tuple[Any, Any]:
        x = to_x(stored(fields, field, ("uint8",), info.name))
        return x, stored_label(fields, info.name) if info.num_classes else None

    randomize = flip_at_random if flip else None
    return pipeline.FiniteDataset(info, source, decode, randomize)


def make_cifar10(
    split: str = "train",
    *,
    root: str | os.PathLike[str] | None = None,
    conditional: bool = False,
    flip: bool = False,
) -> pipeline.LazyDataset:
    """CIFAR-10, 32x32, with the splits ``train`` and ``test``.

    Args:
      split: a split, or a slice of one.
      root: folder of prepared datasets.
      conditional: give the 10 classes, too; the paper's models are unconditional.
      flip: mirror half of the images, anew in every epoch. Off: the paper does not
        mention augmentation.
    """
    return make_prepared(
        image_info("cifar10", (32, 32, 3), 10 if conditional else 0),
        split,
        CIFAR10_ITEMS,
        root,
        functools.partial(image_dataset, flip=flip),
        flags="--dataset=cifar10 --source=cifar-10-python.tar.gz",
        features="image uint8 (32, 32, 3) and label int64 in 0..9",
    )


def make_imagenet64(
    split: str = "train",
    *,
    root: str | os.PathLike[str] | None = None,
    flip: bool = False,
    variant: str = "edm2",
) -> pipeline.LazyDataset:
    """ImageNet, by default with the shorter side at 64 and the centre cut out.

    Args:
      split: ``train`` or ``validation``, or a slice.
      root: folder of prepared datasets.
      flip: mirror half of the images, anew in every epoch. Off: the paper trains on
        ImageNet without.
      variant: a key of ``IMAGENET64_VARIANTS``: how the photographs were reduced.
        Frechet distances on different ones cannot be compared; all but ``edm2`` warn.
    """
    chosen = lookup(IMAGENET64_VARIANTS, variant, "dataset.variant")
    if not chosen.comparable:
        logger.warning(
            "dataset.variant = %r is not the ImageNet 64x64 of the published figures "
            "(%s): Frechet distances on it cannot be compared with theirs",
            *(variant, chosen.how),
        )
    classes = " and label int64 in 0..999" if chosen.labelled else ""
    return make_prepared(
        image_info("imagenet64", (64, 64, 3), 1000 if chosen.labelled else 0),
        split,
        IMAGENET_ITEMS,
        root,
        functools.partial(image_dataset, flip=flip),
        folder=chosen.folder,
        flags=f"--dataset=imagenet64 --variant={variant} --source={chosen.source}",
        features=f"image uint8 (64, 64, 3){classes}",
    )


_STREAMS = {"train": 0, "test": 1}


def make_noise_images(
    split: str = "train",
    *,
    sample_shape: Sequence[int] = (16, 16, 3),
    num_classes: int = 10,
    num_items: int = 256,
) -> pipeline.FiniteDataset:
    """Gaussian noise ``(h, w, c)``: smoke runs where the real data are not.

    The splits ``train`` and ``test`` are different draws. Items take the classes in
    turn.
    """
    stream = lookup(_STREAMS, split, "split of dataset 'noise_images'")
    shape = tuple(int(n) for n in sample_shape)
    rng = np.random.default_rng([stream, num_items])
    x = rng.standard_normal((num_items, *shape), np.float32) * np.float32(SIGMA_DATA)
    label = np.arange(num_items, dtype=np.int32) % max(num_classes, 1)
    fields = {"x": x, "label": label} if num_classes else {"x": x}
    description = "Gaussian noise of mean 0 and standard deviation 0.5"
    info = image_info("noise_images", shape, num_classes, num_items, description)
    source = pipeline.MemorySource(fields)
    return pipeline.FiniteDataset(info, source, lambda f: (f["x"], f.get("label")))
