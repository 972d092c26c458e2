"""Between pixels and whitened latents: the autoencoder of a dataset of latents."""

from __future__ import annotations

import dataclasses
import logging
import os
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from scm_jax.datasets import latents
from scm_jax.datasets import pixels as quantize
from scm_jax.files import atomic, catalogue, shipped
from scm_jax.networks import autoencoder
from scm_jax.networks.external.autoencoder import load_autoencoder
from scm_jax.training import sharding
from scm_jax.types import DatasetInfo, lookup

if TYPE_CHECKING:
    from scm_jax.datasets.preparation.encode import Encoder

logger = logging.getLogger(__name__)

AUTOENCODER = "sd-vae-ft-mse"
NONE = "none"  # in place of a decoder: latents are shown as they are


@dataclasses.dataclass(frozen=True)
class Decoder:
    """An autoencoder with the conventions of one dataset."""

    module: Any  # an AutoencoderKL or a VideoAutoencoder
    params: Any  # an argument of compiled functions, so that they do not contain it
    whitening: latents.Whitening  # how the dataset scales latents
    path: str  # file of the weights

    def pixels(self, params: Any, x0: jax.Array) -> jax.Array:
        """Pixels ``(n, f h, f w, 3)`` uint8 of ``(n, h, w, c)`` latents; traceable.

        Clips ``(n, t, h, w, c)`` give all of their frames.
        """
        to_uint8 = quantize.by_interval(self.whitening.pixel_range).to_uint8

        def run(part: jax.Array) -> jax.Array:
            raw = latents.unwhiten(part, self.whitening)
            return to_uint8(autoencoder.decode(self.module, params, raw))

        return autoencoder.in_slices(run, x0, self.module.slice_size)


def find_decoder(decoder: str, info: DatasetInfo) -> Decoder | None:
    """The decoder of a dataset; None without latents to look at, or if none is wanted.

    ``decoder`` is ``config.sampling.decoder``: a file, ``none``, or empty for published
    weights, which may be missing: then there is a warning and None.

    Raises:
      FileNotFoundError: no such file, or the dataset's constants are measured and its
        manifest is missing.
      ValueError: the weights are of another network, or of other latents.
    """
    if info.whitening is None or info.to_pixels is None or decoder == NONE:
        return None
    try:
        path = catalogue.find_weights(AUTOENCODER, decoder and shipped.find(decoder))
    except FileNotFoundError:
        if decoder:
            raise
        place = next(catalogue.accepted_paths(AUTOENCODER))
        logger.warning(
            "dataset %r holds latents, and without %s (of %s) they are shown as they "
            "are: three channels as colours. Name another file with sampling.decoder "
            "or --vae",
            *(info.name, place, catalogue.PUBLISHED[AUTOENCODER][place.name]),
        )
        return None
    module, params = load_autoencoder(path)
    if module.latent_channels != info.sample_shape[-1]:
        raise ValueError(
            f"{path} decodes latents of {module.latent_channels} channels; those of "
            f"dataset {info.name!r} have {info.sample_shape[-1]}"
        )
    params = jax.tree.map(jax.numpy.asarray, params)  # to the device, once
    return Decoder(module, params, info.whitening(), str(path))


def make_encoder(
    vae: str | os.PathLike[str] = "",
    pixel_range: str = "pm1",
    *,
    batch_size: int = 0,
    dtype: str = "float32",
) -> Encoder:
    """An encoder of batches that are split over the local devices.

    Args:
      vae: weights of the autoencoder; empty looks where they are kept.
      pixel_range: key of ``quantize.PIXEL_RANGES`` in which pixels enter: ``pm1`` is
        what sd-vae-ft-mse was trained with, ``unit`` what EDM2 fed to it.
      batch_size: images per call, over all local devices; 0 for 8 on each.
      dtype: compute dtype, ``float32`` or ``bfloat16``.

    Raises:
      FileNotFoundError: there are no weights; the message says where to get them.
      ValueError: no such range, weights of another network, or a batch that the devices
        cannot share.
    """
    from scm_jax.datasets.preparation.encode import Encoder

    pixels = lookup(quantize.PIXEL_RANGES, pixel_range, "pixel_range")
    path = catalogue.find_weights(AUTOENCODER, vae)
    module, params = load_autoencoder(path, dtype=jnp.dtype(dtype))
    mesh = sharding.make_mesh(sharding.MeshSpec(), jax.local_devices())
    batch_size = batch_size or module.slice_size * mesh.size
    sharding.check_batch_size(batch_size, mesh)
    params = jax.device_put(params, sharding.replicated(mesh))

    @jax.jit
    def run(params: dict, images: jax.Array) -> jax.Array:
        x = pixels.from_uint8(images)
        # The batch is the slice: the devices hold it whole.
        mean, std = autoencoder.encode(module, params, x, slice_size=batch_size)
        return jnp.concatenate([mean, std], axis=-1)

    def encode(images: np.ndarray) -> np.ndarray:
        placed = jax.device_put(images, sharding.batch_sharding(mesh))
        return np.asarray(run(params, placed))

    identity = {
        "pixel_range": pixels.interval,
        "name": AUTOENCODER if not os.fspath(vae) else path.name,
        "sha256": atomic.file_sha256(path),
    }
    return Encoder(encode, batch_size, identity)
