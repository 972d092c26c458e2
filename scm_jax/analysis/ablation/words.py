"""Numbers and places of a comparison in words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from scm_jax.analysis.ablation.statistics import (
    Cell,
    Estimate,
)
from scm_jax.analysis.tables.settings import (
    short_name,
    value_text,
)


def why_missing(own: Cell | None, base: Cell | None) -> str:
    """Why two runs are no pair; empty where they are one."""
    if own is None:
        return "no run"
    if base is None:
        return "no run in the baseline"
    if own.missing:
        return own.missing
    return f"{base.missing} in the baseline" if base.missing else ""


def place_name(place: tuple, shared: Sequence[str]) -> str:
    """``width = 32, seed 1``."""
    *block, seed = place
    names = [
        f"{short_name(key, shared)} = {value}"
        for key, value in zip(shared, block, strict=True)
    ]
    return ", ".join([*names, f"seed {seed}"])


def arm_name(arm: tuple, base: tuple, factors: Sequence[str]) -> str:
    """What is other than in the baseline."""
    changed = [
        f"{short_name(key, factors)} = {value_text(value)}"
        for key, value, usual in zip(factors, arm, base, strict=True)
        if value != usual
    ]
    return ", ".join(changed)


def number_text(value: float, sign: str = "") -> str:
    """Three digits; empty for NaN."""
    if math.isnan(value):
        return ""
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:{sign}.3g}".replace("-", "−")


def estimate_text(found: Estimate, sign: str = "") -> str:
    """``+0.5 [−0.1, +1.1]``: two digits of the interval's half width."""
    if math.isnan(found.value):
        return "–"
    low, high = found.interval
    half = (high - low) / 2
    if not 0 < half < math.inf:
        ends = ", ".join(number_text(end, sign) for end in (low, high))
        return f"{number_text(found.value, sign)} [{ends}]"
    decimals = max(0, 1 - math.floor(math.log10(half)))
    texts = [f"{x:{sign}.{decimals}f}" for x in (found.value, low, high)]
    middle, *limits = (text.replace("-", "−") for text in texts)
    return f"{middle} [{', '.join(limits)}]"
