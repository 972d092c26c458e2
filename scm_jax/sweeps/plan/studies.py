"""Sweeps that several sweep files have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from scm_jax.sweeps.plan.combinators import Override, chain, cross, grid, run_dir, seeds

KINDS = ("sct", "scd")


def isoflop(
    sizes: Mapping[str, Override],
    budgets: Sequence[float],
    *,
    num_seeds: int,
    teacher_flops: float,
    kinds: Sequence[str] = KINDS,
    common: Override | None = None,
    student: Override | None = None,
) -> list[Override]:
    """Every size at every training budget: students, and a teacher of each size.

    sCT starts at random parameters, so a budget is all that went into a run. sCD starts
    at a teacher of its own size; its budget includes the teacher's evaluations during
    the distillation but not the teacher's own training of ``teacher_flops``.

    Args:
      sizes: name -> overrides that make a network of this size.
      budgets: FLOPs of a student's training (``train.flops``).
      num_seeds: training seeds of each student; a teacher has one.
      teacher_flops: FLOPs of a teacher's training, at every size.
      kinds: ``sct``, ``scd`` or both.
      common: overrides of all runs.
      student: overrides of students.

    Returns:
      Entries for an experiment file with the arguments ``teacher``, ``sct``, ``scd``.

    Raises:
      ValueError: an unknown kind.
    """
    if not kinds or set(kinds) - set(KINDS):
        raise ValueError(f"kinds of students {kinds!r}: legal are {KINDS}")
    rest = cross(grid({"train.flops": budgets}), seeds(num_seeds))
    runs: list[Override] = []
    if "sct" in kinds:
        sct = {"base": ":sct", "tags": "sct", "init.run": ""}
        runs = cross([{**sct, **(student or {})}], sizes.values(), rest)
    if "scd" in kinds:
        teacher = {"base": ":teacher", "tags": "teacher", "train.flops": teacher_flops}
        for name, size in sizes.items():
            place = run_dir(f"teacher_{name}")
            scd = {"base": ":scd", "tags": "scd", "teacher.run": place}
            runs = chain(
                runs,
                cross([{**teacher, "label": place.label}], [size]),
                cross([{**scd, "init.run": place, **(student or {})}], [size], rest),
            )
    return cross([common or {}], runs)


def parse_kinds(arg: str) -> tuple[tuple[str, ...], bool]:
    """The argument of a study: ``both``, ``sct`` or ``scd``, and ``quick``.

    Example:
      >>> parse_kinds("scd,quick")
      (('scd',), True)
    """
    kind, _, rest = (arg or "both").partition(",")
    if kind not in ("both", *KINDS) or arg not in ("", kind, f"{kind},quick"):
        raise ValueError(
            f"argument {arg!r}: legal are both, sct and scd, with or without ,quick"
        )
    return (KINDS if kind == "both" else (kind,)), rest == "quick"


def widths(*values: Any) -> dict[str, Override]:
    """Sizes that differ in ``network.width``.

    Example:
      >>> widths(32, 64)["64"]
      {'network.width': 64}
    """
    return {str(value): {"network.width": value} for value in values}
