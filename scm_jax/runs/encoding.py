"""Images to latents on the devices of this process: the autoencoder as an encoder."""

from __future__ import annotations

import os

import jax
import jax.numpy as jnp
import numpy as np

from scm_jax.datasets import pixels as quantize
from scm_jax.datasets.preparation.encode import Encoder
from scm_jax.files import atomic, catalogue
from scm_jax.networks import autoencoder
from scm_jax.networks.external.autoencoder import load_autoencoder
from scm_jax.runs.latents import AUTOENCODER
from scm_jax.training import sharding
from scm_jax.types import lookup


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
      pixel_range: in which pixels enter, a key of ``quantize.PIXEL_RANGES``: ``pm1`` is
        what sd-vae-ft-mse was trained with, ``unit`` what EDM2 fed to it.
      batch_size: images per call, over all local devices; 0 for 8 on each.
      dtype: compute dtype, ``float32`` or ``bfloat16``.

    Raises:
      FileNotFoundError: there are no weights; the message says where they come from.
      ValueError: no such range, weights of something else, or a batch that the devices
        cannot share.
    """
    pixels = lookup(quantize.PIXEL_RANGES, pixel_range, "pixel_range")
    path = catalogue.find_weights(AUTOENCODER, vae)
    module, params = load_autoencoder(path, dtype=jnp.dtype(dtype))
    mesh = sharding.make_mesh(sharding.MeshSpec(), jax.local_devices())
    batch_size = batch_size or autoencoder.SLICE_SIZE * mesh.size
    sharding.check_batch_size(batch_size, mesh)
    params = jax.device_put(params, sharding.replicated(mesh))

    @jax.jit
    def run(params: dict, images: jax.Array) -> jax.Array:
        x = pixels.from_uint8(images)
        # The batch is the slice: it is already as large as the devices are to hold.
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
