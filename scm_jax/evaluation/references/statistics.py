"""Reference statistics of real images: read from files of any format, and written.

A reference is what a set of images looks like in one or more feature spaces. A space
has the name of the distance that is measured in it: ``fid`` is the 2048 pooled features
of the Inception network, ``sfid`` its 2023 spatial ones, ``fd_dinov2`` the 1024 of
DINOv2; our own files may hold further ones. ``reference_files`` lists the formats.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from scm_jax.evaluation.metrics.frechet import FeatureStats, feature_stats
from scm_jax.evaluation.references.formats import (
    Entries,
    ReferenceFile,
    open_file,
    own_entries,
    quoted,
)
from scm_jax.files.atomic import file_sha256
from scm_jax.files.state_dict import write_state_dict

# Features of the spaces that published files have.
DIMENSIONS = {"fid": 2048, "sfid": 2023, "fd_dinov2": 1024}
# Asymmetry of a covariance over its largest entry: some were summed up in float32.
ASYMMETRY = 1e-5


@dataclasses.dataclass(frozen=True, eq=False)
class Space:
    """A set of images in one feature space.

    Attributes:
      mean: ``(d,)`` float64.
      covariance: ``(d, d)`` float64, symmetric.
      count: images behind these; None if unknown.
      features: ``(n, d)``, which KID, precision and recall need, or None. Not always of
        the whole set.
      protocol: how the features came to be, as far as known: ``extractor``,
        ``extractor_sha256``, ``resize``.
    """

    mean: np.ndarray
    covariance: np.ndarray
    count: int | None = None
    features: np.ndarray | None = None
    protocol: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class Reference:
    """One feature space of a file, and what the file says of it.

    Attributes:
      metric: name of the space.
      mean: ``(d,)`` float64.
      covariance: ``(d, d)`` float64, symmetric.
      count: images behind these; None where the file does not say.
      features: ``(n, d)`` or None.
      images: uint8 ``(n, h, w, c)``; None if there are none or they were not asked for.
      format: of the file, one of the table in ``reference_files``.
      sha256: of the file.
      protocol: what the file says of the set and of how its features came to be; None
        if nothing.
    """

    metric: str
    mean: np.ndarray
    covariance: np.ndarray
    count: int | None
    features: np.ndarray | None
    images: np.ndarray | None
    format: str
    sha256: str
    protocol: dict[str, Any] | None


def read_reference(
    path: str | os.PathLike, metric: str = "fid", *, with_images: bool = False
) -> Reference:
    """Statistics of one feature space from a file of any known format.

    Args:
      path: the file; its format is recognized by what it holds.
      metric: name of the space.
      with_images: also read the images, 2 GB in a published file of ``adm``.

    Raises:
      FileNotFoundError: no such file.
      state_dict.UnsafePickleError: a pickle that would have run code.
      ValueError: a damaged file or one of no known format; a space that it does not
        hold; statistics of another dimension, not finite or not symmetric. Names file,
        entry, what was found and what was expected.
    """
    path = Path(path)
    with open_file(path) as file:
        space = _read_space(file, metric)
        images = _read_images(file) if with_images else None
        protocol = {**file.protocol, **space.protocol}
    return Reference(
        metric=metric,
        mean=space.mean,
        covariance=space.covariance,
        count=space.count,
        features=space.features,
        images=images,
        format=file.format,
        sha256=file_sha256(path),
        protocol=protocol or None,
    )


def space_of(
    stats: FeatureStats,
    features: np.ndarray | None = None,
    protocol: Mapping[str, Any] | None = None,
) -> Space:
    """Statistics that were accumulated here, as they are written."""
    return Space(stats.mean, stats.covariance, stats.count, features, protocol or {})


def write_reference(
    path: str | os.PathLike,
    spaces: Mapping[str, Space],
    *,
    dataset: str,
    images: np.ndarray | None = None,
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Writes our own format, whole or not at all.

    Args:
      path: with suffix ``.npz``.
      spaces: by name of the metric.
      dataset: name of the set, as in a number's protocol.
      images: uint8 ``(n, h, w, c)`` of the set, for metrics that extract anew.
      notes: further entries of the protocol, such as split or preparation.

    Raises:
      ValueError: no spaces, statistics that ``read_reference`` would refuse, or another
        suffix.
    """
    path = Path(path)
    if path.suffix != ".npz" or not spaces or any("." in name for name in spaces):
        raise ValueError(
            f"{path}: expected the suffix .npz and feature spaces whose names have no "
            f"dot; got {quoted(spaces)}"
        )
    protocol = {
        **(notes or {}),
        "dataset": dataset,
        "spaces": {
            name: {**space.protocol, "count": space.count}
            for name, space in spaces.items()
        },
    }
    text = json.dumps(protocol, allow_nan=False)
    arrays = {"protocol": np.frombuffer(text.encode(), np.uint8)}
    for name, space in spaces.items():
        entries = own_entries(name)
        checked = _checked(str(path), name, entries, space)
        arrays[entries.mean] = checked.mean
        arrays[entries.covariance] = checked.covariance
        if checked.features is not None:
            arrays[entries.features] = checked.features
    if images is not None:
        arrays["images"] = _checked_images(str(path), "images", images)
    write_state_dict(path, arrays)


