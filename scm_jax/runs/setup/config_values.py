"""Legal values of config keys, for every way in which a config can be changed.

Everything is built from what ``checked`` returns. The type of a key is the annotation
of its field or argument where it has one, else the type of its default.
"""

from __future__ import annotations

import fnmatch
import functools
import itertools
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from scm_jax import config as config_lib
from scm_jax.datasets import DATASETS
from scm_jax.files.jsonl import flatten
from scm_jax.networks import NETWORKS
from scm_jax.objectives import OBJECTIVES
from scm_jax.training.state import OptimizerConfig
from scm_jax.types import MAX_SEED, lookup

# Legal numbers, and a text that describes them.
_Range = tuple[str, Callable[[float], bool]]

_POSITIVE = ("must be above 0", lambda v: v > 0)
_COUNT = ("must be at least 1", lambda v: v >= 1)
_NOT_NEGATIVE = ("must be at least 0", lambda v: v >= 0)
_DEVICES = ("must be at least 1, or -1 for the rest", lambda v: v >= 1 or v == -1)
_PROBABILITY = ("must be in [0, 1]", lambda v: 0 <= v <= 1)
_DECAY = ("must be in [0, 1)", lambda v: 0 <= v < 1)
_SEED = (f"must be in 0..{MAX_SEED}", lambda v: 0 <= v <= MAX_SEED)
_TIME = ("must be in (0, pi/2)", lambda v: 0 < v < math.pi / 2)

# Dotted key, or a pattern -> range of each number in its value. The first one counts.
_RANGES: dict[str, _Range] = {
    "seed": _SEED,
    "train.*": _COUNT,
    "mesh.*": _DEVICES,
    "optimizer.b?": _DECAY,
    "optimizer.*": _NOT_NEGATIVE,
    "ema.snapshot_images": _NOT_NEGATIVE,
    "ema.*": _POSITIVE,
    "sampling.steps": _COUNT,
    "sampling.batch_size": _COUNT,
    "eval.steps": _COUNT,
    "eval.times": _TIME,
    "eval.num_seeds": _COUNT,
    "eval.*": _NOT_NEGATIVE,
    "log.*": _COUNT,
    "checkpoint.every_images": _NOT_NEGATIVE,
    "checkpoint.max_to_keep": ("must be at least 2", lambda v: v >= 2),
    "network.dropout": _DECAY,
    "network.dropout_max_resolution": _NOT_NEGATIVE,
    "network.dual_attention_blocks": _NOT_NEGATIVE,
    "network.unroll": _NOT_NEGATIVE,
    "network.clip": _POSITIVE,
    "network.fourier_scale": _POSITIVE,
    "network.*": _COUNT,
    "*.P_std": _POSITIVE,
    "matching.critic_P_std": _POSITIVE,
    "matching.simulated": _COUNT,
    "matching.weight": _NOT_NEGATIVE,
    "critic.student_every": _COUNT,
    "critic.*": _NOT_NEGATIVE,
    "sampling.gamma": _PROBABILITY,
    "objective.segments": _COUNT,
    "objective.map_every": _COUNT,
    "objective.diagonal_share": _PROBABILITY,
    "objective.label_dropout": _PROBABILITY,
    "objective.finite_difference_step": _POSITIVE,
    "objective.tangent_*": _NOT_NEGATIVE,
}

# Tuples of ``base_config`` whose default does not show what they hold.
_TUPLES: dict[str, Any] = {
    "ema.rel_std": tuple[float, ...],
    "ema.half_life_images": tuple[float, ...],
    "mesh.rules": tuple,
    "eval.evaluators": tuple[str, ...],
    "eval.steps": tuple[int, ...],
    "eval.times": tuple[tuple[float, ...], ...],
    "log.writers": tuple[str, ...],
}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# Type -> how a message calls it, and whether a value is of it.
_KINDS: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    bool: ("True or False", lambda v: isinstance(v, bool)),
    int: ("a whole number", lambda v: _is_number(v) and float(v).is_integer()),
    float: ("a finite number", lambda v: _is_number(v) and math.isfinite(v)),
    str: ("text", lambda v: isinstance(v, str) and v != "None"),
    types.NoneType: ("None", lambda v: v is None),
}


