"""Weights in files: a flat dict of names and numpy arrays, in and out.

Read by content: ``torch.save`` files (zip, and the stream of before 1.6), pickles of
whole networks as the EDM family publishes them, safetensors and npz. Written:
safetensors and npz.
"""

from __future__ import annotations

import dataclasses
import mmap
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from scm_jax.files.atomic import replacing
from scm_jax.files.inert_pickle import Record, UnsafePickleError, is_name
from scm_jax.files.torch_records import (
    DAMAGE,
    is_tensor,
    kind_of,
    module_state,
    to_array,
)
from scm_jax.files.torch_stream import (
    STORAGE_OF,
    Source,
    Storage,
    is_zip,
    open_zip,
    read_stream,
    read_zip,
)

__all__ = [
    "UnsafePickleError",
    "read_groups",
    "read_state_dict",
    "write_state_dict",
]

# Where the weights are in a file that holds more than them, the likeliest first.
WEIGHT_KEYS = ("ema", "net", "state_dict", "model")
_MAX_DEPTH = 100


def read_state_dict(path: str | os.PathLike, *, key: str = "") -> dict[str, np.ndarray]:
    """The weights in a file of any of the formats above, by dotted name.

    A pickled network gives the names that its ``state_dict()`` would have: parameters,
    then persistent buffers, then its submodules.

    Args:
      path: the file; its format is recognized by its content, not by its suffix.
      key: which entry of the file's top-level dict holds the weights. "" takes the file
        itself if it is a state dict, or else the first of ``WEIGHT_KEYS`` that is one.

    Returns:
      Arrays of their own, C-contiguous, in the machine's byte order. torch.bfloat16
      becomes ``ml_dtypes.bfloat16``.

    Raises:
      UnsafePickleError: a pickle in the file asks for a name that weights do not need,
        such as ``os.system``. Nothing was executed.
      ValueError: the file is cut off, damaged or of another kind; ``key`` does not fit;
        a tensor reaches beyond its storage.
    """
    path = Path(path)
    where = str(path)
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            raise ValueError(f"{where} is empty")
        # Mapped, not read: the storages of a legacy stream are sliced out of it.
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        source = Source(where, file, data)
        if _is_safetensors(data):
            return _checked(_read_safetensors(path), where, key)
        if is_zip(data):
            with open_zip(source) as archive:
                if _is_npz(archive):
                    return _checked(_read_npz(archive, where), where, key)
                return _Weights(where).select(read_zip(archive, source), key)
        return _Weights(where).select(read_stream(source), key)


def read_groups(path: str | os.PathLike) -> dict[str, Any]:
    """A pickled dict of values, arrays, and dicts of these, as numpy arrays.

    Such are files of statistics, as EDM2's. What is nested deeper than that stays what
    ``inert_pickle`` makes of it.

    Raises:
      UnsafePickleError: the pickle asks for a name that arrays do not need. Nothing was
        executed.
      ValueError: the file is cut off, damaged or of another kind.
    """
    path = Path(path)
    where = str(path)
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            raise ValueError(f"{where} is empty")
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        top = read_stream(Source(where, file, data))
        if not isinstance(top, dict):
            raise ValueError(f"{where}: {_listing(top)}, expected a dict")
        return {
            str(key): _Weights(where).group(str(key), value)
            for key, value in top.items()
        }


def write_state_dict(
    path: str | os.PathLike, state: Mapping[str, np.typing.ArrayLike]
) -> None:
    """Writes weights in the format that the suffix names, whole or not at all.

    ``.safetensors`` and ``.npz`` are read by their packages; PyTorch takes the former
    with ``safetensors.torch.load_file``. npz has no bfloat16.

    Raises:
      ValueError: another suffix, or an array that the format cannot hold; the message
        names it.
    """
    path = Path(path)
    if path.suffix not in _WRITERS:
        raise ValueError(
            f"{path}: the suffix must be one of {', '.join(_WRITERS)}; PyTorch reads "
            ".safetensors with safetensors.torch.load_file"
        )
    arrays = {name: _writable(name, value) for name, value in state.items()}
    with replacing(path) as unfinished:
        unfinished.touch()
        mode = unfinished.stat().st_mode
        _WRITERS[path.suffix](unfinished, arrays)
        unfinished.chmod(mode)  # safetensors lets nobody but the owner read