def convert_reference(source: str | os.PathLike, target: str | os.PathLike) -> None:
    """Writes all that a reference file of any format holds as one of our own.

    Its protocol names the source and its sha256.

    Raises:
      What ``read_reference`` and ``write_reference`` raise.
    """
    source = Path(source)
    with open_file(source) as file:
        spaces = {name: _read_space(file, name) for name in file.spaces}
        images = _read_images(file)
        notes = {"dataset": source.stem, **file.protocol}
    origin = {"name": source.name, "format": file.format, "sha256": file_sha256(source)}
    dataset = notes.pop("dataset")
    notes["converted_from"] = origin
    write_reference(target, spaces, dataset=dataset, images=images, notes=notes)


def _read_space(file: ReferenceFile, metric: str) -> Space:
    if metric not in file.spaces:
        raise ValueError(
            f"{file.where} has no statistics for {metric!r}: it is of the format "
            f"{file.format} and has those for {quoted(file.spaces)}"
        )
    entries = file.spaces[metric]
    made = dict(file.made.get(metric, {}))
    count = made.pop("count", None)
    features = file.array(entries.features) if entries.features else None
    if entries.mean:
        mean, covariance = file.array(entries.mean), file.array(entries.covariance)
    else:  # features and nothing else
        assert features is not None
        width = DIMENSIONS.get(metric)
        _check_array(file.where, entries.features, features, (None, width))
        stats = feature_stats(features)
        mean, covariance, count = stats.mean, stats.covariance, stats.count
    space = Space(mean, covariance, count, features, made)
    return _checked(file.where, metric, entries, space)


def _checked(where: str, metric: str, entries: Entries, space: Space) -> Space:
    """The space in float64, if it can be that of ``metric``."""
    mean = np.asarray(space.mean)
    covariance = np.asarray(space.covariance)
    dim = DIMENSIONS.get(metric, mean.size)
    _check_array(where, entries.mean, mean, (dim,))
    _check_array(where, entries.covariance, covariance, (dim, dim))
    if space.features is not None:
        _check_array(where, entries.features, space.features, (None, dim))
    covariance = covariance.astype(np.float64)
    limit = ASYMMETRY * np.abs(covariance).max()
    difference = np.abs(covariance - covariance.T).max()
    if difference > limit or covariance.diagonal().min() < -limit:
        raise ValueError(
            f"{where}: entry {entries.covariance!r} is no covariance: expected "
            f"symmetry to {limit:.3g} and no negative variances, found a difference of "
            f"{difference:.3g} and the variance {covariance.diagonal().min():.3g}"
        )
    return dataclasses.replace(
        space,
        mean=mean.astype(np.float64),
        covariance=(covariance + covariance.T) / 2,
    )


def _check_array(
    where: str, name: str, array: np.ndarray, expected: tuple[int | None, ...]
) -> None:
    """A finite array of numbers with these lengths, where None is any."""
    fits = array.ndim == len(expected) and all(
        want in (None, have) for have, want in zip(array.shape, expected, strict=True)
    )
    if not fits or not array.size:
        shape = str(expected).replace("None", "n")
        raise ValueError(
            f"{where}: entry {name!r} has shape {array.shape}, expected {shape}: it is "
            "of another feature extractor or another metric"
        )
    if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
        raise ValueError(
            f"{where}: entry {name!r} ({array.dtype}) holds values that are not finite "
            "numbers"
        )


def _read_images(file: ReferenceFile) -> np.ndarray | None:
    if not file.images:
        return None
    return _checked_images(file.where, file.images, file.array(file.images))


def _checked_images(where: str, name: str, images: np.ndarray) -> np.ndarray:
    if images.dtype != np.uint8 or images.ndim != 4:
        raise ValueError(
            f"{where}: entry {name!r} is {images.dtype} {images.shape}, expected uint8 "
            "(n, h, w, c)"
        )
    return images