def checked(config: ConfigDict) -> ConfigDict:
    """A copy of ``config`` with plain values, all of legal types and in their ranges.

    Keys that it lacks, since an earlier version saved it, get their defaults. NumPy
    scalars become Python numbers; a whole float such as ``1e6`` becomes an int where
    one is needed.

    Raises:
      ValueError: a value that a run cannot use; the message has key, value and legal
        values.

    Example:
      >>> c = config_lib.base_config()
      >>> c.eval.steps = (1, 2.5)
      >>> checked(c)
      Traceback (most recent call last):
      ValueError: eval.steps = (1, 2.5): 2.5 must be a whole number
    """
    config = config.copy_and_resolve_references()
    kinds = _kinds_of(config)
    with config.unlocked():
        for name, section in _defaults(*_names(config)).items():
            if name not in config:
                config[name] = ConfigDict()
            for key in set(section) - set(config[name]):
                config[name][key] = section[key]
        for key in flatten(config.to_dict()):
            section, name = parent(config, key), key.rpartition(".")[2]
            value = _plain(key, section[name], kinds.get(key, Any))
            _check_range(key, value)
            section[name] = value
    if config.eval.evaluators and not (config.eval.steps or config.eval.times):
        raise ValueError(
            "eval.steps = (): must have at least one value, or eval.times, for the "
            f"evaluators {', '.join(config.eval.evaluators)} to measure something"
        )
    return config.lock()


def set_value(config: ConfigDict, key: str, value: Any) -> None:
    """``config.KEY = value`` with the conversions of ``checked``.

    Raises:
      ValueError: there is no such key, or the value is not one of its type.
    """
    section, name = parent(config, key), key.rpartition(".")[2]
    value = _plain(key, value, _kinds_of(config).get(key, Any))
    _check_range(key, value)
    try:
        section[name] = value
    except TypeError as error:
        raise ValueError(f"{key} = {value!r}: {error}") from error


def get_value(config: ConfigDict, key: str) -> Any:
    """The value at a dotted key, tuples as lists."""
    value = parent(config, key)[key.rpartition(".")[2]]
    return config_lib.to_dict(ConfigDict({"value": value}))["value"]


def parent(config: ConfigDict, key: str, besides: Iterable[str] = ()) -> ConfigDict:
    """The section that holds a dotted key.

    Raises:
      ValueError: there is no such key; the message lists those of its section, and
        ``besides``.
    """
    if key not in (known := flatten(config.to_dict())):
        head = key.rpartition(".")[0]
        near = {k: None for k in known if head and k.startswith(f"{head}.")}
        sections = dict.fromkeys(k.partition(".")[0] for k in known)
        lookup(near or {**sections, **dict.fromkeys(besides)}, key, "config key")
        raise ValueError(f"config key {key!r} is a section: write {key}.NAME")
    section = config
    for part in key.split(".")[:-1]:
        section = section[part]
    return section


def _names(config: ConfigDict) -> tuple[str, str, str]:
    return config.network.name, config.objective.name, config.dataset.name


@functools.cache
def _defaults(network: str, objective: str, dataset: str) -> dict[str, ConfigDict]:
    """Sections as nobody has changed them, but those that are arguments by name."""
    base = config_lib.base_config(network, objective, dataset)
    sections = {k: v for k, v in base.items() if isinstance(v, ConfigDict)}
    return {k: v for k, v in sections.items() if k not in ("network", "dataset")}


def _kinds_of(config: ConfigDict) -> Mapping[str, Any]:
    return _kinds(*_names(config))


