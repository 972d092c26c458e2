"""Weight files of pretrained feature networks: where they are, and whether they fit."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from scm_jax.evaluation.frozen_weights import weights_hash as weights_id

__all__ = ["check_tensors", "find_weights", "weights_id"]


def find_weights(
    network: str, files: Mapping[str, str], path: str | os.PathLike | None = None
) -> Path:
    """The weight file of a network: ``path``, or the first of ``files`` that is there.

    Looked for in ``$SCM_JAX_WEIGHTS/NETWORK`` and ``~/.cache/scm_jax/weights/NETWORK``.

    Args:
      network: name of the folder, such as ``"inception"``.
      files: name of an accepted file -> where it is published.
      path: an explicit file.

    Raises:
      FileNotFoundError: there is none; says which files to get from where, and where to
        put them.
    """
    if path is not None:
        if Path(path).is_file():
            return Path(path)
        raise FileNotFoundError(f"{path}: no such file.\n{_help(network, files)}")
    for folder in _folders(network):
        for name in files:
            if (folder / name).is_file():
                return folder / name
    raise FileNotFoundError(f"no weights of {network}.\n{_help(network, files)}")


def _folders(network: str) -> list[Path]:
    roots = [os.environ.get("SCM_JAX_WEIGHTS"), "~/.cache/scm_jax/weights"]
    return [Path(root).expanduser() / network for root in roots if root]


def _help(network: str, files: Mapping[str, str]) -> str:
    lines = ["Put one of these files:"]
    lines += [f"  {name}: {published}" for name, published in files.items()]
    lines += ["into one of these folders, or give its path:"]
    lines += [f"  {folder}" for folder in _folders(network)]
    if "SCM_JAX_WEIGHTS" not in os.environ:
        lines += ["  (or $SCM_JAX_WEIGHTS/" + network + ")"]
    return "\n".join(lines)


def check_tensors(
    where: str,
    state: Mapping[str, np.ndarray],
    shapes: Mapping[str, tuple[int, ...]],
    ignored: Sequence[str] = (),
) -> dict[str, np.ndarray]:
    """The tensors of ``shapes`` as float32, in that order, if they are all there is.

    Args:
      where: the file, for messages.
      state: what it holds.
      shapes: what the network needs.
      ignored: endings of names that a file may hold besides.

    Raises:
      ValueError: names the tensors that are missing, left over, of another shape or not
        finite.
    """
    left = {n for n in state if n not in shapes and not n.endswith(tuple(ignored))}
    present = [name for name in shapes if name in state]
    wrong = [name for name in present if state[name].shape != shapes[name]]
    tensors = {
        name: np.asarray(state[name], np.float32)
        for name in present
        if name not in wrong
    }
    bad = [name for name, array in tensors.items() if not np.isfinite(array).all()]
    problems = [
        *_some("missing", (f"{n} {shapes[n]}" for n in shapes if n not in state)),
        *_some("unknown", (f"{name} {state[name].shape}" for name in sorted(left))),
        *_some(
            "wrong shape",
            (f"{n} {state[n].shape}, expected {shapes[n]}" for n in wrong),
        ),
        *_some("not finite", bad),
    ]
    if problems:
        text = "\n".join(problems)
        raise ValueError(f"{where} does not hold this network's weights:\n{text}")
    return tensors


def _some(problem: str, names: Iterable[str], most: int = 8) -> list[str]:
    names = list(names)
    rest = [f"  {problem}: {len(names) - most} more"] if len(names) > most else []
    return [f"  {problem}: {name}" for name in names[:most]] + rest
