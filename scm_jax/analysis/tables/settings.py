"""The settings that tell runs apart, and what they are called."""

from __future__ import annotations

import collections
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

from scm_jax.analysis.tables.frames import is_missing
from scm_jax.runs.directory.run_configs import is_neutral

if TYPE_CHECKING:
    import pandas as pd

# Config keys that are no switch: each seed may have its own teacher.
_NO_FACTORS = ("seed", "name", "teacher.run", "init.run")


def is_config_key(column: str) -> bool:
    """Dotted, but for the one switch that is in no section."""
    return column == "parameterization" or ("." in column and "/" not in column)


def varying_keys(runs: pd.DataFrame) -> list[str]:
    """The config keys of ``load_runs`` that vary and can be switches."""
    keys = (name for name in runs.columns if is_config_key(name))
    keys = (name for name in keys if name not in _NO_FACTORS and not is_neutral(name))
    return [name for name in keys if len({cell_key(value) for value in runs[name]}) > 1]


def setting_names(runs: pd.DataFrame, keys: Sequence[str]) -> dict[Hashable, str]:
    """Run -> what tells its setting from others, such as ``width = 32``.

    Values that most runs have are left out; a run with these alone is the ``baseline``.
    """
    usual: dict[str, Hashable] = {}
    for key in keys if len(keys) > 1 else ():
        counts = collections.Counter(cell_key(value) for value in runs[key])
        value, count = counts.most_common(1)[0]
        if 2 * count > len(runs):
            usual[key] = value
    names = {}
    for run, row in zip(runs.index, runs[list(keys)].to_dict("records"), strict=True):
        values = {key: cell_key(value) for key, value in row.items()}
        other = [
            setting_text(key, value, keys)
            for key, value in values.items()
            if key not in usual or usual[key] != value
        ]
        names[run] = ", ".join(other) or ("baseline" if usual else "all runs")
    return names


def setting_text(key: str, value: Any, keys: Sequence[str]) -> str:
    """``width = 32``; keys are short where no other one has the same last part."""
    return f"{short_name(key, keys)} = {value_text(value)}"


def short_name(key: str, keys: Sequence[str]) -> str:
    """The last part of a key where no other key has it."""
    last = key.rsplit(".", 1)[-1]
    return last if sum(k.rsplit(".", 1)[-1] == last for k in keys) == 1 else key


def value_text(value: Any) -> str:
    """A setting as a reader says it: switches are on or off."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple):
        return "(" + ", ".join(map(value_text, value)) + ")"
    return str(value)


def cell_key(value: Any) -> Hashable:
    """A cell as a key: gaps are None, numbers of numpy plain."""
    if hasattr(value, "item"):
        value = value.item()
    return None if is_missing(value) else value
