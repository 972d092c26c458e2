"""The commands: ``python -m scm_jax COMMAND --help``."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from scm_jax.commands import cli, compile_cache, data, process_flags, sweep
from scm_jax.files import user_paths
from scm_jax.types import EXIT_PREEMPTED, MAX_SEED, real_number, whole_number

if TYPE_CHECKING:
    from ml_collections import ConfigDict

# Imported for what they register.
__all__ = ["data", "main", "sweep"]


# --- Flags, by command ----------------------------------------------------------------


def _flag_config() -> None:
    cli.config_file("config", "Experiment file and argument: experiments/digits.py:scd")


def _flag_workdir(default: str | None = None) -> None:
    cli.path("workdir", default, "Run directory; made if it is not there.")


def _flag_run() -> None:
    cli.path("run", None, "Run directory of a trained model.")
    flags.DEFINE_string("ema", "", "Name of the EMA; default is the run's own choice.")
    cli.integer("step", None, "Which checkpoint; default is the newest.", lower_bound=0)


# --- Commands -------------------------------------------------------------------------


@cli.command("train", "Trains, or goes on where a run stopped.")
def _train() -> int:
    from scm_jax.runs import train
    from scm_jax.training.processes import multihost

    _flag_config()
    _flag_workdir()
    flags.DEFINE_bool(
        "dry_run", False, "Print config, cost estimate and sharding, and stop."
    )
    process_flags.define()
    cli.parse()
    cli.required("config")
    config = flags.FLAGS.config
    if flags.FLAGS.dry_run:
        from scm_jax.runs.estimate import describe

        print(describe.dry_run(config))
        return 0
    cli.required("workdir")
    compile_cache.enable()
    workdir = flags.FLAGS.workdir
    with process_flags.processes(config) as peers:
        multihost.check_shared(peers, workdir)
        status = train.train_and_evaluate(config, workdir)
    return EXIT_PREEMPTED if status == "preempted" else 0


@cli.command("sample", "Draws samples from a run into a PNG grid.")
def _sample() -> int:
    _flag_run()
    cli.integer("num", 64, "How many samples.", lower_bound=1)
    cli.integer("steps", None, "Sampler steps; default is the run's.", lower_bound=1)
    cli.integer("seed", 0, "Seed of the noise.", 0, MAX_SEED)
    cli.integer("class", None, "Class of all samples; default: all in turn.")
    flags.DEFINE_float("guidance", None, "Guidance scale; default is the run's.")
    flags.DEFINE_string("sampler", None, "consistency, heun, ddim or 2m.")
    cli.path("vae", None, "Weights that decode latents, or none to show the latents.")
    cli.path("out", "grid.png", "PNG grid, or .npy with the raw samples.")
    cli.parse()
    cli.required("run")
    from scm_jax.runs import sample
    from scm_jax.runs.directory import reading

    compile_cache.enable()
    f = flags.FLAGS
    reading.samples_file(f.out)  # before the work, not after it
    loaded = sample.load_generate(f.run, f.ema, f.step, f.vae)
    started = time.perf_counter()
    x, pixels = loaded.generate(
        f.num,
        f.steps,
        f.seed,
        f["class"].value,
        sampler=f.sampler,
        guidance=f.guidance,
        pixels=True,
    )
    seconds = time.perf_counter() - started
    reading.Samples(x, pixels).save(f.out)
    print(f"{f.num} samples in {seconds:.2f} s, compilation included: {f.out}")
    return 0


@cli.command("evaluate", "Measures a run; appends rows to its results.jsonl.")
def _evaluate() -> int:
    cli.path("run", None, "Run directory of a trained model.")
    flags.DEFINE_list(
        "ema", [""], "EMAs, by name or relative width; default is the run's own choice."
    )
    cli.integer("step", None, "Which checkpoint; default is the newest.", lower_bound=0)
    flags.DEFINE_list("steps", None, "Sampler steps; default: the run's.")
    flags.DEFINE_list(
        "times", [], "Intermediate times: 1.1 for 2 steps, 1.1/0.6 for 3; several."
    )
    flags.DEFINE_list("guidance", [], "Guidance scales; default: the run's.")
    flags.DEFINE_list("metrics", None, "Evaluators; default: the run's.")
    cli.path(
        "reference",
        None,
        "Reference statistics; default: the run's, or the data's own.",
    )
    cli.integer(
        "num_samples", None, "Samples in a set; default: the metric's.", lower_bound=0
    )
    cli.integer(
        "num_seeds", None, "Sets of samples; default: the run's.", lower_bound=1
    )
    cli.integer("seed", None, "Seed of the first set.", 0, MAX_SEED)
    flags.DEFINE_bool("rerun", False, "Measure again what results.jsonl has already.")
    cli.path("plot", None, "PNG of these rows against evaluations.")
    cli.parse()
    cli.required("run")
    from scm_jax.runs import evaluate

    compile_cache.enable()
    f = flags.FLAGS
    if f.plot:
        user_paths.writable(f.plot)
    rows = evaluate.evaluate_run(
        f.run,
        averages=f.ema,
        step=f.step,
        steps=_numbers("steps", whole_number),
        times=[_number_tuple(text) for text in f.times],
        guidance=_numbers("guidance", real_number) or (),
        evaluators=None if f.metrics is None else tuple(f.metrics),
        rerun=f.rerun,
        reference=f.reference,
        num_samples=f.num_samples,
        num_seeds=f.num_seeds,
        seed=f.seed,
    )
    measured = []
    for row in rows:
        print(json.dumps(row), flush=True)
        measured.append(row)
    if f.plot:
        from scm_jax.analysis.plots import quality
        from scm_jax.runs.directory.layout import RunDir

        dataset = RunDir(f.run).read_config()["dataset"]["name"]
        quality.plot_rows(measured, f.plot, dataset=dataset)
        print(f"plot: {f.plot}", file=sys.stderr)
    return 0


def _numbers(flag: str, kind: Callable[[str], float]) -> tuple | None:
    """A list flag as numbers."""
    texts = flags.FLAGS[flag].value
    if texts is None:
        return None
    try:
        return tuple(kind(text) for text in texts)
    except ValueError as error:
        raise cli.UsageError(f"--{flag}={','.join(texts)}: {error}") from error


def _number_tuple(text: str) -> tuple[float, ...]:
    try:
        return tuple(real_number(part) for part in text.split("/"))
    except ValueError as error:
        raise cli.UsageError(f"--times={text}: {error}") from error


@cli.command("describe", "Parameters, multiply-adds, bytes and times of a config.")
def _describe() -> int:
    _flag_config()
    flags.DEFINE_string(
        "mesh", None, "Compile a step for this mesh, such as data=2,fsdp=4."
    )
    flags.DEFINE_string("hardware", None, "Accelerator to cost it on, such as h100.")
    flags.DEFINE_float("efficiency", None, "Share of the peak that products reach.")
    flags.DEFINE_enum(
        "format", None, ["table", "json"], "Default: table for a mesh or hardware."
    )
    cli.parse()
    cli.required("config")
    f = flags.FLAGS
    if f.mesh is None and f.hardware is None:
        if f.format == "table" or f.efficiency is not None:
            raise cli.UsageError(
                "--format=table and --efficiency need --mesh or --hardware"
            )
        from scm_jax.runs.estimate import describe

        print(json.dumps(describe.describe(f.config), indent=1))
        return 0
    print(_accounts(f.config, f.mesh, f.hardware, f.efficiency, f.format == "json"))
    return 0


def _accounts(
    config: ConfigDict,
    mesh: str | None,
    hardware: str | None,
    efficiency: float | None,
    as_json: bool,
) -> str:
    import dataclasses

    from scm_jax.cost import roofline
    from scm_jax.runs.estimate import accounts, accounts_table

    spec = None if mesh is None else accounts.parse_mesh(mesh)
    # Before anything starts a backend: this process simulates its devices.
    accounts.simulate_devices(1 if spec is None else accounts.num_devices(spec))
    found = accounts.account(
        config,
        spec,
        hardware or accounts.DEFAULT_HARDWARE,
        roofline.EFFICIENCY if efficiency is None else efficiency,
    )
    if as_json:
        return json.dumps(dataclasses.asdict(found), indent=1)
    return accounts_table.format_accounts(found)


@cli.command("report", "Writes an HTML page on one or more runs.")
def _report() -> int:
    cli.directories("runs", None, "Run directories, comma-separated.")
    cli.path("out", "report.html", "The page.")
    cli.parse()
    cli.required("runs")
    from scm_jax.commands import report

    user_paths.writable(flags.FLAGS.out)
    report.report_runs(flags.FLAGS.runs, flags.FLAGS.out)
    print(f"report: {flags.FLAGS.out}")
    return 0


@cli.command(
    "demo", "Teacher, sCD and sCT on handwritten digits: train, measure, show."
)
def _demo() -> int:
    _flag_workdir("runs/demo")
    flags.DEFINE_bool("quick", False, "A few steps each: does everything work?")
    cli.parse()
    from scm_jax.commands import demo

    compile_cache.enable()
    status = demo.run(Path(flags.FLAGS.workdir), quick=flags.FLAGS.quick)
    return EXIT_PREEMPTED if status == "preempted" else 0


@cli.command("import", "Makes a run directory of published EDM or EDM2 weights.")
def _import() -> int:
    _flag_config()
    _flag_workdir()
    cli.path("weights", None, "File: .pkl, .pt, .safetensors or .npz.")
    flags.DEFINE_string("key", "", "Entry of the file, such as ema; default: chosen.")
    flags.DEFINE_enum(
        "parameterization",
        "edm",
        ["edm", "trigflow"],
        "What the network was trained in.",
    )
    cli.parse()
    cli.required("config", "weights", "workdir")
    from scm_jax.runs import transfer

    f = flags.FLAGS
    found = transfer.import_run(
        f.config,
        f.weights,
        f.workdir,
        key=f["key"].value or "",
        parameterization=f.parameterization,
    )
    print(json.dumps(found, indent=1))
    return 0


@cli.command("export", "Writes a run's weights as a file of the EDM family.")
def _export() -> int:
    _flag_run()
    cli.path("out", None, "File: .safetensors or .npz.")
    cli.parse()
    cli.required("run", "out")
    from scm_jax.runs import transfer

    f = flags.FLAGS
    user_paths.writable(f.out)
    count = transfer.export_run(f.run, f.out, ema=f.ema, step=f.step)
    print(f"{count} tensors: {f.out}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    return cli.run(argv)
