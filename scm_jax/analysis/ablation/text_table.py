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
    """Texts in rows, with sentences below."""

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
        rows = (self.head, *self.rows)
        cells = [[text.replace("|", "\\|") for text in row] for row in rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        padded = [map(str.ljust, row, widths) for row in cells]
        lines = [f"| {' | '.join(row)} |" for row in padded]
        lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
        return "\n".join([*lines, *(f"\n{note}" for note in self.notes)])

    def to_latex(self) -> str:
        """A ``tabular`` for the package ``booktabs``, with the notes as text below."""
        head, *rows = (
            " & ".join(map(_latex, row)) + r" \\" for row in (self.head, *self.rows)
        )
        lines = [
            rf"\begin{{tabular}}{{{'l' * len(self.head)}}}",
            r"\toprule",
            head,
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
        ]
        if self.notes:
            notes = " ".join(_latex(note) for note in self.notes)
            lines += ["", rf"\par\smallskip{{\footnotesize {notes}}}"]
        return "\n".join(lines)

    def to_html(self) -> str:
        """A table with the notes as a paragraph."""

        def row(kind: str, texts: tuple[str, ...]) -> str:
            cells = (f"<{kind}>{html.escape(text)}</{kind}>" for text in texts)
            return f"<tr>{''.join(cells)}</tr>"

        body = "".join(row("td", texts) for texts in self.rows)
        notes = " ".join(map(html.escape, self.notes))
        below = f"<p>{notes}</p>" if notes else ""
        head = f"<thead>{row('th', self.head)}</thead>"
        return f"<table>{head}<tbody>{body}</tbody></table>{below}"


def _latex(text: str) -> str:
    pattern = "[" + "".join(map(re.escape, _LATEX)) + "]"
    return re.sub(pattern, lambda match: _LATEX[match[0]], text)
