"""Reference statistics of real images: files of all known formats, read and written.

A file holds them in one or more feature spaces. A space has the name of the distance
that is measured in it: ``fid`` is the 2048 pooled features of the Inception network,
``sfid`` its 2023 spatial ones, ``fd_dinov2`` the 1024 of DINOv2.

==============  =====================================================================
format          holds
==============  =====================================================================
``scm_jax``     npz: ``SPACE.mean``, ``SPACE.covariance``, maybe ``SPACE.features``;
                maybe ``images``; ``protocol``, a JSON object as bytes
``adm``         npz ``VIRTUAL_*``: mu, sigma (fid), mu_s, sigma_s (sfid), and in arr_0
                10,000 images
``edm``         npz: mu, sigma
``edm2``        pickle: num_images, fid and fd_dinov2 with mu and sigma each
``clean_fid``   npz ``NAME_MODE_SPLIT_RES``: mu, sigma; with ``_kid`` behind it: feats
``meanflow``    npz: ref_mu, ref_sigma
==============  =====================================================================

A pickle is read as data; nothing in it is executed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scm_jax.evaluation.metrics.frechet import feature_stats
from scm_jax.files.atomic import file_sha256
from scm_jax.files.state_dict import read_groups, write_state_dict

# Features of the spaces that published files have.
DIMENSIONS = {"fid": 2048, "sfid": 2023, "fd_dinov2": 1024}
# Asymmetry of a covariance over its largest entry: some were summed up in float32.
ASYMMETRY = 1e-5

_CLEAN_FID = re.compile(
    r"(?P<dataset>.+)_(?P<resize>clean|legacy_pytorch|legacy_tensorflow)"
    r"_(?P<split>[^_]+)_(?P<resolution>[^_]+?)(_kid)?\.npz"
)
# What a damaged npz makes numpy or zipfile raise.
_BAD_NPZ = (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error)


@dataclasses.dataclass(frozen=True, eq=False)
class Reference:
    """A set of images in one feature space.

    Attributes:
      mean: ``(d,)`` float64.
      covariance: ``(d, d)`` float64, symmetric.
      count: images behind these; None if unknown.
      features: ``(n, d)``, which KID, precision and recall need, or None. Not always of
        the whole set.
      protocol: what is known of the set, and of its features: ``extractor``,
        ``extractor_sha256``, ``resize``.
      sha256: of the file; empty for one that is not written yet.
    """

    mean: np.ndarray
    covariance: np.ndarray
    count: int | None = None
    features: np.ndarray | None = None
    protocol: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    sha256: str = ""


def read_reference(path: str | os.PathLike, metric: str = "fid") -> Reference:
    """Statistics of one feature space from a file of any known format.

    Args:
      path: the file; its format is recognized by what it holds.
      metric: name of the space.

    Raises:
      FileNotFoundError: no such file.
      state_dict.UnsafePickleError: a pickle that would have run code.
      ValueError: a damaged file or one of no known format; a space that it does not
        hold; statistics of another dimension, not finite or not symmetric.
    """
    with _open(Path(path)) as file:
        space = _read_space(file, metric)
        protocol = {**file.protocol, **space.protocol}
    return dataclasses.replace(space, protocol=protocol, sha256=file_sha256(path))


def write_reference(
    path: str | os.PathLike,
    spaces: Mapping[str, Reference],
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
            f"dot; got {_quoted(spaces)}"
        )
    told = {name: {**s.protocol, "count": s.count} for name, s in spaces.items()}
    protocol = {**(notes or {}), "dataset": dataset, "spaces": told}
    text = json.dumps(protocol, allow_nan=False)
    arrays = {"protocol": np.frombuffer(text.encode(), np.uint8)}
    for name, space in spaces.items():
        entries = _own_entries(name)
        checked = _checked(str(path), name, entries, space)
        arrays[entries.mean] = checked.mean
        arrays[entries.covariance] = checked.covariance
        if checked.features is not None:
            arrays[entries.features] = checked.features
    if images is not None:
        arrays["images"] = images
    write_state_dict(path, arrays)


def convert_reference(source: str | os.PathLike, target: str | os.PathLike) -> None:
    """Writes all that a reference file of any format holds as one of our own.

    Its protocol names the source and its sha256.

    Raises:
      What ``read_reference`` and ``write_reference`` raise.
    """
    source = Path(source)
    with _open(source) as file:
        spaces = {name: _read_space(file, name) for name in file.spaces}
        images = file.array(file.images) if file.images else None
        notes = {"dataset": source.stem, **file.protocol}
    if images is not None and (images.dtype != np.uint8 or images.ndim != 4):
        raise ValueError(
            f"{source}: entry {file.images!r} is {images.dtype} {images.shape}, "
            "expected uint8 (n, h, w, c)"
        )
    origin = {"name": source.name, "format": file.format, "sha256": file_sha256(source)}
    dataset = notes.pop("dataset")
    notes["converted_from"] = origin
    write_reference(target, spaces, dataset=dataset, images=images, notes=notes)


def _read_space(file: _File, metric: str) -> Reference:
    if metric not in file.spaces:
        raise ValueError(
            f"{file.where} has no statistics for {metric!r}: it is of the format "
            f"{file.format} and has those for {_quoted(file.spaces)}"
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
    space = Reference(mean, covariance, count, features, made)
    return _checked(file.where, metric, entries, space)


def _checked(where: str, metric: str, entries: _Entries, space: Reference) -> Reference:
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
    covariance = (covariance + covariance.T) / 2
    return dataclasses.replace(
        space, mean=mean.astype(np.float64), covariance=covariance
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


# --- What is where in a file ----------------------------------------------------------


class _Entries(NamedTuple):
    """Names of the entries of one feature space; ``""`` is none."""

    mean: str = ""
    covariance: str = ""
    features: str = ""


def _own_entries(space: str) -> _Entries:
    return _Entries(f"{space}.mean", f"{space}.covariance", f"{space}.features")


class _File(NamedTuple):
    """An open file of reference statistics, in a format of the table above."""

    where: str  # for messages
    format: str
    names: tuple[str, ...]  # of the entries, which ``get`` reads
    get: Callable[[str], Any]
    spaces: Mapping[str, _Entries]
    images: str = ""  # name of their entry
    protocol: Mapping[str, Any] = {}  # what is known of the set of images
    made: Mapping[str, Mapping[str, Any]] = {}  # and, with ``count``, of a space

    def array(self, name: str) -> np.ndarray:
        """An entry, or a ValueError that says what is damaged or missing."""
        if name not in self.names:
            raise ValueError(
                f"{self.where}: no entry {name!r}; it holds {_quoted(self.names)}"
            )
        try:
            return np.asarray(self.get(name))
        except _BAD_NPZ as error:
            raise ValueError(f"{self.where}: entry {name!r}: {error}") from error


@contextlib.contextmanager
def _open(path: Path) -> Iterator[_File]:
    """The file, its format recognized by its entries."""
    with path.open("rb") as file:
        is_zip = file.read(2) == b"PK"
        file.seek(0)
        if not is_zip:
            yield _open_pickle(str(path), read_groups(path))
            return
        try:
            stored = np.load(file, allow_pickle=False)
        except _BAD_NPZ as error:
            raise ValueError(f"{path} is cut off or damaged: {error}") from error
        with stored:
            names, get = tuple(stored.files), stored.__getitem__
            opened = _open_own if "protocol" in names else _open_published
            yield opened(path, names, get)


def _open_pickle(where: str, groups: Mapping[str, Any]) -> _File:
    """EDM2's ``{num_images, SPACE: {mu, sigma}}``."""
    inner = {name: value for name, value in groups.items() if isinstance(value, dict)}
    entries = {
        f"{space}.{name}": value
        for space, values in inner.items()
        for name, value in values.items()
    }
    if not inner:
        raise _unknown(where, "dicts of mu and sigma in the pickle", groups)
    count = groups.get("num_images")
    kind = np.asarray(count).dtype.kind
    if count is not None and (np.ndim(count) or kind not in "iu" or count < 1):
        raise ValueError(
            f"{where}: entry 'num_images' is {count!r:.60}, expected a number from 1 on"
        )
    spaces = {space: _Entries(f"{space}.mu", f"{space}.sigma") for space in inner}
    made = {space: {"count": count and int(count)} for space in inner}
    get = entries.__getitem__
    return _File(where, "edm2", tuple(entries), get, spaces, made=made)


