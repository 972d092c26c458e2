"""From what raw data say about classes to the numbers that are stored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from scm_jax.datasets.preparation.readers.items import ItemError, Options

_MAX_CLASSES = 1_000_000  # a larger number is damage


def number_labels(
    values: Sequence[Any], name: Callable[[int], str], where: str, options: Options
) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Labels 0, 1, ... of all items, and the names of the classes.

    Args:
      values: for each item a whole number, a name, or None where it has no label. Names
        are numbered in alphabetical order (by code point, so capitals come first).
      name: where an item comes from, for messages.
      where: the file they are in, for messages.
      options: ``labels``, ``label_base`` and ``num_classes`` count.

    Returns:
      int64 ``(n,)`` and one name per class (its number where the data name none);
      None and no names without labels.

    Raises:
      ItemError: an item has no label while others do, or one that is out of range.
      ValueError: labels are required and there are none, or there are not
        ``num_classes`` names.
    """
    if options.labels == "none":
        return None, ()
    missing = [index for index, value in enumerate(values) if value is None]
    if len(missing) == len(values):
        if options.labels == "required":
            raise ValueError(f"{where}: has no labels, and labels are required")
        if options.label_base:
            raise ValueError(
                f"label_base = {options.label_base}: {where} has no labels to count"
            )
        return None, ()
    if missing:
        mend = "labels 'none' leaves all of them out"
        if options.label_file is not None:
            mend = f"each needs a line in {options.label_file}"
        raise ItemError(
            f"{name(missing[0])}: has no label, and {len(values) - len(missing):,} of "
            f"{len(values):,} items have one; {mend}"
        )
    if all(isinstance(value, str) for value in values):
        return _number_names(values, where, options)
    return _check_numbers(values, name, options)


def _number_names(
    values: Sequence[str], where: str, options: Options
) -> tuple[np.ndarray, tuple[str, ...]]:
    names = tuple(sorted(set(values)))
    if options.label_base:
        raise ValueError(
            f"{where}: label_base {options.label_base} is for labels that are numbers, "
            f"not for names such as {names[0]!r}"
        )
    if options.num_classes not in (None, len(names)):
        # One class folder too few, and all classes behind it would have other numbers.
        raise ValueError(
            f"{where}: has {len(names)} classes, expected are {options.num_classes}; "
            f"the first is {names[0]!r}, the last {names[-1]!r}"
        )
    number = {label: index for index, label in enumerate(names)}
    return np.array([number[value] for value in values], np.int64), names


def _check_numbers(
    values: Sequence[Any], name: Callable[[int], str], options: Options
) -> tuple[np.ndarray, tuple[str, ...]]:
    base = options.label_base
    for index, value in enumerate(values):
        if not isinstance(value, int | np.integer) or isinstance(value, bool):
            raise ItemError(
                f"{name(index)}: the label {value!r} is no whole number"
                + (", as those of other items" if isinstance(value, str) else "")
            )
    limit = options.num_classes or max(values) - base + 1
    limit = min(max(limit, 1), _MAX_CLASSES)
    for index, value in enumerate(values):
        if not base <= value < base + limit:
            raise ItemError(
                f"{name(index)}: the label {value} is out of range; legal are "
                f"{base}..{base + limit - 1} (label_base {base}, "
                f"num_classes {options.num_classes or 'not given'})"
            )
    given = np.array(values, np.int64)
    return given - base, tuple(str(number) for number in range(limit))
