"""One self-contained HTML page about some runs, and a plain table for the terminal.

The page needs no network and no script: curves are SVG in the page, pictures are base64
PNG, and colours follow the reader's light or dark setting.
"""

from __future__ import annotations

import base64
import html
import io
import math
import numbers
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scm_jax.files.jsonl import write_atomically
from scm_jax.runs.directory.reading import Run
from scm_jax.runs.directory.report_curves import NUM_COLOURS, curve_panels
from scm_jax.runs.directory.salvage import Salvaged, salvage

if TYPE_CHECKING:
    import PIL.Image

    Picture = PIL.Image.Image | str | os.PathLike

# Keys of a summary -> how a run's card names them. A MAC is one multiply-add.
_FACTS = {
    "parameters": "parameters",
    "forward_macs_per_image": "forward MACs per image",
    "train_macs_per_image": "training MACs per image",
    "total_train_macs": "training MACs in total",
    "seconds": "seconds",
    "seed": "seed",
    "device": "device",
    "commit": "commit",
}

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #60666d; --line: #dfe3e8;
  --page: #ffffff; --card: #f6f7f9; --run-0: #3b66cc; --run-1: #c8601a;
  --run-2: #23855a; --run-3: #b83a6b; --run-4: #7a52c0; --run-5: #16808e;
  --run-6: #8d6e17; --run-7: #c23b36; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7eb; --soft: #9aa2ab;
  --line: #363c44; --page: #15181c; --card: #1e2227; --run-0: #86a6f5;
  --run-1: #f0a060; --run-2: #62c795; --run-3: #ee8fb4; --run-4: #b69bf0;
  --run-5: #5cc8d6; --run-6: #d9bd5f; --run-7: #f28b86; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1.5rem 1.25rem 4rem;
  background: var(--page); color: var(--ink); line-height: 1.5;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0.5rem 0; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 0.9rem; padding-bottom: 0.3rem;
  border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 0 0 0.6rem; overflow-wrap: anywhere; }
header p { max-width: 45rem; color: var(--soft); margin: 0.5rem 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.9rem; min-width: 100%; }
th, td { padding: 0.4rem 0.75rem; border-bottom: 1px solid var(--line);
  white-space: nowrap; text-align: left; }
th:first-child, td:first-child { padding-left: 0.2rem; }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
thead th { white-space: normal; border-bottom-width: 2px; }
th.number, td.number { text-align: right; font-variant-numeric: tabular-nums; }
tbody tr:hover { background: var(--card); }
figure { margin: 0; }
figcaption { font-size: 0.85rem; color: var(--soft); }
.grids { display: flex; flex-wrap: wrap; gap: 1.25rem; }
.grids figure { max-width: 100%; }
.grids img { display: block; max-width: 100%; height: auto; border-radius: 4px;
  image-rendering: pixelated; }
.grids figcaption { margin-top: 0.35rem; }
.plots { display: grid; gap: 1.25rem;
  grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); }
.plot svg { display: block; width: 100%; height: auto; max-width: 34rem; }
.plot text { font-family: inherit !important; }
.plot figcaption { font-weight: 600; margin-bottom: 0.25rem; }
.legend { display: flex; flex-wrap: wrap; gap: 0.3rem 1.25rem; font-size: 0.85rem;
  color: var(--soft); margin-bottom: 1rem; }
.legend i { display: inline-block; width: 1.1rem; height: 0.25rem; border-radius: 2px;
  margin-right: 0.4rem; vertical-align: middle; }
.cards { display: grid; gap: 1rem; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); }
article { background: var(--card); border-radius: 6px; padding: 1rem;
  border-top: 3px solid; min-width: 0; }
dl { display: grid; grid-template-columns: auto minmax(5rem, 1fr); gap: 0.15rem 1rem;
  margin: 0; font-size: 0.85rem; }
dt { color: var(--soft); }
dd { margin: 0; text-align: right; overflow-wrap: anywhere; }
.warning { color: var(--run-7); font-size: 0.85rem; margin: 0 0 0.6rem;
  overflow-wrap: anywhere; }
