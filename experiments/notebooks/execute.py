"""Executes a notebook source and writes it as a page.

    python experiments/notebooks/execute.py scaling --root=runs/isoflop_digits \\
      --out=docs/isoflop_digits.md

``.ipynb`` as ending writes a notebook with its outputs, ``.md`` a page with its
pictures in a folder beside it.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import re

import jupytext
import nbclient
import nbformat

HERE = pathlib.Path(__file__).parent


def execute(name: str, root: str, timeout: float = 3600) -> nbformat.NotebookNode:
    """The notebook of this name with its outputs; raises where a cell does."""
    notebook = jupytext.read(HERE / f"{name}.py")
    os.environ["SCM_JAX_ROOT"] = str(pathlib.Path(root).resolve())
    nbclient.NotebookClient(notebook, timeout=timeout, kernel_name="python3").execute(
        cwd=str(HERE.parent.parent)
    )
    return notebook


def write_page(notebook: nbformat.NotebookNode, out: pathlib.Path) -> None:
    """Markdown, and its pictures in a folder of the page's name."""
    from nbconvert import MarkdownExporter

    text, resources = MarkdownExporter().from_notebook_node(notebook)
    folder = out.with_suffix("")
    for name, data in resources["outputs"].items():
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
        text = text.replace(f"({name})", f"({folder.name}/{name})")
    # Tables come with a style sheet that no page of Markdown shows.
    text = re.sub(r"<style.*?</style>\n?", "", text, flags=re.S)
    text = re.sub(r' style="[^"]*"', "", text)
    out.write_text(re.sub(r"\n{3,}", "\n\n", text).strip() + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="scaling, ablation, sampling or tangents")
    parser.add_argument("--root", required=True, help="directory of the runs")
    parser.add_argument("--out", required=True, help=".ipynb or .md", type=pathlib.Path)
    args = parser.parse_args()
    notebook = execute(args.name, args.root)
    if args.out.suffix == ".ipynb":
        nbformat.write(notebook, args.out)
    else:
        write_page(notebook, args.out)


if __name__ == "__main__":
    main()
