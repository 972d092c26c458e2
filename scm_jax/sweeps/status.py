"""The state of all runs of a sweep, as a table for 80 columns and as JSON."""

from __future__ import annotations

import bisect
import collections
import contextlib
import dataclasses
import itertools
import json
import logging
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scm_jax.runs.directory import labels
from scm_jax.sweeps import submissions
from scm_jax.sweeps.plan import planned
from scm_jax.sweeps.state import states
from scm_jax.sweeps.state.states import RunState

if TYPE_CHECKING:
    from rich.text import Text

logger = logging.getLogger(__name__)

# What needs a look comes first, and what is cut off is done or waits.
_STYLES = {
    states.RUNNING: "bold cyan",
    states.FAILED: "bold red",
    states.STALE: "yellow",
    states.PREEMPTED: "yellow",
    states.MISSING: "dim",
    states.QUEUED: "blue",
    states.DONE: "green",
}
_ORDER = list(_STYLES)
# Facts of a run that are shown, with those of a run without ``run.json``.
_PLAN: dict[str, Any] = {"label": "", "overrides": {}, "tags": ()}
_PLAN |= {"max_attempts": planned.PlannedRun.max_attempts}
# Title -> width.
_COLUMNS = {"state": 9, "done": 4, "img/s": 5, "left": 6, "beat": 5, "try": 3}
DEFAULT_LIMIT = 30


@dataclasses.dataclass(frozen=True)
class Row:
    """One run of a sweep."""

    state: RunState
    plan: Mapping[str, Any]  # label, overrides, tags and max_attempts
    variant: str = ""  # argument of its experiment file, where runs differ in it


@dataclasses.dataclass(frozen=True)
class Overview:
    """All runs below ``root`` at one moment."""

    root: str
    rows: tuple[Row, ...]

    @property
    def states(self) -> list[RunState]:
        return [row.state for row in self.rows]


def gather(root: str | os.PathLike) -> Overview:
    """Reads every run of a sweep, and asks the schedulers that have some of them.

    Raises:
      FileNotFoundError: there are no runs of a sweep in ``root``.
    """
    run_dirs, jobs = submissions.run_dirs(root), submissions.queue(root)
    facts = [_facts(run_dir) for run_dir in run_dirs]
    differ = len({fact.get("base") for fact in facts}) > 1
    rows = [
        Row(
            states.read_state(run_dir, queue=jobs),
            {key: fact.get(key, default) for key, default in _PLAN.items()},
            fact.get("base", "").rpartition(":")[2] if differ else "",
        )
        for run_dir, fact in zip(run_dirs, facts, strict=True)
    ]
    return Overview(os.fspath(root), tuple(rows))


def _facts(run_dir: Path) -> dict[str, Any]:
    try:
        return planned.read_facts(run_dir)
    except ValueError as error:
        logger.warning("%s", error)
        return {}  # the other runs are shown all the same


def to_json(overview: Overview) -> str:
    """Counts and every field of every run, for scripts."""
    runs = [
        dataclasses.asdict(row.state)
        | {"eta_seconds": row.state.eta_seconds, **row.plan}
        for row in overview.rows
    ]
    counts = collections.Counter(state.state for state in overview.states)
    whole = {"root": overview.root, "counts": dict(counts), "runs": runs}
    return json.dumps(whole, indent=1)


def render(overview: Overview, limit: int = DEFAULT_LIMIT, width: int = 80) -> Text:
    """Counts, a line per run (two for an error), and a sentence on what is hidden.

    ``limit`` is the number of lines of runs (0 for all), ``width`` that of characters.
    """
    from rich.text import Text

    rows = sorted(overview.rows, key=lambda row: _ORDER.index(row.state.state))
    # A row with an error has two lines.
    lengths = itertools.accumulate(2 if row.state.error_line else 1 for row in rows)
    shown = rows[: bisect.bisect(list(lengths), limit)] if limit else rows
    overrides = [row.plan["overrides"] for row in overview.rows]
    names = labels.short_names(labels.varying_keys(overrides))
    lines = [Text(_line(_COLUMNS) + "run", style="dim")]
    for row in shown:
        line = Text(_line(_cells(row.state)) + _name(row, names))
        line.stylize(_STYLES[row.state.state], 0, len(row.state.state))
        lines.append(line)
        if error := row.state.error_line:
            if row.state.failures:
                often = f"{row.state.failures} of {row.plan['max_attempts']} times"
                error = f"{often}: {error}"
            lines.append(Text(f"  {error}", style="red"))
    if hidden := rows[len(shown) :]:
        count = submissions.count_states(row.state for row in hidden)
        lines.append(Text(f"{len(hidden)} more not shown: {count}", style="dim"))
    for line in lines:
        line.truncate(width, overflow="ellipsis")
    return Text("\n").join([_heading(overview), *lines])


