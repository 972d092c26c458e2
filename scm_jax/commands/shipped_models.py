"""Teacher and student that a folder of ``data/`` holds: unpacked or trained again.

The demos of text, video and sound have this in common.
"""

from __future__ import annotations

import functools
import json
import shutil
import textwrap
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from scm_jax import sampling
from scm_jax.commands.demo import say
from scm_jax.files import shipped
from scm_jax.runs import evaluate, packed, train
from scm_jax.runs.directory import report
from scm_jax.runs.sample import Loaded, load_generate, load_run
from scm_jax.sweeps.plan.sweep_file import load_module
from scm_jax.training import loop

VARIANTS = ("teacher", "scd")
TEACHER: dict[str, Any] = {"sampler": "heun", "steps": 32, "guidance": 2.0}
SPEED_BATCH = 32


class Demo(NamedTuple):
    """What a demo of shipped models does.

    Attributes:
      name: of the folder in ``data/``.
      configs: ``(workdir, quick)`` -> the configs to train, where they are trained.
      measure: ``(workdir, num_samples)`` -> rows of results.
      draw: ``(workdir, loaded)`` -> caption and image or HTML of samples; may write
        them to files, too.
      medium: name of the demo on the command line.
      title: of the report.
      intro: what the models are.
      example: what else one can do, and the flags of ``sample`` that do it.
      num_samples: of the student.
      columns: of the table.
      legend: what the columns mean.
      noun: what a sample is called.
      speed: ``(student, batch)`` -> more about the speed.
    """

    name: str
    configs: Callable[[Path, bool], Mapping[str, ConfigDict]]
    measure: Callable[[Path, int], Iterable[dict[str, Any]]]
    draw: Callable[[Path, Mapping[str, Loaded]], Mapping[str, Any]]
    medium: str
    title: str
    intro: str
    example: tuple[str, str]
    num_samples: int
    columns: tuple[str, ...]
    legend: str
    noun: str = "an image"
    speed: Callable[[Loaded, int], str] | None = None


def run(
    demo: Demo, workdir: Path, *, quick: bool = False, train_again: bool = False
) -> str:
    """Samples from the shipped models, measures them and writes ``report.html``.

    With ``train_again`` or ``quick``, teacher and student are trained first.

    Returns:
      ``done``, or ``preempted`` after a signal.
    """
    started, train_first = time.monotonic(), None
    if train_again or quick:
        train_first = functools.partial(demo.configs, workdir, quick)
    if (status := place(workdir, demo.name, train_first)) != loop.DONE:
        return status
    loaded = {v: load_generate(workdir / v) for v in VARIANTS}
    batch = 4 if quick else SPEED_BATCH
    rows = list(demo.measure(workdir, 20 if quick else demo.num_samples))
    text = speedup_text(loaded, batch, demo.noun)
    if demo.speed is not None:
        text += f"; {demo.speed(loaded['scd'], batch)}"
    (workdir / "results.json").write_text(json.dumps(rows, indent=1) + "\n")
    write_report(demo, workdir, loaded, rows, text)
    print(report.format_table(rows, demo.columns))
    print(f"\n{textwrap.fill(demo.legend, 80)}\n{text}\n")
    print(f"report: {workdir / 'report.html'}")
    print(f"time:   {(time.monotonic() - started) / 60:.1f} minutes")
    return loop.DONE


def write_report(
    demo: Demo,
    workdir: Path,
    loaded: Mapping[str, Loaded],
    rows: Sequence[Mapping[str, Any]],
    speed: str,
) -> None:
    """Writes ``report.html``, and the files of ``demo.draw``."""
    again = f"python -m scm_jax demo --name={demo.medium} --train"
    what, flags = demo.example
    how = f"python -m scm_jax sample --run={workdir / 'scd'} --steps=2 {flags}"
    report.write_report(
        workdir / "report.html",
        title=demo.title,
        runs=[load_run(workdir / v) for v in VARIANTS],
        results=[("", list(rows))],
        grids=demo.draw(workdir, loaded),
        commands=[(what, how), ("Train both again", again)],
        intro=f"{demo.intro}, distilled from its diffusion teacher with guidance as an "
        f"input (sCD). {speed}.",
    )


def measured(
    workdir: Path,
    variant: str,
    num_samples: int,
    evaluator: str,
    steps: int,
    guidance: Sequence[float] = (TEACHER["guidance"],),
    times: Sequence[tuple[float, ...]] = (),
) -> list[dict[str, Any]]:
    """Rows of teacher or student; the slow teacher has a tenth of the samples."""
    rows = evaluate.evaluate_run(
        workdir / variant,
        steps=(steps,),
        guidance=guidance,
        times=times,
        evaluators=(evaluator,),
        num_samples=num_samples // 10 if variant == "teacher" else num_samples,
        rerun=True,
    )
    return list(rows)


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


def shortest(work: Callable[[], Any], repeats: int) -> float:
    """Seconds of the fastest of some calls, after one that compiles."""
    work()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return min(times)


def speedup_text(
    loaded: Mapping[str, Loaded], batch: int, noun: str = "an image"
) -> str:
    """Two steps of the student against the teacher's many, at the same batch."""

    def seconds(variant: str, repeats: int, **settings: Any) -> float:
        generate = loaded[variant].generate
        return shortest(lambda: generate(batch, **settings), repeats)

    two = seconds("scd", 5, steps=2)
    many = seconds("teacher", 1, **TEACHER)
    sampler, steps = TEACHER["sampler"], TEACHER["steps"]
    evaluations = sampling.nfe(sampler, steps, TEACHER["guidance"])
    return (
        f"2 steps of sCD are {many / two:.1f} times faster than the teacher's "
        f"{steps} Heun steps, {evaluations} evaluations "
        f"({two / batch * 1e3:.2f} and {many / batch * 1e3:.1f} ms {noun}, batch "
        f"{batch})"
    )