@dataclasses.dataclass(frozen=True)
class _Weights:
    """Finds the state dict in what the pickle of a file held, and makes its arrays."""

    where: str

    def select(self, top: Any, key: str) -> dict[str, np.ndarray]:
        if key:
            if not isinstance(top, dict) or key not in top:
                raise ValueError(f"{self.where}: no key {key!r}; {_listing(top)}")
            if not _is_state(top[key]):
                raise ValueError(
                    f"{self.where}: {key!r} is {kind_of(top[key])}, neither a state "
                    f"dict nor a network; {_listing(top)}"
                )
            return self.read(top[key])
        if _is_state(top):
            return self.read(top)
        entries = top if isinstance(top, dict) else {}
        for name in WEIGHT_KEYS:
            if entries.get(name) and _is_state(entries[name]):
                return self.read(entries[name])
        raise ValueError(
            f"{self.where}: no state dict or network at the top level or under "
            f"{', '.join(WEIGHT_KEYS)}; {_listing(top)}. Choose one with key=..."
        )

    def read(self, value: Any) -> dict[str, np.ndarray]:
        entries = value.items() if isinstance(value, dict) else self.walk(value)
        return {name: self.array(name, entry) for name, entry in entries}

    def walk(
        self, module: Any, prefix: str = "", depth: int = 0
    ) -> Iterator[tuple[str, Any]]:
        """Names and tensors of a network, in the order of its ``state_dict()``."""
        state = module_state(module)
        if state is None:
            raise ValueError(
                f"{self.where}: module {prefix[:-1]!r} is {kind_of(module)}, no module"
            )
        if depth > _MAX_DEPTH:
            raise ValueError(
                f"{self.where}: module {prefix[:60]}... is nested deeper than "
                f"{_MAX_DEPTH} levels"
            )
        temporary = state.get("_non_persistent_buffers_set")
        for name, value in self.entries(state, "_parameters", prefix):
            yield prefix + name, value
        for name, value in self.entries(state, "_buffers", prefix):
            if not (isinstance(temporary, set | frozenset) and name in temporary):
                yield prefix + name, value
        for name, child in self.entries(state, "_modules", prefix):
            yield from self.walk(child, f"{prefix}{name}.", depth + 1)

    def entries(
        self, state: dict[str, Any], group: str, prefix: str
    ) -> list[tuple[str, Any]]:
        """What a module registered in one of its dicts; None is a place left free."""
        members = state.get(group, {})
        if not isinstance(members, dict) or any(type(n) is not str for n in members):
            raise ValueError(f"{self.where}: {prefix}{group} is no dict of names")
        return [(name, value) for name, value in members.items() if value is not None]

    def group(self, name: str, value: Any) -> Any:
        """A value, an array, or a dict of these."""
        if isinstance(value, dict):
            return {str(k): self.value(f"{name}.{k}", v) for k, v in value.items()}
        return self.value(name, value)

    def value(self, name: str, value: Any) -> Any:
        special = isinstance(value, Record | Storage) or is_name(value)
        return self.array(name, value) if special else value

    def array(self, name: str, value: Any) -> np.ndarray:
        try:
            return to_array(value, self.where)
        except UnsafePickleError:
            raise
        except (ValueError, *DAMAGE) as error:
            raise ValueError(f"{self.where}: tensor {name!r}: {error}") from error


# What the content of a file says about its format.


def _is_safetensors(data: mmap.mmap) -> bool:
    # The length of the header, 64 bits, little endian and below 4 GB; then its JSON.
    return data[4:9] == b"\0\0\0\0{"


def _is_npz(archive: zipfile.ZipFile) -> bool:
    return all(name.endswith(".npy") for name in archive.namelist())


# Readers of the formats.


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    import safetensors
    import safetensors.numpy

    try:
        return safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: the safetensors file is cut off, damaged, or of a dtype that "
            f"numpy does not have: {error}"
        ) from error


def _read_npz(archive: zipfile.ZipFile, where: str) -> dict[str, np.ndarray]:
    state = {}
    for entry in archive.namelist():
        name = entry.removesuffix(".npy")
        try:
            with archive.open(entry) as file:
                state[name] = np.lib.format.read_array(file, allow_pickle=False)
        except (ValueError, *DAMAGE) as error:
            raise ValueError(f"{where}: array {name!r}: {error}") from error
    return state


def _checked(
    state: dict[str, np.ndarray], where: str, key: str
) -> dict[str, np.ndarray]:
    """The arrays of a flat format, once their dtypes are those of weights."""
    if key:
        raise ValueError(
            f"{where}: no key {key!r}: the format holds one state dict and no entries"
        )
    for name, array in state.items():
        if array.dtype.newbyteorder("=") not in STORAGE_OF:
            raise ValueError(f"{where}: array {name!r} is of dtype {array.dtype}")
    return {
        name: np.require(array, array.dtype.newbyteorder("="), ["C", "W"])
        for name, array in state.items()
    }


def _is_state(value: Any) -> bool:
    """A network, or a dict of names and tensors and nothing else."""
    if isinstance(value, dict):
        return all(type(k) is str and is_tensor(v) for k, v in value.items())
    return module_state(value) is not None


def _listing(top: Any, limit: int = 20) -> str:
    """The keys of the top level of a file and what stands under each."""
    if not isinstance(top, dict):
        return f"the file holds {kind_of(top)}"
    shown = [f"{key!r} ({kind_of(value)})" for key, value in top.items()][:limit]
    more = f" and {len(top) - limit} more" if len(top) > limit else ""
    return f"its keys are {', '.join(shown)}{more}"


# Writers.


def _writable(name: str, value: np.typing.ArrayLike) -> np.ndarray:
    if type(name) is not str or not name or "\0" in name:
        raise ValueError(f"the name {name!r} is no text without a zero byte")
    array = np.asarray(value)
    native = array.dtype.newbyteorder("=")
    if native not in STORAGE_OF:
        legal = ", ".join(str(dtype) for dtype in STORAGE_OF)
        raise ValueError(f"{name!r} is of dtype {array.dtype}; legal are {legal}")
    little = native.newbyteorder("<")
    # ascontiguousarray would give a scalar a dimension.
    return np.asarray(array, little, order="C")


def _write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    # Not np.savez: it takes names for arguments and cannot save one called "file".
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            if array.dtype == ml_dtypes.bfloat16:
                raise ValueError(
                    f"{name!r} is of dtype bfloat16, which npz does not have; write "
                    ".safetensors, or cast it to float32"
                )
            # Without the time of day, the same weights are the same bytes.
            entry = zipfile.ZipInfo(f"{name}.npy")
            with archive.open(entry, "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


def _write_safetensors(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    if "__metadata__" in arrays:
        raise ValueError("'__metadata__' is not a name of a tensor in safetensors")
    import safetensors.numpy

    safetensors.numpy.save_file(dict(arrays), path)


_WRITERS: dict[str, Callable[[Path, Mapping[str, np.ndarray]], None]] = {
    ".safetensors": _write_safetensors,
    ".npz": _write_npz,
}
