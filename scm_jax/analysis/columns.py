"""Columns of a table as numbers, or a sentence that says why they are none."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    import pandas as pd


def numeric(frame: pd.DataFrame, *names: str) -> pd.DataFrame:
    """The table with these columns as float64; gaps are NaN, "1.5" is a number.

    Raises:
      ValueError: a column is missing, or holds what is no number.
    """
    import pandas

    frame = frame.copy(deep=False)
    for name in dict.fromkeys(names):
        if name not in frame.columns:
            near = [c for c in map(str, frame.columns) if "/" in c]
            raise ValueError(
                f"the table has no column {name!r}; it has "
                f"{', '.join(near or map(str, frame.columns))}"
            )
        found = pandas.to_numeric(frame[name], errors="coerce").astype(float)
        bad = frame[name][found.isna() & frame[name].notna()]
        if len(bad):
            raise ValueError(
                f"column {name!r} must hold numbers; {bad.iloc[0]!r} in row "
                f"{bad.index[0]!r} is none, nor are {len(bad) - 1} others"
            )
        frame[name] = found
    return frame


def numbers(values: ArrayLike, name: str) -> np.ndarray:
    """A flat float64 array.

    Raises:
      ValueError: something in it is no number.
    """
    try:
        return np.asarray(values, float).ravel()
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be numbers: {error}") from error


def positive(values: ArrayLike, name: str) -> np.ndarray:
    """A flat float64 array of numbers that have a logarithm.

    Raises:
      ValueError: a value is no number, not positive or not finite.
    """
    array = numbers(values, name)
    wrong = ~(np.isfinite(array) & (array > 0))
    if wrong.any():
        raise ValueError(
            f"{name} must be positive and finite to have a logarithm; value "
            f"{int(np.flatnonzero(wrong)[0])} is {array[wrong][0]:g}"
        )
    return array
