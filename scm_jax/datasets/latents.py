"""ImageNet 512x512 as whitened latents of the Stable Diffusion autoencoder.

Raw latents are stored, so that the constants of the whitening are a choice of the
config. The card is ``data/imagenet512/README.md``.
"""

from __future__ import annotations

import functools
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from scm_jax.datasets import images, pipeline, storage
from scm_jax.types import DatasetInfo, lookup

logger = logging.getLogger(__name__)

NAME = "imagenet512_latents"
CHANNELS = 4
SIGMA_DATA = 0.5


class Whitening(NamedTuple):
    """Mean and standard deviation of raw latents, per channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    pixel_range: str  # what entered the autoencoder: "[-1,1]" or "[0,1]"; "" if unknown


# Moments for stabilityai/sd-vae-ft-mse on ImageNet 512x512, with pixels in [-1, 1], for
# which it was trained (arXiv 2410.11081v2), or in [0, 1] (EDM2).
WHITENING = {
    "sd_vae_ft_mse_pm1": Whitening(
        (1.56, -0.695, 0.483, 0.729), (5.27, 5.91, 4.21, 4.31), "[-1,1]"
    ),
    "edm2": Whitening((5.81, 3.25, 0.12, -2.15), (4.17, 4.62, 3.71, 3.28), "[0,1]"),
}

# In place of a recipe: the constants that were measured when the data were prepared.
MEASURED = "measured"


def whiten(latent: Any, whitening: str | Whitening) -> Any:
    """Raw latents, of numpy or JAX -> float32 of mean 0 and std 0.5 in each channel."""
    mean, std = _constants(whitening, latent.ndim)
    return (latent.astype(np.float32) - mean) * (np.float32(SIGMA_DATA) / std)


def unwhiten(x: Any, whitening: str | Whitening) -> Any:
    """Inverts ``whiten``: what the autoencoder decodes."""
    mean, std = _constants(whitening, x.ndim)
    return x.astype(np.float32) * (std / np.float32(SIGMA_DATA)) + mean


def _constants(whitening: str | Whitening, ndim: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation, float32 with ``ndim`` axes."""
    if isinstance(whitening, str):
        whitening = lookup(WHITENING, whitening, "dataset.whitening")
    shape = (1,) * (ndim - 1) + (-1,)
    mean, std = (np.array(v, np.float32).reshape(shape) for v in whitening[:2])
    return mean, std


def find_whitening(folder: Path, whitening: str) -> Whitening:
    """The constants that ``dataset.whitening`` names, for the data in ``folder``.

    Raises:
      ValueError: they are for latents of pixels in another range than the manifest of
        the data records, or ``measured`` and the manifest has no measured ones.
      FileNotFoundError: ``measured``, and there is no manifest.
    """
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    except FileNotFoundError:
        if whitening == MEASURED:
            raise FileNotFoundError(
                f"dataset.whitening = {MEASURED!r} needs {path}, which the preparation "
                f"writes; without it choose of {sorted(WHITENING)}"
            ) from None
        manifest = {}
    recorded = manifest.get("encoder", {}).get("pixel_range", "").replace(" ", "")
    if whitening == MEASURED:
        return Whitening(*read_moments(manifest, path), recorded)
    constants = lookup(WHITENING, whitening, "dataset.whitening")
    if recorded and recorded != constants.pixel_range:
        fitting = [k for k, w in WHITENING.items() if w.pixel_range == recorded]
        raise ValueError(
            f"dataset.whitening = {whitening!r} is for latents of pixels in "
            f"{constants.pixel_range}, and {path} says that these were encoded from "
            f"pixels in {recorded}: choose {' or '.join(map(repr, fitting))}, or "
            f"{MEASURED!r}"
        )
    return constants


