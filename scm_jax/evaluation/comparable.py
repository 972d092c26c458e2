"""Which rows of results may stand in one table or figure: those measured alike.

``protocol`` of a row says for each evaluator how it measured, ``measured_by`` for each
number which evaluator it is from. Numbers without a protocol compare with all others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from scm_jax.evaluation.protocol import Protocol, measured_differently

Row = Mapping[str, Any]
Differences = dict[str, tuple[Any, Any]]


def require_comparable(rows: Sequence[Row], metric: str) -> None:
    """Refuses rows whose numbers of one metric were measured in different ways.

    Args:
      rows: results, as ``evaluate`` writes them; ``run`` is for the message.
      metric: their key.

    Raises:
      ValueError: two rows differ in a field of ``protocol.MEASURING``; lists the
        fields.
    """
    known = [row for row in rows if _protocol_of(row, metric) is not None]
    for row in known[1:]:
        found = _differences(known[0], row, metric)
        if found:
            names = [str(r.get("run", r.get("method", ""))) for r in (known[0], row)]
            raise ValueError(
                f"{metric} of {names[0]!r} and {names[1]!r} cannot be compared, as they"
                f" were measured in different ways:\n{_lines(found)}"
            )


def tables(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """Rows in as many tables as there are ways in which they were measured.

    Returns:
      Caption and rows of each. A caption says what differs from the first table.
    """
    found: list[tuple[str, list[Row]]] = []
    for row in rows:
        first: Differences = {}
        for _, table in found:
            differences = _from_table(table, row)
            if not differences:
                table.append(row)
                break
            first = first or differences
        else:
            note = f"measured in another way, not to be compared:\n{_lines(first)}"
            found.append((note if first else "", [row]))
    return found


def _from_table(table: Sequence[Row], row: Row) -> Differences:
    """Differences between a row and a table, over all numbers that both have."""
    found: Differences = {}
    for other in table:
        for metric in other.get("measured_by") or {}:
            found |= _differences(other, row, metric)
    return found


def _differences(a: Row, b: Row, metric: str) -> Differences:
    first, second = _protocol_of(a, metric), _protocol_of(b, metric)
    if first is None or second is None:
        return {}
    found = measured_differently(first, second)
    # An evaluator of several metrics names them all, as ``fid, is(split_size=5000)``:
    # the settings of those that both evaluators have must agree.
    ours, theirs = (
        dict(re.findall(r"(\w+)((?:\([^)]*\))?)", protocol.metric))
        for protocol in (first, second)
    )
    alike = all(ours[name] == theirs[name] for name in ours.keys() & theirs.keys())
    if alike:
        found.pop("metric", None)
    return found


def _lines(differences: Differences) -> str:
    return "\n".join(
        f"  {name}: {there!r} there, {here!r} here"
        for name, (there, here) in differences.items()
    )


def _protocol_of(row: Row, metric: str) -> Protocol | None:
    """How a row's number was measured; None if it has none or does not say."""
    protocols = row.get("protocol") or {}
    name = (row.get("measured_by") or {}).get(metric)
    if name is None and len(protocols) == 1:
        (name,) = protocols
    entries = protocols.get(name)
    if row.get(metric) is None or not entries or "extractor_sha256" not in entries:
        return None
    return Protocol(**entries)
