"""What tells runs apart, in a few characters for tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scm_jax.runs.directory.run_configs import RUN_KEYS

_PREFIXES = ((6, "E"), (5, "P"), (4, "T"), (3, "G"), (2, "M"), (1, "k"))


def varying_keys(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Dotted keys with more than one value, in their order.

    Directories of other runs are left out: they follow from the rest.

    Example:
      >>> varying_keys([{"network.width": 32, "seed": 0}, {"network.width": 64}])
      ['network.width']
    """
    texts: dict[str, set[str]] = {}
    for setting in settings:
        for key, value in setting.items():
            texts.setdefault(key, set()).add(json.dumps(value))
    return [key for key in texts if len(texts[key]) > 1 and key not in RUN_KEYS]


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """The last part of each dotted key, or the whole key where two share it.

    Example:
      >>> short_names(["a.name", "b.name", "optimizer.rampup_images"])
      {'a.name': 'a.name', 'b.name': 'b.name', 'optimizer.rampup_images': 'rampup'}
    """
    last = [key.rpartition(".")[2].removesuffix("_images") for key in keys]
    return {k: s if last.count(s) == 1 else k for k, s in zip(keys, last, strict=True)}


def short_value(value: Any) -> str:
    """A value of a config; a directory by its name.

    Example:
      >>> [short_value(v) for v in (0.00012345, 204_800, (1.1, 0.6), "runs/teacher")]
      ['0.0001234', '205k', '1.1/0.6', 'teacher']
    """
    if isinstance(value, list | tuple):
        return "/".join(map(short_value, value))
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 100_000:
        return short_count(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    return Path(value).name if isinstance(value, str) and "/" in value else str(value)


def short_count(number: float, space: str = "", digits: int = 3) -> str:
    """A number with a decimal prefix.

    Example:
      >>> short_count(1_523_200_000), short_count(417_412, " "), short_count(0.1234)
      ('1.52G', '417 k', '0.123')
    """
    for power, prefix in _PREFIXES:
        if abs(number) >= 1000**power:
            return f"{number / 1000**power:.{digits}g}{space}{prefix}"
    return f"{number:.{digits}g}{space}"
