"""Weights in files: a flat dict of names and numpy arrays, in and out.

Read are files of ``torch.save`` (also of before 1.6), pickles of whole networks as the
EDM family publishes them, safetensors and npz; written are the last two.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import numpy as np

from scm_jax.files.atomic import replacing
from scm_jax.files.inert_pickle import Record, UnsafePickleError, damage_in, is_name
from scm_jax.files.torch_files import (
    DTYPES,
    Storage,
    is_tensor,
    is_zip,
    kind_of,
    module_state,
    open_zip,
    read_object,
    to_array,
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
    where = str(path)
    with open(path, "rb") as file:
        head = file.read(9)
        file.seek(0)
        # The length of the header, 64 bits, little endian and below 4 GB; then JSON.
        if head[4:] == b"\0\0\0\0{":
            return _checked(_read_safetensors(path), where, key)
        if is_zip(head):
            archive = open_zip(file, where)
            if all(name.endswith(".npy") for name in archive.namelist()):
                return _checked(_read_npz(archive, where), where, key)
        state = _select(read_object(file, where), key, where)
        return _checked({k: _array(k, entry, where) for k, entry in state}, where)


def read_groups(path: str | os.PathLike) -> dict[str, Any]:
    """A pickled dict of values, arrays, and dicts of these, as numpy arrays.

    Such are EDM2's files of statistics. What is nested deeper stays as
    ``inert_pickle`` makes it.

    Raises:
      UnsafePickleError: the pickle asks for a name that arrays do not need. Nothing was
        executed.
      ValueError: the file is cut off, damaged or of another kind.
    """
    with open(path, "rb") as file:
        return groups_in(file, str(path))


def groups_in(file: IO[bytes], where: str) -> dict[str, Any]:
    """``read_groups`` of an open file, which messages call ``where``."""

    def text(key: Any) -> str:
        return key.decode() if isinstance(key, bytes) else str(key)

    def read(name: str, value: Any, nested: bool = False) -> Any:
        if isinstance(value, dict) and not nested:
            inside = {text(k): v for k, v in value.items()}
            return {k: read(f"{name}.{k}", v, True) for k, v in inside.items()}
        special = isinstance(value, Record | Storage) or is_name(value)
        return _array(name, value, where) if special else value

    top = read_object(file, where)
    if not isinstance(top, dict):
        raise ValueError(f"{where}: {_listing(top)}, expected a dict")
    return {text(key): read(text(key), value) for key, value in top.items()}


def write_state_dict(
    path: str | os.PathLike, state: Mapping[str, np.typing.ArrayLike]
) -> None:
    """Writes weights in the format that the suffix names, whole or not at all.

    ``.safetensors`` and ``.npz`` are read by their packages; PyTorch takes the former
    with ``safetensors.torch.load_file``.

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
    arrays = {k: _writable(k, v, path.suffix) for k, v in state.items()}
    with replacing(path) as unfinished:
        unfinished.touch()
        mode = unfinished.stat().st_mode
        _WRITERS[path.suffix](unfinished, arrays)
        unfinished.chmod(mode)  # safetensors lets nobody but the owner read


# Which objects of a file are the weights.


def _select(top: Any, key: str, where: str) -> Iterable[tuple[str, Any]]:
    """Names and tensors of the state dict in what a file holds."""
    entries = top if isinstance(top, dict) else {}
    if not key:
        likely = [top, *(entries[k] for k in WEIGHT_KEYS if entries.get(k))]
        wrong = "no state dict or network at the top level or under "
        wrong += ", ".join(WEIGHT_KEYS)
    elif key not in entries:
        raise ValueError(f"{where}: no key {key!r}; {_listing(top)}")
    else:
        likely = [entries[key]]
        wrong = (
            f"{key!r} is {kind_of(entries[key])}, neither a state dict nor a network"
        )
    chosen = next(filter(_is_state, likely), None)
    if chosen is None:
        raise ValueError(
            f"{where}: {wrong}; {_listing(top)}. Choose an entry with key=..."
        )
    return chosen.items() if isinstance(chosen, dict) else _walk(chosen, where)


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


