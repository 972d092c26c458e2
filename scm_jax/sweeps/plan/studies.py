"""Sweeps that several sweep files have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from scm_jax.sweeps.plan.combinators import (
    Override,
    chain,
    cross,
    grid,
    of_duration,
    run_dir,
    seeds,
)

STUDENTS = ("sct", "scd")
KINDS = ("teacher", *STUDENTS)

# What grows with a training, as shares of it, so that runs of all sizes and budgets are
# at the same place of their schedules. The batch stays what it is, and the widths of
# the EMAs are relative to the training already.
SHARES = {
    "optimizer.rampup_images": of_duration(0.05),
    "optimizer.decay_images": of_duration(1.0),
}
STUDENT_SHARES = {"objective.tangent_warmup_images": of_duration(0.1)}


def by_size(
    sizes: Mapping[str, Override],
    points: Sequence[Override],
    *,
    teacher: Override,
    kinds: Sequence[str] = STUDENTS,
    common: Override | None = None,
    student: Override | None = None,
    options: str = "",
) -> list[Override]:
    """Every size at every point of ``points``, for each kind of training.

    sCT starts at random parameters, so what it costs is all that went into a run. sCD
    starts at a teacher of its own size.

    Args:
      sizes: name -> overrides that make a network of this size.
      points: overrides of the runs of each kind and size.
      teacher: overrides of the teachers of sCD, one a size.
      kinds: some of ``teacher``, the diffusion objective itself, ``sct`` and ``scd``.
      common: overrides of all runs.
      student: overrides of students.
      options: further arguments of the experiment, such as ``,size=small``.

    Returns:
      Entries for an experiment file with the arguments ``teacher``, ``sct``, ``scd``.

    Raises:
      ValueError: an unknown kind.
    """
    if not kinds or set(kinds) - set(KINDS):
        raise ValueError(f"kinds of training {kinds!r}: legal are {KINDS}")
    runs: list[Override] = []
    if "teacher" in kinds:
        diffusion = {"base": f":teacher{options}", "tags": "diffusion"}
        runs = cross([diffusion], sizes.values(), points)
    if "sct" in kinds:
        sct = {"base": f":sct{options}", "tags": "sct", "init.run": ""}
        sct |= student or {}
        runs = chain(runs, cross([sct], sizes.values(), points))
    if "scd" in kinds:
        taught = {"base": f":teacher{options}", "tags": "teacher", **teacher}
        for name, size in sizes.items():
            place = run_dir(f"teacher_{name}")
            scd = {"base": f":scd{options}", "tags": "scd", "teacher.run": place}
            scd |= {"init.run": place, **(student or {})}
            teachers = cross([{**taught, "label": place.label}], [size])
            runs = chain(runs, teachers, cross([scd], [size], points))
    return cross([common or {}], runs)


def isoflop(
    sizes: Mapping[str, Override],
    budgets: Sequence[float],
    *,
    num_seeds: int,
    teacher_flops: float,
    **settings: Any,
) -> list[Override]:
    """Every size at every training budget: ``by_size`` with its ``settings``.

    The budget of sCD includes the teacher's evaluations during the distillation but not
    the teacher's own training.

    Args:
      sizes: name -> overrides that make a network of this size.
      budgets: FLOPs of a run's training (``train.flops``).
      num_seeds: training seeds of each run; a teacher of sCD has one.
      teacher_flops: FLOPs of a teacher's training, at every size.
    """
    points = cross(grid({"train.flops": budgets}), seeds(num_seeds))
    return by_size(sizes, points, teacher={"train.flops": teacher_flops}, **settings)


def transfer(
    sizes: Mapping[str, Override],
    rates: Sequence[float],
    *,
    images: float,
    teacher_rate: float,
    **settings: Any,
) -> list[Override]:
    """Every size at every learning rate on equally many images: ``by_size``.

    Where the best rate is the same at all sizes, it need not be searched at the
    largest; see ``scm_jax.training.width_rules``.
    """
    length = {"train.duration_images": images}
    points = grid({"optimizer.learning_rate": rates})
    teacher = {"optimizer.learning_rate": teacher_rate}
    common = {**(settings.pop("common", None) or {}), **length}
    return by_size(sizes, points, teacher=teacher, common=common, **settings)


def parse_kinds(arg: str) -> tuple[tuple[str, ...], bool]:
    """The argument of a study: ``both``, ``sct`` or ``scd``, and ``quick``.

    Example:
      >>> parse_kinds("scd,quick")
      (('scd',), True)
    """
    kind, _, rest = (arg or "both").partition(",")
    if kind not in ("both", *STUDENTS) or arg not in ("", kind, f"{kind},quick"):
        raise ValueError(
            f"argument {arg!r}: legal are both, sct and scd, with or without ,quick"
        )
    return (STUDENTS if kind == "both" else (kind,)), rest == "quick"


def widths(
    *values: int, head_width: int = 0, base_width: int = 0
) -> dict[str, Override]:
    """Sizes that differ in ``network.width``.

    With ``head_width``, heads have this width at all sizes. ``base_width`` is the one
    that the learning rate is for, ``optimizer.base_width``; 0 is one rate for all.

    Example:
      >>> widths(32, 64)["64"]
      {'network.width': 64}
      >>> widths(64, head_width=16, base_width=32)["64"]
      {'network.width': 64, 'network.num_heads': 4, 'optimizer.base_width': 32}
    """
    sizes = {str(value): {"network.width": value} for value in values}
    for size in sizes.values():
        if head_width:
            size["network.num_heads"] = size["network.width"] // head_width
        if base_width:
            size["optimizer.base_width"] = base_width
    return sizes
