"""One self-contained HTML page about some runs, and a plain table for the terminal.

The page needs no network and no script: it holds curves as SVG and images as PNG.
"""

from __future__ import annotations

import html
import math
import numbers
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scm_jax.files.atomic import write_atomically
from scm_jax.files.optional import require
from scm_jax.runs.directory.labels import short_count
from scm_jax.runs.directory.media import png_uri
from scm_jax.runs.directory.reading import Run, Salvaged, salvage
from scm_jax.runs.directory.report_curves import NUM_COLOURS, curve_panels

if TYPE_CHECKING:
    import PIL.Image

# Keys of a summary -> how a run's card names them. A MAC is one multiply-add.
_FACTS = {
    "parameters": "parameters",
    "forward_macs_per_image": "forward MACs per image",
    "train_macs_per_image": "training MACs per image",
    "total_train_macs": "training MACs in total",
    **{name: name for name in ("seconds", "seed", "device", "commit")},
}


def write_report(
    path: str | os.PathLike,
    *,
    title: str,
    runs: Sequence[Run | Salvaged] = (),
    results: Sequence[tuple[str, Sequence[Mapping[str, Any]]]] = (),
    grids: Mapping[str, PIL.Image.Image | str] | None = None,
    commands: Sequence[tuple[str, str]] = (),
    intro: str = "",
) -> Path:
    """Writes the page and returns its path; parts without content are left out.

    Args:
      path: the HTML file; its folder is made.
      title: heading of the page.
      runs: runs to show, each in its own colour; for damaged files there is a warning.
      results: caption and rows of each table of results.
      grids: caption -> image, or ``Samples.html``, shown side by side.
      commands: (what it does, command line) to repeat each part.
      intro: text below the heading; blank lines separate paragraphs.
    """
    path = Path(path)
    shown = [r if isinstance(r, Salvaged) else salvage(r) for r in runs]
    panels = curve_panels([(found.run.name, found.metrics) for found in shown])
    page = _template().render(
        title=title,
        paragraphs=[p for p in re.split(r"\n\s*\n", intro.strip()) if p],
        tables=[_table(caption, rows) for caption, rows in results if rows],
        grids={
            label: image if isinstance(image, str) else _tag(label, image)
            for label, image in (grids or {}).items()
        },
        panels=panels,
        over_t=any(caption.endswith("over t") for caption, _ in panels),
        cards=[_card(found, i % NUM_COLOURS) for i, found in enumerate(shown)],
        commands=commands,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    # A path in another encoding than the locale's has characters that UTF-8 lacks.
    write_atomically(path, page.encode(errors="replace").decode())
    return path


def _tag(label: str, image: PIL.Image.Image) -> str:
    return f'<img alt="{html.escape(label)}" src="{png_uri(image)}">'


def format_table(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None
) -> str:
    """Rows as an aligned table of plain text; numbers are right-aligned.

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


def _template() -> Any:
    jinja2 = require("jinja2", "a report", "scm_jax[analysis]")
    text = Path(__file__).with_name("report.html.jinja").read_text(encoding="utf-8")
    blocks = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    return jinja2.Environment(autoescape=True, **blocks).from_string(text)


def _table(caption: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    columns = _columns(rows)
    kinds = ["number" if _is_numeric(rows, name) else "word" for name in columns]
    names = [name.replace("_", " ") for name in columns]
    cells = [_cells(rows, name) for name in columns]
    return {
        "caption": caption,
        "head": list(zip(names, kinds, strict=True)),
        "rows": list(zip(*cells, strict=True)),
    }


def _card(found: Salvaged, colour: int) -> dict[str, Any]:
    summary = found.summary | (found.summary.get("environment") or {})
    facts = {
        label: _fact(summary[key])
        for key, label in _FACTS.items()
        if summary.get(key) is not None
    }
    return {
        "name": found.run.name,
        "colour": colour,
        "problems": found.problems,
        "facts": {"state": found.run.state, "directory": found.run.path, **facts},
        "config": found.config,
    }


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    # A cell holds no lists by time or seed, and no protocols.
    cell = (str, numbers.Number, type(None))
    return [
        name
        for name in dict.fromkeys(key for row in rows for key in row)
        if name != "key" and all(isinstance(row.get(name), cell) for row in rows)
    ]


def _is_numeric(rows: Sequence[Mapping[str, Any]], column: str) -> bool:
    values = [row[column] for row in rows if row.get(column) is not None]
    return bool(values) and all(_is_number(value) for value in values)


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _cells(rows: Sequence[Mapping[str, Any]], column: str) -> list[str]:
    """The texts of a column, with one number of decimals."""
    values: list[Any] = [row.get(column) for row in rows]
    floats = [abs(v) for v in values if _is_number(v) and math.isfinite(v) and v]
    decimals = max(0, 3 - math.floor(math.log10(max(floats)))) if floats else 0
    coarse = bool(floats) and min(floats) < 10.0 ** (1 - decimals)
    # pandas makes floats of counts in a column with gaps.
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
    if abs(value) >= 1e6:
        return short_count(value, " ", digits=4)
    return f"{value:,}" if isinstance(value, numbers.Integral) else f"{value:.4g}"
