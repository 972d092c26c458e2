"""What is where in a file of reference statistics, whatever its format.

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
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from scm_jax.files.state_dict import read_groups

_CLEAN_FID = re.compile(
    r"(?P<dataset>.+)_(?P<resize>clean|legacy_pytorch|legacy_tensorflow)"
    r"_(?P<split>[^_]+)_(?P<resolution>[^_]+?)(_kid)?\.npz"
)
# What a damaged npz makes numpy or zipfile raise.
_BAD_NPZ = (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error)


@dataclasses.dataclass(frozen=True)
class Entries:
    """Names of the entries of one feature space; ``""`` is none."""

    mean: str = ""
    covariance: str = ""
    features: str = ""


@dataclasses.dataclass(frozen=True)
class ReferenceFile:
    """An open file of reference statistics.

    Attributes:
      where: its name, for messages.
      format: a name of the table above.
      names: of its entries.
      get: reads one of them.
      spaces: feature space -> where it is.
      images: name of the entry with images, or "".
      protocol: what is known of the set of images.
      made: feature space -> what is known of it: ``count`` of the images, and how the
        features were extracted.
    """

    where: str
    format: str
    names: tuple[str, ...]
    get: Callable[[str], Any]
    spaces: Mapping[str, Entries]
    images: str = ""
    protocol: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    made: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)

    def array(self, name: str) -> np.ndarray:
        """An entry.

        Raises:
          ValueError: it is damaged, or not there; says what is.
        """
        if name not in self.names:
            raise ValueError(
                f"{self.where}: no entry {name!r}; it holds {quoted(self.names)}"
            )
        try:
            return np.asarray(self.get(name))
        except _BAD_NPZ as error:
            raise ValueError(f"{self.where}: entry {name!r}: {error}") from error


@contextlib.contextmanager
def open_file(path: Path) -> Iterator[ReferenceFile]:
    """The file, its format recognized by its entries.

    Raises:
      FileNotFoundError: there is none.
      state_dict.UnsafePickleError: a pickle that would have run code.
      ValueError: a damaged file, or one of another kind.
    """
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
            yield _open_npz(path, tuple(stored.files), stored.__getitem__)


def quoted(names: Iterable[str]) -> str:
    """Names in a message."""
    return ", ".join(map(repr, names)) or "nothing"


def _open_pickle(where: str, groups: Mapping[str, Any]) -> ReferenceFile:
    """EDM2's ``{num_images, SPACE: {mu, sigma}}``."""
    inner = {name: value for name, value in groups.items() if isinstance(value, dict)}
    entries = {
        f"{space}.{name}": value
        for space, values in inner.items()
        for name, value in values.items()
    }
    if not inner:
        raise ValueError(
            f"{where} is no file of reference statistics: expected dicts of mu and "
            f"sigma; the pickle holds {quoted(groups)}"
        )
    count = groups.get("num_images")
    if count is not None:
        count = _whole_number(where, "num_images", count)
    return ReferenceFile(
        where,
        "edm2",
        tuple(entries),
        entries.__getitem__,
        {space: Entries(f"{space}.mu", f"{space}.sigma") for space in inner},
        made={space: {"count": count} for space in inner},
    )


def _open_npz(
    path: Path, names: tuple[str, ...], get: Callable[[str], Any]
) -> ReferenceFile:
    where = str(path)
    if "protocol" in names:
        return _open_own(where, names, get)
    match = _CLEAN_FID.fullmatch(path.name)
    spaces = {"fid": Entries("mu", "sigma"), "sfid": Entries("mu_s", "sigma_s")}
    images, told = "", {}
    if "arr_0" in names or "mu_s" in names:
        kind, images = "adm", "arr_0" if "arr_0" in names else ""
    elif "ref_mu" in names:
        kind, spaces = "meanflow", {"fid": Entries("ref_mu", "ref_sigma")}
    elif "feats" in names:
        kind, spaces = "clean_fid", {"fid": Entries(features="feats")}
    else:
        kind = "clean_fid" if match else "edm"
    if match and kind == "clean_fid":
        told = {k: v for k, v in match.groupdict().items() if v}
    # One of a pair is enough to say that the other is missing.
    spaces = {
        space: entries
        for space, entries in spaces.items()
        if {entries.mean, entries.covariance, entries.features} & set(names)
    }
    if not spaces:
        raise ValueError(
            f"{where} is no file of reference statistics: expected mu and sigma, ref_mu"
            f" and ref_sigma, feats or protocol; it holds {quoted(names)}"
        )
    return ReferenceFile(where, kind, names, get, spaces, images, told)


def _open_own(
    where: str, names: tuple[str, ...], get: Callable[[str], Any]
) -> ReferenceFile:
    try:
        protocol = json.loads(np.asarray(get("protocol")).tobytes())
        made = {space: dict(told) for space, told in protocol.pop("spaces").items()}
        spaces = {space: own_entries(space) for space in made}
    except (*_BAD_NPZ, AttributeError, TypeError) as error:
        raise ValueError(f"{where}: entry 'protocol' is damaged: {error}") from error
    spaces = {
        space: dataclasses.replace(
            entries, features=entries.features if entries.features in names else ""
        )
        for space, entries in spaces.items()
    }
    images = "images" if "images" in names else ""
    return ReferenceFile(where, "scm_jax", names, get, spaces, images, protocol, made)


def own_entries(space: str) -> Entries:
    """The names of our own format."""
    return Entries(f"{space}.mean", f"{space}.covariance", f"{space}.features")


def _whole_number(where: str, name: str, value: Any) -> int:
    array = np.asarray(value)
    if array.shape or array.dtype.kind not in "iu" or array < 1:
        raise ValueError(
            f"{where}: entry {name!r} is {value!r:.60}, expected a number from 1 on"
        )
    return int(array)
