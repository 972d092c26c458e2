"""ImageNet 512x512 as whitened latents of the Stable Diffusion autoencoder.

The card is ``data/imagenet512/README.md``. What is stored are raw latents, so that the
constants of the whitening stay a choice of the config.
"""

from __future__ import annotations

import functools
import logging
import os
from typing import NamedTuple

import numpy as np

from scm_jax.datasets import images, pipeline
from scm_jax.types import DatasetInfo, lookup

logger = logging.getLogger(__name__)

NAME = "imagenet512_latents"
CHANNELS = 4
SIGMA_DATA = 0.5


class Whitening(NamedTuple):
    """Mean and standard deviation of raw latents, per channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


# Both are of stabilityai/sd-vae-ft-mse on ImageNet 512x512. They differ in the range in
# which pixels entered it: [-1, 1], for which it was trained (arXiv 2410.11081v2), or
# [0, 1] (EDM2). So each is right for the latents that were made its way only.
WHITENING = {
    "sd_vae_ft_mse_pm1": Whitening(
        (1.56, -0.695, 0.483, 0.729), (5.27, 5.91, 4.21, 4.31)
    ),
    "edm2": Whitening((5.81, 3.25, 0.12, -2.15), (4.17, 4.62, 3.71, 3.28)),
}


def whiten(latent: np.ndarray, whitening: str) -> np.ndarray:
    """Raw latents -> float32 of mean 0 and standard deviation 0.5 in each channel."""
    mean, std = _constants(whitening)
    return (latent.astype(np.float32) - mean) * (np.float32(SIGMA_DATA) / std)


def unwhiten(x: np.ndarray, whitening: str) -> np.ndarray:
    """Inverts ``whiten``: what the autoencoder decodes."""
    mean, std = _constants(whitening)
    return np.asarray(x, np.float32) * (std / np.float32(SIGMA_DATA)) + mean


def _constants(whitening: str) -> tuple[np.ndarray, np.ndarray]:
    mean, std = lookup(WHITENING, whitening, "dataset.whitening")
    return np.array(mean, np.float32), np.array(std, np.float32)


def draw_latents(fields: pipeline.Fields, keys: np.ndarray) -> pipeline.Fields:
    """One draw from each stored posterior; latents stored as such stay as they are.

    Eight channels are mean and standard deviation. The noise belongs to seed, epoch and
    item; see ``FiniteDataset``.
    """
    latent = fields["latent"]
    if latent.shape[-1] != 2 * CHANNELS:
        return fields
    mean, std = (a.astype(np.float32) for a in np.split(latent, 2, axis=-1))
    noise = [
        images.item_rng(key).standard_normal(mean.shape[1:], np.float32) for key in keys
    ]
    return {**fields, "latent": mean + std * np.stack(noise)}


def _decode(
    fields: pipeline.Fields, whitening: str
) -> tuple[np.ndarray, np.ndarray | None]:
    latent = images.stored(fields, "latent", ("float16", "float32"), NAME)
    if latent.shape[-1] == 2 * CHANNELS:
        latent = latent[..., :CHANNELS]  # not drawn: the mean
    if latent.shape[-1] == CHANNELS:
        x = whiten(latent, whitening)
    else:
        x = latent.astype(np.float32)  # an error in check_items, which knows the item
    return x, images.stored_label(fields, NAME)


def _verify(dataset: pipeline.FiniteDataset, whitening: str) -> None:
    """Warns where the latents cannot be those that the constants were measured on."""
    num = len(dataset.source)
    if num < 64:
        return
    x, _ = dataset.items(np.linspace(0, num - 1, 64).astype(np.int64))
    mean, std = x.mean((0, 1, 2)), x.std((0, 1, 2))
    if (np.abs(mean) > 0.15).any() or (np.abs(std - SIGMA_DATA) > 0.2).any():
        logger.warning(
            "dataset %r: with dataset.whitening = %r, 64 items have means %s and "
            "standard deviations %s per channel instead of 0 and %s. Were these "
            "latents encoded from pixels in another range? Legal: %s",
            *(NAME, whitening, mean.round(2), std.round(2), SIGMA_DATA),
            sorted(WHITENING),
        )


def make_imagenet512_latents(
    split: str = "train",
    *,
    root: str | os.PathLike[str] | None = None,
    prepare: bool = False,
    whitening: str = "sd_vae_ft_mse_pm1",
) -> pipeline.LazyDataset:
    """Latents of ImageNet 512x512: ``(64, 64, 4)``, 1000 classes, never mirrored.

    Stored are raw latents, or their posterior's mean and standard deviation in eight
    channels; then every reading draws anew, and ``arrays`` gives the means.

    Args:
      split: ``train`` or ``validation``, or a slice.
      root: folder of prepared datasets.
      prepare: without effect; the data have to be there.
      whitening: a key of ``WHITENING``.

    Raises:
      ValueError: no such whitening or split.
    """
    del prepare
    lookup(WHITENING, whitening, "dataset.whitening")
    info = DatasetInfo(
        name=NAME,
        sample_shape=(64, 64, CHANNELS),
        num_classes=1000,
        sigma_data=SIGMA_DATA,
        num_items=0,
        description=f"latents whitened to standard deviation 0.5 ({whitening})",
        # A look at the layout, not at colours: these need the autoencoder.
        to_pixels=images.to_pixels,
    )
    return images.make_prepared(
        info,
        split,
        images.IMAGENET_ITEMS,
        root,
        "latent float16 or float32 (64, 64, 4), or (64, 64, 8) with mean and standard "
        "deviation, and label int64 in 0..999",
        functools.partial(_decode, whitening=whitening),
        draw_latents,
        functools.partial(_verify, whitening=whitening),
    )
