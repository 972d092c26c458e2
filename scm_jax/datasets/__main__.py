"""``python -m scm_jax.datasets NAME_OR_PATH [--root=DIR]``: prepares a dataset."""

from __future__ import annotations

import argparse
import sys

from scm_jax.datasets import storage


def main(argv: list[str] | None = None) -> int:
    """Prepares one dataset and prints where it is."""
    parser = argparse.ArgumentParser(
        prog="python -m scm_jax.datasets", description=__doc__
    )
    parser.add_argument(
        "builder", help="name of a folder in data/, or a builder's path"
    )
    parser.add_argument("--root", help="folder of prepared datasets")
    args = parser.parse_args(argv)
    try:
        print(storage.prepare(args.builder, args.root))
    except FileNotFoundError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