@functools.cache
def _kinds(network: str, objective: str, dataset: str) -> Mapping[str, Any]:
    """Dotted key -> type of its value."""
    defaults = flatten(config_lib.base_config().to_dict())
    kinds = {key: type(value) for key, value in defaults.items()} | _TUPLES
    owners = {
        "network": lookup(NETWORKS, network, "network.name"),
        "objective": lookup(OBJECTIVES, objective, "objective.name"),
        "dataset": lookup(DATASETS, dataset, "dataset.name"),
        "optimizer": OptimizerConfig,
    }
    for section, owner in owners.items():
        for name, kind in typing.get_type_hints(owner).items():
            if name != "name":
                kinds[f"{section}.{config_lib.key_of(name)}"] = kind
    return kinds


def _plain(key: str, value: Any, kind: Any) -> Any:
    try:
        return _conform(value, kind)
    except ValueError as error:
        none = value in ("None", (None,), None) and kind not in (bool, int, float)
        hint = f"; for none write --config.{key}=" if none else ""
        raise ValueError(f"{key} = {value!r}: {error}{hint}") from None


def _conform(value: Any, kind: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        value = value.item() if not np.ndim(value) else tuple(value.tolist())
    if kind is Any:
        return value
    origin = typing.get_origin(kind) or kind
    if origin in (typing.Union, types.UnionType):
        return _conform_any(value, typing.get_args(kind))
    if origin in (tuple, Sequence):
        return _conform_tuple(value, typing.get_args(kind))
    name, fits = _KINDS.get(origin, ("", lambda value: True))
    if not fits(value):
        raise ValueError(f"{value!r} must be {name}")
    # An int stays one where a float is needed: configs that are equal have one text.
    return int(value) if origin is int else value


def _conform_any(value: Any, kinds: tuple[Any, ...]) -> Any:
    if value == (None,) and types.NoneType in kinds:  # --config.KEY=None
        return None
    problems = []
    for kind in kinds:
        try:
            return _conform(value, kind)
        except ValueError as error:
            problems.append(str(error))
    raise ValueError(problems[0])


def _conform_tuple(value: Any, kinds: tuple[Any, ...]) -> tuple[Any, ...]:
    if not isinstance(value, tuple | list):
        raise ValueError(f"{value!r} must be a tuple: write ({value!r},)")
    value = () if tuple(value) == ("",) else tuple(value)  # --config.KEY=
    if not kinds:
        return value
    if kinds[-1] is ... or len(kinds) == 1:
        kinds = (kinds[0],) * len(value)
    if len(kinds) != len(value):
        raise ValueError(f"must have {len(kinds)} values")
    nested = [v if isinstance(v, tuple | list) else (v,) for v in value]
    if typing.get_origin(kinds[0] if kinds else None) is tuple and nested != [*value]:
        raise ValueError(f"must hold tuples: write {tuple(nested)!r}")
    return tuple(_conform(v, k) for v, k in zip(value, kinds, strict=True))


def _check_range(key: str, value: Any) -> None:
    if key == "network.channel_mult" and not value:
        raise ValueError(f"{key} = {value!r}: must have at least one value")
    for pattern, (text, is_legal) in _RANGES.items():
        if fnmatch.fnmatchcase(key, pattern):
            for number in _numbers(value):
                if not is_legal(number):
                    which = "" if number is value else f"{number!r} "
                    raise ValueError(f"{key} = {value!r}: {which}{text}")
            break
    if key == "eval.times":
        for times in value:
            if not times or any(b >= a for a, b in itertools.pairwise(times)):
                raise ValueError(
                    f"{key} = {value!r}: {times!r} must be decreasing times, one for "
                    "each step but the first"
                )


def _numbers(value: Any) -> list[float]:
    if isinstance(value, tuple | list):
        return [number for v in value for number in _numbers(v)]
    return [value] if _is_number(value) else []