def show(root: str | os.PathLike, limit: int = DEFAULT_LIMIT) -> None:
    """Prints the table."""
    from rich.console import Console

    console = Console(highlight=False)
    text = render(gather(root), limit, console.width)
    console.print(text, soft_wrap=True)


def watch(root: str | os.PathLike, limit: int = 0, seconds: float = 2.0) -> None:
    """Shows the table and renews it until nothing runs or waits, or until Ctrl-C."""
    from rich.console import Console
    from rich.live import Live

    console = Console(highlight=False)
    with (
        contextlib.suppress(KeyboardInterrupt),
        Live(console=console, auto_refresh=False) as live,
    ):
        while True:
            overview = gather(root)
            room = limit or max(3, console.height - 5)
            live.update(render(overview, room, console.width), refresh=True)
            active = (states.RUNNING, states.QUEUED)
            if not any(state.state in active for state in overview.states):
                return
            time.sleep(seconds)


def duration(seconds: float | None) -> str:
    """Seconds in at most six characters.

    Example:
      >>> [duration(s) for s in (5, 75, 3700, 200000)]
      ['5s', '1:15', '1h01m', '2d07h']
    """
    if seconds is None:
        return ""
    minutes, rest = divmod(round(max(seconds, 0.0)), 60)
    hours, days = minutes // 60, minutes // 1440
    if not minutes:
        return f"{rest}s"
    if not hours:
        return f"{minutes}:{rest:02d}"
    if not days:
        return f"{hours}h{minutes % 60:02d}m"
    return f"{days}d{hours % 24:02d}h" if days < 100 else f"{days}d"


def _cells(state: RunState) -> list[str]:
    begun, done = state.state in (states.RUNNING, states.STALE), ""
    if state.state == states.DONE:
        done = "100%"
    elif state.steps and state.step is not None:
        done = f"{state.step / state.steps:.0%}"
    rate = state.images_per_second
    return [
        state.state,
        done,
        "" if rate is None else labels.short_count(rate),
        duration(state.eta_seconds),
        duration(state.heartbeat_age if begun else None),
        f"{state.attempt}" if state.attempt else "",
    ]


def _line(cells: Iterable[str]) -> str:
    pairs = zip(cells, _COLUMNS.values(), "<>>>>>", strict=True)
    return "".join(f"{text:{side}{size}} " for text, size, side in pairs)


def _name(row: Row, names: Mapping[str, str]) -> str:
    """Digits of the id, by which ``--only`` knows the run, and what tells it apart."""
    digits = row.state.id.rpartition("-")[2]
    if digits != row.state.id:
        digits = digits[: submissions.SHOWN_DIGITS]
    if label := row.plan["label"]:
        return f"{digits} {label}"
    changed = [
        f"{names[key]}={labels.short_value(value)}"
        for key, value in row.plan["overrides"].items()
        if key in names
    ]
    return " ".join(filter(None, [digits, row.variant, *changed]))


def _heading(overview: Overview) -> Text:
    from rich.text import Text

    found = collections.Counter(state.state for state in overview.states)
    parts = [
        Text(f"{found[name]} {name}", style=_STYLES[name])
        for name in states.STATES
        if found[name]
    ]
    title = Text(f"{overview.root}: {len(overview.rows)} runs\n", style="bold")
    return Text.assemble(title, Text("  ").join(parts), "\n")
