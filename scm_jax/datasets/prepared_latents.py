"""Latents of any prepared dataset, whitened as measured, with classes or captions."""

from __future__ import annotations

import dataclasses
import functools
import os
from pathlib import Path
from typing import Any

import numpy as np

from scm_jax.datasets import images, latents, pipeline, shapes, storage
from scm_jax.datasets.captioned import with_captions
from scm_jax.datasets.latents import Whitening
from scm_jax.datasets.prepared_images import find_split
from scm_jax.types import DatasetInfo, check_choice, lookup

# Constants of published latents, for the noise of their models: ``x = factor (latent -
# mean)``, in units where ``sigma_data`` is 1.
FACTORS: dict[str, tuple[int, Any, Any]] = {
    "sd": (4, 0.0, 0.18215),
    "sd3": (16, 0.0609, 1.5305),
}
# A mean and a standard deviation for each channel.
_WAN = (
    *((-0.7571, 2.8184), (-0.7089, 1.4541), (-0.9113, 2.3275), (0.1075, 2.6558)),
    *((-0.1745, 1.2196), (0.9653, 1.7708), (-0.1517, 2.6052), (1.5508, 2.0743)),
    *((0.4134, 3.2687), (-0.0715, 2.1526), (0.5517, 2.8652), (-0.3632, 1.5579)),
    *((-0.1922, 1.6382), (-0.9497, 1.1253), (0.2503, 2.8251), (-0.2921, 1.9160)),
)
FACTORS["wan"] = (16, [m for m, _ in _WAN], [1 / s for _, s in _WAN])
MEASURED = latents.MEASURED

# Prompts that can be checked, by the name that a config gives them.
QUESTIONS = {"": None, "shapes": shapes.questions}


def make_latents(
    split: str = "train",
    *,
    root: str | os.PathLike[str] | None = None,
    prepared: str = "",
    conditional: bool = True,
    captioned: bool = False,
    states: str = "",
    questions: str = "",
    whitening: str = MEASURED,
) -> pipeline.LazyDataset:
    """Latents that ``data encode`` made under some name; each visit draws anew.

    Args:
      split: one of the prepared splits, or a slice such as ``train[:90%]``.
      root: folder of prepared datasets, by default ``storage.default_root()``.
      prepared: name of the prepared dataset; stored are means and standard deviations.
      conditional: give the classes, too, where there are any.
      captioned: see ``prepared_images.make_images``.
      states: likewise.
      questions: a key of ``QUESTIONS``, where the images were drawn by a data set whose
        words can be checked.
      whitening: ``measured``: each channel to mean 0 and standard deviation 0.5 by the
        moments of the manifest; or a key of ``FACTORS``: ``sd`` for DiT and SiT,
        ``sd3``, ``wan``, whose data have ``sigma_data`` 1.

    Raises:
      FileNotFoundError: not prepared; the message has the command that does it.
      ValueError: no such split, or the prepared data are no latents.
    """
    check_choice(questions, QUESTIONS, "dataset.questions")
    root = storage.data_root(root)
    manifest, base, counts = find_split(prepared, split, root, "latent")
    *sides, stored = manifest["shape"]
    folder = storage.prepared_folder(prepared, root)
    constants, sigma_data = _constants(whitening, manifest, folder)
    info = DatasetInfo(
        name=prepared,
        sample_shape=(*sides, stored // 2),
        num_classes=manifest["num_classes"] if conditional else 0,
        sigma_data=sigma_data,
        num_items=0,
        description=f"{prepared}: latents, whitening {whitening!r}",
        # A look at the layout, not at colours: these need the autoencoder.
        to_pixels=images.to_pixels if len(sides) > 1 else None,
        whitening=lambda: constants,
        frame_rate=manifest.get("frame_rate", 0.0),
    )
    build: Any = functools.partial(latents.whitened_dataset, constants)
    wanted = (root, base), captioned, states
    info, build, beside = with_captions(info, build, manifest, *wanted)
    if captioned and (asked := QUESTIONS[questions]) is not None:
        assert info.text is not None
        ask = functools.partial(asked, text=info.text)
        info = dataclasses.replace(info, questions=ask)
    return images.make_prepared(
        info, split, counts, root, build, field="latent", beside=beside
    )


def _constants(
    name: str, manifest: dict[str, Any], folder: Path
) -> tuple[Whitening, float]:
    """The constants that a whitening stands for, and ``sigma_data`` of the result."""
    lookup({**FACTORS, MEASURED: None}, name, "dataset.whitening")
    channels = manifest["shape"][-1] // 2
    pixel_range = manifest["encoder"]["pixel_range"].replace(" ", "")
    if name == MEASURED:
        moments = latents.read_moments(manifest, folder / "manifest.json", channels)
        return Whitening(*moments, pixel_range), latents.SIGMA_DATA
    expected, mean, factor = FACTORS[name]
    if channels != expected:
        raise ValueError(
            f"dataset.whitening = {name!r} is for latents of {expected} channels; "
            f"{folder} has {channels}"
        )
    # ``whiten`` brings a standard deviation to 0.5.
    std = latents.SIGMA_DATA / np.broadcast_to(factor, channels)
    means = np.broadcast_to(mean, channels)
    return Whitening(tuple(means.tolist()), tuple(std.tolist()), pixel_range), 1.0