details { margin-top: 0.75rem; font-size: 0.85rem; }
summary { cursor: pointer; color: var(--soft); margin-bottom: 0.4rem; }
pre { background: var(--card); border-radius: 6px; padding: 0.7rem 0.9rem;
  overflow-x: auto; font-size: 0.85rem; margin: 0.3rem 0 1rem; }
section > p { margin: 0.8rem 0 0; }
"""


def write_report(
    path: str | os.PathLike,
    *,
    title: str,
    runs: Sequence[Run | Salvaged] = (),
    results: Sequence[tuple[str, Sequence[Mapping[str, Any]]]] = (),
    grids: Mapping[str, Picture] | None = None,
    commands: Sequence[tuple[str, str]] = (),
    intro: str = "",
) -> Path:
    """Writes the page; parts without content are left out.

    Args:
      path: the HTML file; its folder is made.
      title: heading of the page.
      runs: whose curves and facts are shown, each in its own colour; one with damaged
        files with what can be read, and a warning.
      results: caption and rows of each table of results.
      grids: caption -> picture (PIL, or the path of a PNG), shown side by side.
      commands: (what it does, command line) to repeat each part.
      intro: text below the heading; blank lines separate paragraphs.

    Returns:
      ``path``.
    """
    path = Path(path)
    shown = [r if isinstance(r, Salvaged) else salvage(r) for r in runs]
    sections = [
        ("Results", "".join(_results_section(*table) for table in results)),
        ("Samples", _samples_section(grids or {})),
        ("Curves", _curves_section(shown)),
        ("Runs", _runs_section(shown)),
        ("Repeat it", _commands_section(commands)),
    ]
    body = "".join(
        f"<section><h2>{name}</h2>{content}</section>"
        for name, content in sections
        if content
    )
    paragraphs = [_text(p) for p in re.split(r"\n\s*\n", intro.strip()) if p]
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(title)}</title><style>{_STYLE}</style></head>"
        f"<body><header><h1>{_text(title)}</h1>"
        + "".join(f"<p>{p}</p>" for p in paragraphs)
        + f"</header><main>{body}</main></body></html>\n"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    # A path in another encoding than the locale's has characters that are none.
    write_atomically(path, page.encode(errors="replace").decode())
    return path


def format_table(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None
) -> str:
    """Rows as an aligned table of plain text; numbers stand on the right.

    Args:
      rows: one mapping per row; a missing value is shown as ``-``.
      columns: which keys, in order; all of them by default.

    Example:
      >>> print(format_table([{"method": "scd", "nfe": 2, "distance": 0.4471}]))
      method  nfe  distance
      ------  ---  --------
      scd       2    0.4471
    """
    columns = list(columns) if columns is not None else _columns(rows)
    cells = [[name, *_cells(rows, name)] for name in columns]
    widths = [max(map(len, column)) for column in cells]
    align = [str.rjust if _is_numeric(rows, name) else str.ljust for name in columns]
    lines = [
        "  ".join(
            a(column[i], w) for a, column, w in zip(align, cells, widths, strict=True)
        )
        for i in range(len(rows) + 1)
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(line.rstrip() for line in lines)


# What fits into a cell.
_CELL = (str, numbers.Number, type(None))


def _results_section(caption: str, rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    about = f"<pre>{_text(caption)}</pre>" if caption else ""
    columns = _columns(rows)
    classes = ["number" if _is_numeric(rows, name) else "word" for name in columns]
    head = "".join(
        f'<th class="{c}">{_text(name.replace("_", " "))}</th>'
        for name, c in zip(columns, classes, strict=True)
    )
    cells = [_cells(rows, name) for name in columns]
    body = "".join(
        "<tr>"
        + "".join(
            f'<td class="{c}">{_text(v)}</td>'
            for v, c in zip(row, classes, strict=True)
        )
        + "</tr>"
        for row in zip(*cells, strict=True)
    )
    return (
        f'{about}<div class="wide"><table class="results">'
        f"<thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def _samples_section(grids: Mapping[str, Picture]) -> str:
    figures = "".join(
        f'<figure><img alt="{_text(label)}" src="{_png_uri(picture)}">'
        f"<figcaption>{_text(label)}</figcaption></figure>"
        for label, picture in grids.items()
    )
    return f'<div class="grids">{figures}</div>' if figures else ""


def _curves_section(runs: Sequence[Salvaged]) -> str:
    panels = curve_panels([(found.run.name, found.metrics) for found in runs])
    if not panels:
        return ""
    legend = "".join(
        f'<span><i style="background:var(--run-{i % NUM_COLOURS})"></i>'
        f"{_text(found.run.name)}</span>"
        for i, found in enumerate(runs)
    )
    plots = "".join(
        f'<figure class="plot"><figcaption>{_text(caption)}</figcaption>{svg}</figure>'
        for caption, svg in panels
    )
    over_t = any(caption.endswith("over t") for caption, _ in panels)
    note = "<span>over t: dotted at first, solid at last</span>" if over_t else ""
    return f'<div class="legend">{legend}{note}</div><div class="plots">{plots}</div>'


def _runs_section(runs: Sequence[Salvaged]) -> str:
    cards = []
    for i, found in enumerate(runs):
        run = found.run
        summary = found.summary | (found.summary.get("environment") or {})
        facts = {"state": run.state, "directory": str(run.path)}
        facts |= {
            label: _fact(summary[key])
            for key, label in _FACTS.items()
            if summary.get(key) is not None
        }
        config, warnings = found.config, "".join(map(_warning, found.problems))
        cards.append(
            f'<article style="border-top-color:var(--run-{i % NUM_COLOURS})">'
            f"<h3>{_text(run.name)}</h3>{warnings}{_definitions(facts)}"
            f"<details><summary>config ({len(config)} keys)</summary>"
            f"{_definitions(config)}</details></article>"
        )
    return f'<div class="cards">{"".join(cards)}</div>' if cards else ""


def _warning(problem: str) -> str:
    return f'<p class="warning">Left out, as it cannot be read: {_text(problem)}</p>'


def _commands_section(commands: Sequence[tuple[str, str]]) -> str:
    return "".join(
        f"<p>{_text(text)}</p><pre><code>{_text(command)}</code></pre>"
        for text, command in commands
    )


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a table can show: no lists by time or seed, and no protocols."""
    columns = dict.fromkeys(key for row in rows for key in row)
    return [
        name
        for name in columns
        if name != "key"
        and all(isinstance(row.get(name), _CELL) for row in rows if name in row)
    ]


