"""``scm demo``: teacher, sCD, sCT, samples, table and report with one command."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from scm_jax import datasets
from scm_jax.commands.report import GRID_SAMPLES
from scm_jax.files import shipped
from scm_jax.runs import sample, train
from scm_jax.runs.directory import report
from scm_jax.runs.directory.media import image_grid
from scm_jax.runs.sample import Loaded
from scm_jax.sweeps.plan.sweep_file import load_module
from scm_jax.training import loop

COLUMNS = (
    *("method", "steps", "nfe", "frechet_distance", "frechet_floor"),
    *("precision", "recall", "class_accuracy", "seconds_per_image"),
)
VARIANTS = ("teacher", "scd", "sct")
SPEED_BATCH = 512


def demo_configs(workdir: Path, quick: bool) -> dict[str, ConfigDict]:
    """The configs of ``experiments/digits.py``, with the students' teacher here."""
    module = load_module(str(shipped.folder("experiments") / "digits.py"))
    configs = {}
    for variant in VARIANTS:
        config = module.get_config(variant + (",quick" if quick else ""))
        with config.unlocked():
            if variant != "teacher":
                config.init.run = str(workdir / "teacher")
            if variant == "scd":
                config.teacher.run = str(workdir / "teacher")
            config.eval.evaluators = ("digits",)
        configs[variant] = config
    return configs


def run(workdir: Path, *, quick: bool = False) -> str:
    """Trains, measures and shows everything; goes on where an earlier call stopped.

    Writes ``teacher/``, ``scd/``, ``sct/``, ``results.json`` and ``report.html``.

    Returns:
      ``done``, or ``preempted`` after a signal.
    """
    started = time.monotonic()
    say(f"dataset: {datasets.prepare('digits')}")
    configs = demo_configs(workdir, quick)
    for n, (variant, config) in enumerate(configs.items(), 1):
        say(f"\n[{n}/4] {_TITLES[variant]}")
        status = train.train_and_evaluate(config, workdir / variant)
        if status != loop.DONE:
            return status
    say("\n[4/4] sampling speed, table, report")
    loaded = {v: sample.load_generate(workdir / v) for v in VARIANTS}
    rows = collect(workdir, loaded)
    (workdir / "results.json").write_text(json.dumps(rows, indent=1) + "\n")
    write_report(workdir, loaded, rows)
    print("\n" + report.format_table(rows, COLUMNS))
    print(
        "\nfrechet_distance: to all real digits, in the features of a frozen "
        "classifier; frechet_floor: between two random halves of them."
    )
    print(f"{speedup_text(rows)}\n")
    print(f"table:  {workdir / 'results.json'}")
    print(f"report: {workdir / 'report.html'}")
    print(f"runs:   {', '.join(str(workdir / v) for v in VARIANTS)}")
    print(f"time:   {(time.monotonic() - started) / 60:.1f} minutes")
    return loop.DONE


_TITLES = {
    "teacher": "teacher: TrigFlow diffusion, measured with 18 Heun steps (NFE 35)",
    "scd": "sCD: consistency distillation of the teacher",
    "sct": "sCT: consistency training without a teacher's velocity",
}


def say(text: str) -> None:
    """Prints on the error stream, apart from the table."""
    print(text, file=sys.stderr, flush=True)


def collect(workdir: Path, loaded: dict[str, Loaded]) -> list[dict[str, Any]]:
    """The rows of all three runs, with the measured time per image."""
    timed = []
    for variant in VARIANTS:
        for row in sample.load_run(workdir / variant).summary["results"]:
            generate = loaded[variant].generate
            generate(SPEED_BATCH, row["steps"])  # compiles
            timed.append((row, generate))
    # The best of five calls; all in turn, so that they see the same machine.
    best = [np.inf] * len(timed)
    for _ in range(5):
        for i, (row, generate) in enumerate(timed):
            begin = time.perf_counter()
            generate(SPEED_BATCH, row["steps"])
            best[i] = min(best[i], time.perf_counter() - begin)
    rows = [
        {**row, "seconds_per_image": seconds / SPEED_BATCH}
        for (row, _), seconds in zip(timed, best, strict=True)
    ]
    return [{name: row[name] for name in COLUMNS} for row in rows]


def speedup_text(rows: Sequence[dict[str, Any]]) -> str:
    """How much faster two steps are than the teacher, at the same batch."""
    teacher = next(row for row in rows if row["method"] == "teacher")
    two = next(row for row in rows if row["method"] == "scd" and row["steps"] == 2)
    ratio = teacher["seconds_per_image"] / two["seconds_per_image"]
    return (
        f"2 steps of sCD are {ratio:.1f} times faster than the teacher's "
        f"{teacher['nfe']} evaluations (same network, batch {SPEED_BATCH})"
    )


def write_report(
    workdir: Path, loaded: dict[str, Loaded], rows: list[dict[str, Any]]
) -> None:
    """``report.html`` of the demo."""
    grids = {}
    for row in rows:
        generate = loaded[row["method"]].generate
        # The batch that was timed: its program is compiled.
        _, pixels = generate(SPEED_BATCH, row["steps"], 0, pixels=True)
        name = f"{row['method']}, NFE {row['nfe']}"
        grids[name] = image_grid(pixels[:GRID_SAMPLES], columns=10)
    dataset = loaded["scd"].experiment.dataset
    assert dataset.info.to_pixels is not None
    real, labels = dataset.arrays()
    by_class = [np.flatnonzero(labels == k)[: GRID_SAMPLES // 10] for k in range(10)]
    pixels = dataset.info.to_pixels(real[np.transpose(by_class).ravel()])
    grids = {"real digits": image_grid(pixels, columns=10), **grids}
    report.write_report(
        workdir / "report.html",
        title="Two-step digits: teacher, sCD and sCT",
        runs=[sample.load_run(workdir / v) for v in VARIANTS],
        results=[("", rows)],
        grids=grids,
        commands=_commands(workdir),
        intro=(
            "A TrigFlow diffusion teacher, its distillation (sCD) and a consistency "
            "model trained without the teacher's velocity (sCT), on the 1,797 "
            f"handwritten digits of scikit-learn. {speedup_text(rows)}. Samples in one "
            "column share their class; samples at one place share their first noise."
        ),
    )


def _commands(workdir: Path) -> list[tuple[str, str]]:
    teacher, scd, sct = (workdir / variant for variant in VARIANTS)
    digits, init = (
        "train --config=experiments/digits.py",
        f"--config.init.run={teacher}",
    )
    commands = {
        "Train the teacher": f"{digits}:teacher --workdir={teacher}",
        "Distill it (sCD)": f"{digits}:scd --config.teacher.run={teacher} {init} "
        f"--workdir={scd}",
        "Train without its velocity (sCT)": f"{digits}:sct {init} --workdir={sct}",
        "Look at samples": f"sample --run={scd} --steps=2 --out={workdir / 'grid.png'}",
        "Measure again, three sets of samples": f"evaluate --run={scd} --steps=1,2,4 "
        "--num_seeds=3",
        "Everything": f"demo --workdir={workdir}",
    }
    return [(what, f"python -m scm_jax {line}") for what, line in commands.items()]