def _open_published(
    path: Path, names: tuple[str, ...], get: Callable[[str], Any]
) -> _File:
    match = _CLEAN_FID.fullmatch(path.name)
    kind = "clean_fid" if match else "edm"
    spaces = {"fid": _Entries("mu", "sigma"), "sfid": _Entries("mu_s", "sigma_s")}
    images = "arr_0" if "arr_0" in names else ""
    if images or "mu_s" in names:
        kind = "adm"
    elif "ref_mu" in names:
        kind, spaces = "meanflow", {"fid": _Entries("ref_mu", "ref_sigma")}
    elif "feats" in names:
        kind, spaces = "clean_fid", {"fid": _Entries(features="feats")}
    # One of a pair is enough to say that the other is missing.
    spaces = {name: found for name, found in spaces.items() if set(found) & set(names)}
    if not spaces:
        expected = "mu and sigma, ref_mu and ref_sigma, feats or protocol"
        raise _unknown(str(path), expected, names)
    told = match.groupdict() if match and kind == "clean_fid" else {}
    return _File(str(path), kind, names, get, spaces, images, told)


def _open_own(path: Path, names: tuple[str, ...], get: Callable[[str], Any]) -> _File:
    try:
        protocol = json.loads(np.asarray(get("protocol")).tobytes())
        made = {space: dict(told) for space, told in protocol.pop("spaces").items()}
    except (*_BAD_NPZ, AttributeError, TypeError) as error:
        raise ValueError(f"{path}: entry 'protocol' is damaged: {error}") from error
    spaces = {}
    for space in made:
        found = _own_entries(space)
        features = found.features if found.features in names else ""
        spaces[space] = found._replace(features=features)
    images = "images" if "images" in names else ""
    return _File(str(path), "scm_jax", names, get, spaces, images, protocol, made)


def _unknown(where: str, expected: str, names: Iterable[str]) -> ValueError:
    return ValueError(
        f"{where} is no file of reference statistics: expected {expected}; it holds "
        f"{_quoted(names)}"
    )


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "nothing"