def _is_numeric(rows: Sequence[Mapping[str, Any]], column: str) -> bool:
    values = [row[column] for row in rows if row.get(column) is not None]
    return bool(values) and all(_is_number(value) for value in values)


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _cells(rows: Sequence[Mapping[str, Any]], column: str) -> list[str]:
    """The texts of a column; its fractions share their number of decimals."""
    values: list[Any] = [row.get(column) for row in rows]
    floats = [abs(v) for v in values if _is_number(v) and math.isfinite(v) and v]
    decimals = max(0, 3 - math.floor(math.log10(max(floats)))) if floats else 0
    coarse = bool(floats) and min(floats) < 10.0 ** (1 - decimals)
    # A table of pandas has made floats of the counts in a column with gaps.
    whole = all(v == math.floor(v) for v in floats)

    def text(value: Any) -> str:
        if value is None:
            return "-"
        if not _is_number(value):
            return str(value)
        if whole or not math.isfinite(value):
            return f"{value:.0f}"
        return f"{value:.3g}" if coarse else f"{value:.{decimals}f}"

    return [text(value) for value in values]


def _fact(value: Any) -> str:
    if not _is_number(value):
        return str(value)
    if abs(value) < 1e6:
        return f"{value:,}" if isinstance(value, numbers.Integral) else f"{value:.4g}"
    power = min(int(math.log10(abs(value)) // 3), 6)
    return f"{value / 1000**power:.4g} {' kMGTPE'[power]}"


def _definitions(values: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<dt>{_text(key)}</dt><dd>{_text(value)}</dd>" for key, value in values.items()
    )
    return f"<dl>{rows}</dl>"


def _png_uri(picture: Picture) -> str:
    if isinstance(picture, str | os.PathLike):
        data = Path(picture).read_bytes()
    else:
        buffer = io.BytesIO()
        picture.save(buffer, format="PNG")
        data = buffer.getvalue()
    return "data:image/png;base64," + base64.b64encode(data).decode()


def _text(value: Any) -> str:
    return html.escape(str(value))
