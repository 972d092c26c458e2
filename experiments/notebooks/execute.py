"""Executes a notebook source and writes it as a notebook with outputs.

    python experiments/notebooks/execute.py scaling --root=docs/isoflop_digits \\
      --out=docs/notebooks/scaling.ipynb
"""

from __future__ import annotations

import argparse
import os
import pathlib

import jupytext
import nbclient
import nbformat

HERE = pathlib.Path(__file__).parent


def execute(name: str, root: str) -> nbformat.NotebookNode:
    """The notebook of this name with its outputs; raises where a cell does."""
    notebook = jupytext.read(HERE / f"{name}.py")
    os.environ["SCM_JAX_ROOT"] = str(pathlib.Path(root).resolve())
    # Times of execution would change the file each time it is made.
    client = nbclient.NotebookClient(notebook, timeout=3600, record_timing=False)
    client.execute(cwd=str(HERE.parent.parent))
    return notebook


def main() -> None:
    names = sorted(path.stem for path in HERE.glob("*.py") if path.stem != "execute")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=names)
    parser.add_argument("--root", required=True, help="directory of the runs")
    parser.add_argument("--out", required=True, help="the .ipynb file to write")
    args = parser.parse_args()
    nbformat.write(execute(args.name, args.root), args.out)


if __name__ == "__main__":
    main()