def _walk(
    module: Any, where: str, prefix: str = "", depth: int = 0
) -> Iterator[tuple[str, Any]]:
    """Names and tensors of a network, in the order of its ``state_dict()``."""
    state = module_state(module)
    if state is None:
        raise ValueError(
            f"{where}: module {prefix[:-1]!r} is {kind_of(module)}, no module"
        )
    if depth > _MAX_DEPTH:
        raise ValueError(
            f"{where}: module {prefix[:60]}... is nested deeper than {_MAX_DEPTH} "
            "levels"
        )
    temporary = state.get("_non_persistent_buffers_set")
    for group in ("_parameters", "_buffers", "_modules"):
        members = state.get(group, {})
        if not isinstance(members, dict) or any(type(n) is not str for n in members):
            raise ValueError(f"{where}: {prefix}{group} is no dict of names")
        for name, value in members.items():
            if value is None:  # a place left free
                continue
            if group == "_modules":
                yield from _walk(value, where, f"{prefix}{name}.", depth + 1)
            elif not (
                group == "_buffers"
                and isinstance(temporary, set | frozenset)
                and name in temporary
            ):
                yield prefix + name, value


def _array(name: str, value: Any, where: str) -> np.ndarray:
    with damage_in(f"{where}: tensor {name!r}"):
        return to_array(value, where)


# Formats without pickles.


def _read_safetensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    import safetensors.numpy

    with damage_in(
        f"{path}: the safetensors file is cut off, damaged, or of a dtype that numpy "
        "does not have"
    ):
        return safetensors.numpy.load_file(path)


def _read_npz(archive: zipfile.ZipFile, where: str) -> dict[str, np.ndarray]:
    state = {}
    for entry in archive.namelist():
        name = entry.removesuffix(".npy")
        with damage_in(f"{where}: array {name!r}"), archive.open(entry) as file:
            state[name] = np.lib.format.read_array(file, allow_pickle=False)
    return state


def _checked(
    state: dict[str, np.ndarray], where: str, unknown_key: str = ""
) -> dict[str, np.ndarray]:
    """Arrays of their own, once their dtypes are those of weights."""
    if unknown_key:
        raise ValueError(
            f"{where}: no key {unknown_key!r}: the format holds one state dict and no "
            "entries"
        )
    for name, array in state.items():
        native = array.dtype.newbyteorder("=")
        if native not in DTYPES:
            raise ValueError(f"{where}: array {name!r} is of dtype {array.dtype}")
        state[name] = np.require(array, native, ["C", "W"])
    return state


# Formats that are written.


def _writable(name: str, value: np.typing.ArrayLike, suffix: str) -> np.ndarray:
    if type(name) is not str or not name or "\0" in name:
        raise ValueError(f"the name {name!r} is no text without a zero byte")
    if suffix == ".safetensors" and name == "__metadata__":
        raise ValueError("'__metadata__' is not a name of a tensor in safetensors")
    array = np.asarray(value)
    native = array.dtype.newbyteorder("=")
    if native not in DTYPES or native == _LACKING[suffix]:
        legal = ", ".join(str(dtype) for dtype in DTYPES if dtype != _LACKING[suffix])
        raise ValueError(
            f"{name!r} is of dtype {array.dtype}; {suffix} can hold {legal}"
        )
    # ascontiguousarray would give a scalar a dimension.
    return np.asarray(array, native.newbyteorder("<"), order="C")


def _write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    # Not np.savez: it takes names for arguments and cannot save one called "file".
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            # Without the time of day, the same weights are the same bytes.
            entry = zipfile.ZipInfo(f"{name}.npy")
            with archive.open(entry, "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


def _write_safetensors(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    import safetensors.numpy

    safetensors.numpy.save_file(dict(arrays), path)


_LACKING = {".safetensors": np.complex128, ".npz": ml_dtypes.bfloat16}
_WRITERS: dict[str, Callable[[Path, Mapping[str, np.ndarray]], None]] = {
    ".safetensors": _write_safetensors,
    ".npz": _write_npz,
}
