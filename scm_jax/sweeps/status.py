"""The state of all runs of a sweep, as a table for 80 columns and as JSON."""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scm_jax.sweeps import planned, states, submissions
from scm_jax.sweeps.states import RunState

if TYPE_CHECKING:
    from rich.console import Group

# What needs a look comes first, and what is cut off is done or waits.
_ORDER = (
    states.RUNNING,
    states.FAILED,
    states.STALE,
    states.PREEMPTED,
    states.MISSING,
    states.QUEUED,
    states.DONE,
)
_STYLES = {
    states.DONE: "green",
    states.RUNNING: "bold cyan",
    states.STALE: "yellow",
    states.PREEMPTED: "yellow",
    states.FAILED: "bold red",
    states.QUEUED: "blue",
    states.MISSING: "dim",
}
DEFAULT_LIMIT = 30


@dataclasses.dataclass(frozen=True)
class Row:
    """A run: its state, what its sweep changed, and how often it may fail."""

    state: RunState
    label: str
    overrides: Mapping[str, Any]
    tags: tuple[str, ...]
    max_attempts: int


@dataclasses.dataclass(frozen=True)
class Overview:
    """All runs below ``root`` at one moment."""

    root: str
    rows: tuple[Row, ...]

    @property
    def states(self) -> list[RunState]:
        return [row.state for row in self.rows]


def gather(root: str | os.PathLike, now: float | None = None) -> Overview:
    """Reads every run of a sweep, and asks the schedulers that have some of them.

    Raises:
      FileNotFoundError: there are no runs of a sweep in ``root``.
    """
    run_dirs = submissions.run_dirs(root)
    found = states.read_states(run_dirs, now, submissions.queue(root))
    rows = []
    for run_dir, state in zip(run_dirs, found, strict=True):
        facts = json.loads((run_dir / planned.RUN_FILE).read_text(encoding="utf-8"))
        rows.append(
            Row(
                state,
                facts.get("label") or "",
                facts.get("overrides") or {},
                tuple(facts.get("tags") or ()),
                states.max_attempts(run_dir),
            )
        )
    return Overview(os.fspath(root), tuple(rows))


def to_json(overview: Overview) -> str:
    """Counts and every field of every run, for scripts."""
    runs = [
        {
            **dataclasses.asdict(row.state),
            "eta_seconds": row.state.eta_seconds,
            "label": row.label,
            "overrides": row.overrides,
            "tags": row.tags,
            "max_attempts": row.max_attempts,
        }
        for row in overview.rows
    ]
    counts = collections.Counter(state.state for state in overview.states)
    whole = {"root": overview.root, "counts": dict(counts), "runs": runs}
    return json.dumps(whole, indent=1)


def render(overview: Overview, limit: int = DEFAULT_LIMIT) -> Group:
    """Counts, a line per run (two for an error), and a sentence on what is hidden.

    Args:
      overview: what to show.
      limit: lines of runs; 0 for all.
    """
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    rows = sorted(overview.rows, key=lambda row: _ORDER.index(row.state.state))
    shown = _first(rows, limit)
    names = changed_keys([row.overrides for row in overview.rows])
    table = Table(box=None, padding=(0, 2, 0, 0), expand=True, header_style="dim")
    for name in ("state", "done", "image/s", "left", "beat", "try"):
        justify = "left" if name == "state" else "right"
        table.add_column(name, justify=justify, no_wrap=True)
    table.add_column("run", no_wrap=True, overflow="ellipsis", ratio=1)
    for row in shown:
        table.add_row(*_cells(row, names))
        if error := _error_line(row.state):
            table.add_row(*[""] * 6, Text(error, style="red"))
    parts: list[Any] = [_heading(overview), table]
    if hidden := rows[len(shown) :]:
        count = submissions.count_states(row.state for row in hidden)
        parts.append(Text(f"{len(hidden)} more not shown: {count}", style="dim"))
    return Group(*parts)


def show(root: str | os.PathLike, limit: int = DEFAULT_LIMIT) -> None:
    """Prints the table."""
    from rich.console import Console

    # Where nobody looks at a terminal, eighty columns.
    Console(highlight=False).print(render(gather(root), limit))


