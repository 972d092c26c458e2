"""Teacher and student that a folder of ``data/`` holds: unpacked or trained again.

The demos of text and video have this in common.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from scm_jax import sampling
from scm_jax.commands.demo import say
from scm_jax.files import shipped
from scm_jax.runs import packed, train
from scm_jax.runs.sample import Loaded, load_generate
from scm_jax.sweeps.plan.sweep_file import load_module
from scm_jax.training import loop

VARIANTS = ("teacher", "scd")
TEACHER: dict[str, Any] = {"sampler": "heun", "steps": 32, "guidance": 2.0}
SPEED_BATCH = 32


def read_configs(file: str, workdir: Path, quick: bool) -> dict[str, ConfigDict]:
    """The configs of an experiment file, with the student's teacher in ``workdir``."""
    module = load_module(str(shipped.folder("experiments") / file))
    configs, options = {}, ",quick" if quick else ""
    for variant in VARIANTS:
        config = module.get_config(variant + options)
        if variant != "teacher":
            config.init.run = config.teacher.run = str(workdir / "teacher")
        configs[variant] = config
    return configs


def place(
    workdir: Path, name: str, train_first: Callable[[], Mapping[str, ConfigDict]] | None
) -> str:
    """Teacher and student in ``workdir``: those of ``data/NAME``, or trained first.

    Returns:
      ``done``, or ``preempted`` after a signal.
    """
    if train_first is not None:
        for variant, config in train_first().items():
            say(f"training {config.name}")
            status = train.train_and_evaluate(config, workdir / variant)
            if status != loop.DONE:
                return status
        return loop.DONE
    for variant in VARIANTS:
        folder = shipped.folder("data") / name / variant
        if not folder.is_dir():
            raise FileNotFoundError(
                f"no trained model in {folder}: --train trains one, and --quick "
                "shows with a few steps that all works"
            )
        # The same folder again, in case of another version of the package.
        shutil.rmtree(workdir / variant, ignore_errors=True)
        packed.unpack(folder, workdir / variant)
    return loop.DONE


def load(workdir: Path) -> dict[str, Loaded]:
    """Teacher and student, ready to sample."""
    return {v: load_generate(workdir / v) for v in VARIANTS}


def speedup_text(
    loaded: dict[str, Loaded], batch: int, teacher: Mapping[str, Any] = TEACHER
) -> str:
    """Two steps of the student against the teacher's many, at the same batch."""

    def seconds(generate: Any, repeats: int, **settings: Any) -> float:
        generate(batch, **settings)  # compiles
        times = []
        for _ in range(repeats):
            begin = time.perf_counter()
            generate(batch, **settings)
            times.append(time.perf_counter() - begin)
        return min(times)

    two = seconds(loaded["scd"].generate, 5, steps=2)
    many = seconds(loaded["teacher"].generate, 1, **teacher)
    guidance = teacher.get("guidance", 1.0)
    evaluations = sampling.nfe(teacher["sampler"], teacher["steps"], guidance)
    return (
        f"2 steps of sCD are {many / two:.1f} times faster than the teacher's "
        f"{teacher['steps']} Heun steps, {evaluations} evaluations "
        f"({two / batch * 1e3:.2f} and {many / batch * 1e3:.1f} ms an image, batch "
        f"{batch})"
    )
