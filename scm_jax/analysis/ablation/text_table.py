"""A table of texts as Markdown, LaTeX and HTML."""

from __future__ import annotations

import dataclasses
import html
import re

_LATEX = {
    **{c: "\\" + c for c in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "−": "$-$",
    "∞": r"$\infty$",
    "–": "--",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
}


@dataclasses.dataclass(frozen=True)
class Table:
    """Texts in rows, with notes below.

    Attributes:
      head: names of the columns.
      rows: as many texts each.
      notes: sentences.
    """

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def to_markdown(self) -> str:
        """A pipe table, aligned so that it reads well as text too.

        Example:
          >>> print(Table(("a", "b"), (("x|y", "1"),)).to_markdown())
          | a    | b |
          |------|---|
          | x\\|y | 1 |
        """
        cells = [
            [text.replace("|", "\\|") for text in row]
            for row in (self.head, *self.rows)
        ]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            "| "
            + " | ".join(t.ljust(w) for t, w in zip(row, widths, strict=True))
            + " |"
            for row in cells
        ]
        lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
        return "\n".join([*lines, *(f"\n{note}" for note in self.notes)])

    def to_latex(self) -> str:
        """A ``tabular`` for the package ``booktabs``; notes stand below as text."""
        lines = [
            rf"\begin{{tabular}}{{{'l' * len(self.head)}}}",
            r"\toprule",
            _latex_row(self.head),
            r"\midrule",
            *map(_latex_row, self.rows),
            r"\bottomrule",
            r"\end{tabular}",
        ]
        if self.notes:
            notes = " ".join(_latex(note) for note in self.notes)
            lines += ["", rf"\par\smallskip{{\footnotesize {notes}}}"]
        return "\n".join(lines)

    def to_html(self) -> str:
        """A table with the notes as a paragraph."""
        head = "".join(f"<th>{html.escape(text)}</th>" for text in self.head)
        rows = "".join(
            "<tr>" + "".join(f"<td>{html.escape(text)}</td>" for text in row) + "</tr>"
            for row in self.rows
        )
        notes = " ".join(map(html.escape, self.notes))
        below = f"<p>{notes}</p>" if notes else ""
        return (
            f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{below}"
        )


def _latex_row(texts: tuple[str, ...]) -> str:
    return " & ".join(map(_latex, texts)) + r" \\"


def _latex(text: str) -> str:
    pattern = "[" + "".join(map(re.escape, _LATEX)) + "]"
    return re.sub(pattern, lambda match: _LATEX[match[0]], text)
