"""Building blocks of sweep files: lists of overrides, which are dicts of dotted keys.

``grid``, ``zipped``, ``sample`` and ``seeds`` make lists, ``chain`` and ``cross``
combine them.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

Override = dict[str, Any]
Draw = Callable[[np.random.Generator], Any]


@dataclasses.dataclass(frozen=True)
class OfDuration:
    """A number of images: a share of the run's training length."""

    fraction: float


@dataclasses.dataclass(frozen=True)
class RunDirOf:
    """The directory of another run of the sweep, by its label."""

    label: str


def of_duration(fraction: float) -> OfDuration:
    """``fraction`` of ``train.duration_images``, for schedules that scale with it.

    Example:
      >>> {"train.flops": 1e12, "optimizer.decay_images": of_duration(1.0)}
      {'train.flops': 1000000000000.0,
       'optimizer.decay_images': OfDuration(fraction=1.0)}
    """
    if not fraction >= 0:
        raise ValueError(f"of_duration({fraction}): must be at least 0")
    return OfDuration(float(fraction))


def run_dir(label: str) -> RunDirOf:
    """The directory of the entry with this ``label``; the run then depends on it.

    Example:
      >>> {"base": ":scd", "teacher.run": run_dir("teacher_32")}
      {'base': ':scd', 'teacher.run': RunDirOf(label='teacher_32')}
    """
    return RunDirOf(label)


def grid(axes: Mapping[str, Sequence[Any]]) -> list[Override]:
    """Every combination of the values of several keys; the last key varies fastest.

    Example:
      >>> grid({"network.width": (32, 64), "seed": (0, 1)})[1]
      {'network.width': 32, 'seed': 1}
    """
    return [
        dict(zip(axes, values, strict=True))
        for values in itertools.product(*_lists(axes).values())
    ]


def zipped(axes: Mapping[str, Sequence[Any]]) -> list[Override]:
    """The i-th values of several keys together.

    Raises:
      ValueError: keys with different numbers of values.

    Example:
      >>> zipped({"network.width": (32, 64), "network.num_heads": (1, 2)})
      [{'network.width': 32, 'network.num_heads': 1}, \
  {'network.width': 64, 'network.num_heads': 2}]
    """
    lists = _lists(axes)
    lengths = {key: len(values) for key, values in lists.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"zipped: keys have different numbers of values: {lengths}")
    columns = zip(*lists.values(), strict=True)
    return [dict(zip(axes, values, strict=True)) for values in columns]


def chain(*parts: Iterable[Override]) -> list[Override]:
    """The overrides of all parts, one part after the other."""
    return [dict(override) for part in parts for override in part]


def cross(*parts: Iterable[Override]) -> list[Override]:
    """Every combination of one override of each part; the last part varies fastest.

    Raises:
      ValueError: two parts set one key.

    Example:
      >>> cross(zipped({"network.width": (32, 64), "tags": ("a", "b")}), seeds(2))[1]
      {'network.width': 32, 'tags': 'a', 'seed': 1}
    """
    combined = []
    for chosen in itertools.product(*(list(part) for part in parts)):
        merged: Override = {}
        for override in chosen:
            if both := merged.keys() & override.keys():
                raise ValueError(f"cross: two parts set {sorted(both)}")
            merged |= override
        combined.append(merged)
    return combined


def seeds(count: int, first: int = 0) -> list[Override]:
    """``count`` training seeds.

    Example:
      >>> seeds(2)
      [{'seed': 0}, {'seed': 1}]
    """
    if count < 1:
        raise ValueError(f"seeds({count}): must be at least 1")
    return [{"seed": first + i} for i in range(count)]


def sample(
    count: int, seed: int, axes: Mapping[str, Sequence[Any] | Draw]
) -> list[Override]:
    """Random search: ``count`` independent draws of every key.

    Draw i depends on ``seed``, i and the key only, so a longer list begins with the
    shorter one, and another key changes no value.

    Args:
      count: number of draws.
      seed: seed of the draws.
      axes: key -> values to choose from, or ``uniform(...)``, ``loguniform(...)``.

    Example:
      >>> len(sample(3, 0, {"optimizer.learning_rate": loguniform(1e-4, 1e-2)}))
      3
    """

    def draw(i: int, key: str, axis: Sequence[Any] | Draw) -> Any:
        rng = np.random.default_rng([seed, i, *key.encode()])
        return axis(rng) if callable(axis) else axis[int(rng.integers(len(axis)))]

    return [{key: draw(i, key, axes[key]) for key in axes} for i in range(count)]


def uniform(low: float, high: float) -> Draw:
    """A number between ``low`` and ``high``, for ``sample``."""
    return lambda rng: _rounded(rng.uniform(low, high))


def loguniform(low: float, high: float) -> Draw:
    """A positive number, uniform in its logarithm, for ``sample``."""
    if not 0 < low <= high:
        raise ValueError(f"loguniform({low}, {high}): needs 0 < low <= high")
    return lambda rng: _rounded(math.exp(rng.uniform(math.log(low), math.log(high))))


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")  # names and tables stay readable


def _lists(axes: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
    for key, values in axes.items():
        if isinstance(values, str) or not isinstance(values, Iterable):
            raise ValueError(
                f"{key!r} needs a list of values; {values!r} is one value: write "
                f"({values!r},)"
            )
    return {key: list(values) for key, values in axes.items()}