def watch(root: str | os.PathLike, limit: int = 0, seconds: float = 2.0) -> None:
    """Shows the table and renews it, until nothing runs or waits, or Ctrl-C."""
    from rich.console import Console
    from rich.live import Live

    console = Console(highlight=False)
    with Live(console=console, auto_refresh=False) as live:
        while True:
            overview = gather(root)
            room = limit or max(3, console.height - 5)
            live.update(render(overview, room), refresh=True)
            active = (states.RUNNING, states.QUEUED)
            if not any(state.state in active for state in overview.states):
                return
            try:
                time.sleep(seconds)
            except KeyboardInterrupt:
                return


# ------------------------------------------------------------------ cells


def changed_keys(overrides: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Dotted key -> short name, of the keys that differ between runs.

    >>> changed_keys([{"network.width": 32, "seed": 0}, {"network.width": 64,
    ...                                                  "seed": 0}])
    {'network.width': 'width'}
    """
    values: dict[str, set[str]] = {}
    for override in overrides:
        for key, value in override.items():
            values.setdefault(key, set()).add(json.dumps(value))
    everywhere = {k for k in values if all(k in override for override in overrides)}
    keys = [k for k in values if len(values[k]) > 1 or k not in everywhere]
    last = collections.Counter(key.rpartition(".")[2] for key in keys)
    return {
        key: name if last[name := key.rpartition(".")[2]] == 1 else key for key in keys
    }


def duration(seconds: float | None) -> str:
    """Seconds in at most six characters.

    >>> [duration(s) for s in (5, 75, 3700, 200000)]
    ['5s', '1:15', '1h01m', '2d07h']
    """
    if seconds is None:
        return ""
    whole = round(max(seconds, 0.0))
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{minutes}:{whole % 60:02d}"
    if whole < 86400:
        return f"{hours}h{minutes % 60:02d}m"
    return f"{days}d{hours % 24:02d}h" if days < 100 else f"{days}d"


def _cells(row: Row, names: Mapping[str, str]) -> list[Any]:
    from rich.text import Text

    state = row.state
    attempts = f"{state.attempt}" if state.attempt else ""
    if state.failures:
        attempts = f"{state.attempt} ({state.failures}/{row.max_attempts})"
    style = _STYLES[state.state]
    beat = (
        state.heartbeat_age if state.state in (states.RUNNING, states.STALE) else None
    )
    return [
        Text(state.state, style=style),
        _percent(state),
        _rate(state.images_per_second),
        duration(state.eta_seconds),
        duration(beat),
        attempts,
        Text(_name(row, names)),
    ]


def _name(row: Row, names: Mapping[str, str]) -> str:
    """The end of the id, by which ``--only`` knows the run, and what is special."""
    changed = [
        f"{names[key]}={_value(value)}"
        for key, value in row.overrides.items()
        if key in names
    ]
    return " ".join([row.state.id.rpartition("-")[2], *(changed or [row.label])])


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return "/".join(_value(v) for v in value)
    return Path(value).name if isinstance(value, str) else str(value)


def _percent(state: RunState) -> str:
    if state.state == states.DONE:
        return "100%"
    if state.step is None or not state.steps:
        return ""
    return f"{state.step / state.steps:.0%}"


def _rate(rate: float | None) -> str:
    """Three digits.

    >>> [_rate(r) for r in (0.123, 45.6, 7890.0, 1.2e6)]
    ['0.123', '45.6', '7.89k', '1.2M']
    """
    if rate is None:
        return ""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if rate >= size:
            return f"{rate / size:.3g}{letter}"
    return f"{rate:.3g}"


def _error_line(state: RunState) -> str:
    lines = (state.error or "").strip().splitlines()
    return lines[0] if lines else ""


def _first(rows: Sequence[Row], limit: int) -> list[Row]:
    """The rows that fit on ``limit`` lines; a row with an error has two."""
    if not limit:
        return list(rows)
    shown, lines = [], 0
    for row in rows:
        lines += 2 if _error_line(row.state) else 1
        if lines > limit:
            break
        shown.append(row)
    return shown


def _heading(overview: Overview) -> Any:
    from rich.text import Text

    found = collections.Counter(state.state for state in overview.states)
    text = Text(f"{overview.root}: {len(overview.rows)} runs\n", style="bold")
    parts = [
        Text(f"{found[name]} {name}", style=_STYLES[name])
        for name in states.STATES
        if found[name]
    ]
    return text.append_text(Text("  ").join(parts)).append("\n")
