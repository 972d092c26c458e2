"""Tensors by name: what identifies them, and whether they are those of a network."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np


def tensors_sha256(tensors: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of names, shapes and little-endian float32 values, sorted by name.

    It identifies weights whatever file they came in.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name], "<f4")
        digest.update(f"{name}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


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
    fitting = [name for name in present if name not in wrong]
    tensors = {name: np.asarray(state[name], np.float32) for name in fitting}
    bad = [name for name, array in tensors.items() if not np.isfinite(array).all()]
    problems = [
        *_some("missing", [f"{n} {shapes[n]}" for n in shapes if n not in state]),
        *_some("unknown", [f"{name} {state[name].shape}" for name in sorted(left)]),
        *_some(
            "wrong shape",
            [f"{n} {state[n].shape}, expected {shapes[n]}" for n in wrong],
        ),
        *_some("not finite", bad),
    ]
    if problems:
        text = "\n".join(problems)
        raise ValueError(f"{where} does not hold this network's weights:\n{text}")
    return tensors


def _some(problem: str, names: list[str], most: int = 8) -> list[str]:
    rest = [f"  {problem}: {len(names) - most} more"] if len(names) > most else []
    return [f"  {problem}: {name}" for name in names[:most]] + rest
