"""Sweep files and experiment files, loaded as the Python modules that they are."""

from __future__ import annotations

import dataclasses
import functools
import re
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from scm_jax.files import shipped


@dataclasses.dataclass(frozen=True)
class SweepFile:
    """What a sweep file says, not yet resolved."""

    name: str  # of the sweep: the file's, with its argument
    text: str  # file and argument, as typed
    path: Path
    base: str  # experiment file and argument that every entry starts from
    entries: tuple[Mapping[str, Any], ...]  # flat overrides
    metrics: tuple[str, ...] = ()  # columns of ``load_runs`` to show by default


def load_sweep(text: str) -> SweepFile:
    """Loads ``FILE`` or ``FILE:ARG``.

    The file defines ``BASE``, an experiment file with its argument, ``sweep(arg)``,
    which yields dicts of dotted config keys, and optionally ``METRICS``.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it lacks a part, fails, or yields something else.
    """
    path, _, arg = text.partition(":")
    path = str(shipped.find(path))
    module = load_module(path)
    missing = [name for name in ("BASE", "sweep") if not hasattr(module, name)]
    if missing:
        raise ValueError(
            f"{path} is not a sweep file: it defines no {' and no '.join(missing)}"
        )
    entries = _call(path, "sweep", lambda: list(module.sweep(arg)))
    if not entries:
        raise ValueError(f"{text}: sweep({arg!r}) yields no entry")
    for number, entry in enumerate(entries):
        if not isinstance(entry, Mapping) or any(type(k) is not str for k in entry):
            raise ValueError(
                f"{text}, entry {number}: {entry!r} is not a dict of dotted keys, as "
                "sweep() must yield"
            )
    suffix = "_" + re.sub(r"\W", "_", arg) if arg else ""
    return SweepFile(
        name=Path(path).stem + suffix,
        text=text,
        path=Path(path),
        base=module.BASE,
        entries=tuple(dict(entry) for entry in entries),
        metrics=tuple(getattr(module, "METRICS", ())),
    )


def base_config(file: SweepFile, base: str) -> tuple[str, ConfigDict]:
    """The place and the content of the config that an entry starts from.

    Args:
      file: the sweep file.
      base: the entry's ``base``: "" for ``BASE``, ``:ARG`` for another argument of its
        file, or another file.

    Raises:
      FileNotFoundError: no such experiment file, here or beside the sweep file's
        parents.
      ValueError: the file fails, or does not know the argument.
    """
    text = base or file.base
    if base.startswith(":"):
        text = file.base.partition(":")[0] + base
    path, _, arg = text.partition(":")
    module = load_module(_find(path, file.path))
    if not hasattr(module, "get_config"):
        raise ValueError(f"{path} is not an experiment file: it defines no get_config")
    return text, _call(text, "get_config", lambda: module.get_config(arg))


def _find(path: str, sweep: Path) -> str:
    # From a notebook, the experiment file is in a folder above the sweep file.
    above = (parent / path for parent in sweep.resolve().parents)
    for candidate in (Path(path), *above, shipped.find(path)):
        if candidate.is_file():
            return str(candidate)
    raise FileNotFoundError(
        f"{sweep}: there is no experiment file {path}, neither here nor above the "
        "sweep file"
    )


def load_module(path: str) -> ModuleType:
    """A Python file as a module, loaded again when it has changed."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}")
    return _module(path, Path(path).read_bytes())


@functools.lru_cache(maxsize=32)
def _module(path: str, source: bytes) -> ModuleType:
    # Not by a loader: its bytecode is that of an earlier text if both have one size and
    # were written within one second.
    module = ModuleType(Path(path).stem)
    module.__file__ = path
    code = _call(path, "import", lambda: compile(source, path, "exec"))
    _call(path, "import", lambda: exec(code, vars(module)))
    return module


def _call(path: str, what: str, fn: Any) -> Any:
    """``fn()``; an error names the line of the file."""
    try:
        return fn()
    except Exception as error:
        name = Path(path.partition(":")[0]).name
        frames = traceback.extract_tb(error.__traceback__)
        line = [f.lineno for f in frames if Path(f.filename).name == name]
        at = f", line {line[-1]}" if line else ""
        raise ValueError(f"{path}{at} ({what}): {error}") from error