def read_moments(
    manifest: dict[str, Any], path: Path, channels: int = CHANNELS
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """``mean`` and ``std`` of ``splits.train``, or else of the manifest itself.

    Eight channels are a posterior's mean m and standard deviation s; a draw
    ``m + s * noise`` has the variance ``Var(m) + E[s^2]``.
    """
    train = manifest.get("splits", {}).get("train", {})
    found = {k: train.get(k, manifest.get(k)) for k in ("mean", "std")}
    try:
        mean, std = (np.array(found[k], np.float64) for k in ("mean", "std"))
    except (TypeError, ValueError):
        mean = std = np.zeros(0)
    legal = mean.shape == std.shape and mean.shape in ((channels,), (2 * channels,))
    if not legal or not np.isfinite([mean, std]).all() or not (std > 0).all():
        raise ValueError(
            f"{path} must have under splits.train a mean and a positive std with "
            f"{channels} or {2 * channels} numbers, one for each stored channel; it "
            f"has mean = {found['mean']}, std = {found['std']}"
        )
    if len(mean) == 2 * channels:
        squares = std[:channels] ** 2 + mean[channels:] ** 2 + std[channels:] ** 2
        mean, std = mean[:channels], np.sqrt(squares)
    return tuple(mean.tolist()), tuple(std.tolist())


def whitened_dataset(
    whitening: Whitening, info: DatasetInfo, source: pipeline.Source
) -> pipeline.FiniteDataset:
    """Whitened latents; of posteriors, whose channels are twice as many, draws."""
    channels = info.sample_shape[-1]

    def decode(fields: pipeline.Fields) -> tuple[Any, Any]:
        latent = images.stored(fields, "latent", ("float16", "float32"), info.name)
        if latent.shape[-1] == 2 * channels:
            latent = latent[..., :channels]  # not drawn: the mean
        if latent.shape[-1] == channels:
            x = whiten(latent, whitening)
        else:
            x = latent.astype(np.float32)  # an error where items are checked
        return x, images.stored_label(fields, info.name) if info.num_classes else None

    def draw(fields: pipeline.Fields, keys: jax.Array) -> pipeline.Fields:
        latent = fields["latent"].astype(np.float32)
        mean, std = latent[..., :channels], latent[..., channels:]
        if std.shape != mean.shape:
            return fields

        def noise(key: jax.Array) -> jax.Array:
            return jax.random.normal(key, mean.shape[1:], np.float32)

        return {**fields, "latent": mean + std * jax.vmap(noise)(keys)}

    return pipeline.FiniteDataset(info, source, decode, draw)


def open_latents(
    info: DatasetInfo,
    source: pipeline.Source,
    *,
    whitening: str,
    folder: Callable[[], Path],
) -> pipeline.FiniteDataset:
    """``whitened_dataset`` of what was opened from ``folder``; warns of odd moments."""
    constants = find_whitening(folder(), whitening)
    dataset = whitened_dataset(constants, info, source)
    num = len(source)
    if num < 64:
        return dataset
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
    return dataset


def make_imagenet512_latents(
    split: str = "train",
    *,
    root: str | os.PathLike[str] | None = None,
    whitening: str = "sd_vae_ft_mse_pm1",
    flip: bool = False,
) -> pipeline.LazyDataset:
    """Latents of ImageNet 512x512: ``(64, 64, 4)``, 1000 classes, never mirrored.

    Stored are raw latents, or their posterior's mean and standard deviation in eight
    channels; then every reading draws anew, and ``arrays`` gives the means.

    Args:
      split: ``train`` or ``validation``, or a slice.
      root: folder of prepared datasets.
      whitening: a key of ``WHITENING``, or ``measured`` for the moments in the
        manifest of the data.
      flip: refused.

    Raises:
      ValueError: no such whitening or split, or a flip.
    """
    lookup({**WHITENING, MEASURED: None}, whitening, "dataset.whitening")
    if flip:
        raise ValueError(
            f"dataset.flip = True: dataset {NAME!r} holds latents, and a mirrored "
            "latent is not the latent of the mirrored image; encode both and store "
            "them as two items"
        )
    folder = functools.partial(storage.prepared_folder, NAME, root)

    def declared() -> Whitening:
        # Those who decode need no data unless the constants are measured.
        return WHITENING.get(whitening) or find_whitening(folder(), whitening)

    info = DatasetInfo(
        name=NAME,
        sample_shape=(64, 64, CHANNELS),
        num_classes=1000,
        sigma_data=SIGMA_DATA,
        num_items=0,
        description=f"latents whitened to standard deviation 0.5 ({whitening})",
        # A look at the layout, not at colours: these need the autoencoder.
        to_pixels=images.to_pixels,
        whitening=declared,
    )
    return images.make_prepared(
        info,
        split,
        images.IMAGENET_ITEMS,
        root,
        functools.partial(open_latents, whitening=whitening, folder=folder),
        field="latent",
        flags="--dataset=imagenet512_latents --source=img512-sd.zip",
        features="latent float16 or float32 (64, 64, 4), or (64, 64, 8) with mean and "
        "standard deviation, and label int64 in 0..999",
    )
