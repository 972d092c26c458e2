"""The commands: ``python -m scm_jax COMMAND --help``."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from scm_jax import compile_cache

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from scm_jax.training.peers import Peers

EXIT_PREEMPTED = 75  # EX_TEMPFAIL: saved, run the same command again

_COMMANDS: dict[str, tuple[Callable[[], int], str]] = {}


def command(name: str, summary: str) -> Callable[[Callable], Callable]:
    """Registers a command: a function that reads its flags and returns an exit code."""

    def register(fn: Callable) -> Callable:
        _COMMANDS[name] = (fn, summary)
        return fn

    return register


# --- Flags, by command ----------------------------------------------------------------


def _flag_config() -> None:
    from ml_collections import config_flags

    config_flags.DEFINE_config_file(
        "config", None, "Experiment file and argument: experiments/digits.py:scd"
    )


def _flag_workdir(default: str | None = None) -> None:
    flags.DEFINE_string("workdir", default, "Run directory; made if it is not there.")


def _flag_run() -> None:
    flags.DEFINE_string("run", None, "Run directory of a trained model.")
    flags.DEFINE_string("ema", "", "Which average; default is the run's own choice.")
    flags.DEFINE_integer("step", None, "Which checkpoint; default is the newest.")


def _flag_cluster() -> None:
    flags.DEFINE_enum(
        "distributed",
        "auto",
        ["auto", "off"],
        "auto: with the other processes that flags, SLURM, TPU or Kubernetes name; "
        "off: alone.",
    )
    flags.DEFINE_string("coordinator", None, "HOST:PORT where process 0 listens.")
    flags.DEFINE_integer("num_processes", None, "How many processes train together.")
    flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")
    flags.DEFINE_float(
        "join_timeout", 45.0, "Seconds in which the processes must meet."
    )


def _processes(config: ConfigDict) -> AbstractContextManager[Peers | None]:
    """The other processes of this training, while it lasts."""
    from scm_jax import config as config_lib
    from scm_jax import runs
    from scm_jax.training import cluster, multihost

    f = flags.FLAGS
    found = cluster.find_cluster(
        os.environ,
        distributed=f.distributed,
        coordinator=f.coordinator,
        num_processes=f.num_processes,
        process_id=f.process_id,
    )
    identity = {} if found is None else runs.identity(config_lib.to_dict(config))
    return multihost.joined(found, identity, _explain, timeout=f.join_timeout)


def _required(*names: str) -> None:
    missing = [name for name in names if not getattr(flags.FLAGS, name)]
    if missing:
        raise UsageError("missing " + ", ".join(f"--{name}=..." for name in missing))


class UsageError(Exception):
    """The command line is wrong; the message says how."""


# --- Commands -------------------------------------------------------------------------


@command("train", "Trains, or goes on where a run stopped.")
def _train() -> int:
    from scm_jax import training_run
    from scm_jax.training import multihost

    _flag_config()
    _flag_workdir()
    flags.DEFINE_bool(
        "dry_run", False, "Print config, accounts and sharding, and stop."
    )
    _flag_cluster()
    _parse()
    _required("config")
    config = flags.FLAGS.config
    if flags.FLAGS.dry_run:
        from scm_jax import describe

        print(describe.dry_run(config))
        return 0
    _required("workdir")
    compile_cache.enable()
    workdir = flags.FLAGS.workdir
    with _processes(config) as peers:
        multihost.check_shared(peers, workdir)
        status = training_run.train_and_evaluate(config, workdir)
    return EXIT_PREEMPTED if status == "preempted" else 0


@command("sample", "Draws samples from a run into a PNG grid.")
def _sample() -> int:
    _flag_run()
    flags.DEFINE_integer("num", 64, "How many samples.", lower_bound=1)
    flags.DEFINE_integer("steps", None, "Sampler steps; default is the run's.")
    flags.DEFINE_integer("seed", 0, "Seed of the noise.")
    flags.DEFINE_integer("class", None, "Class of all samples; default: all in turn.")
    flags.DEFINE_float("guidance", None, "Guidance scale; default is the run's.")
    flags.DEFINE_string("sampler", None, "consistency, heun, ddim or 2m.")
    flags.DEFINE_string("out", "grid.png", "PNG grid, or .npy with the raw samples.")
    _parse()
    _required("run")
    from scm_jax import experiment, runs

    compile_cache.enable()
    f = flags.FLAGS
    loaded = experiment.load_generate(f.run, f.ema, f.step)
    started = time.perf_counter()
    x = loaded.generate(
        f.num,
        f.steps,
        f.seed,
        f["class"].value,
        sampler=f.sampler,
        guidance=f.guidance,
    )
    seconds = time.perf_counter() - started
    to_pixels = loaded.experiment.dataset.info.to_pixels
    samples = runs.Samples(x, to_pixels(x) if to_pixels else None)
    samples.save(f.out)
    print(f"{f.num} samples in {seconds:.2f} s, compilation included: {f.out}")
    return 0


@command("evaluate", "Measures a run; appends rows to its results.jsonl.")
def _evaluate() -> int:
    flags.DEFINE_string("run", None, "Run directory of a trained model.")
    flags.DEFINE_list(
        "ema", [""], "Averages or relative widths; default is the run's own choice."
    )
    flags.DEFINE_integer("step", None, "Which checkpoint; default is the newest.")
    flags.DEFINE_list("steps", None, "Sampler steps; default: the run's.")
    flags.DEFINE_list(
        "times", [], "Intermediate times: 1.1 for 2 steps, 1.1/0.6 for 3; several."
    )
    flags.DEFINE_list("guidance", [], "Guidance scales; default: the run's.")
    flags.DEFINE_list("metrics", None, "Evaluators; default: the run's.")
    flags.DEFINE_integer("num_samples", None, "Samples in a set; default: the metric's")
    flags.DEFINE_integer("num_seeds", None, "Sets of samples; default: the run's.")
    flags.DEFINE_integer("seed", None, "Seed of the first set.")
    flags.DEFINE_bool("rerun", False, "Measure again what results.jsonl has already.")
    flags.DEFINE_string("plot", None, "PNG of the metric against evaluations.")
    _parse()
    _required("run")
    from scm_jax import measure

    compile_cache.enable()
    f = flags.FLAGS
    rows = measure.evaluate_run(
        f.run,
        averages=f.ema,
        step=f.step,
        steps=_numbers("steps", int),
        times=[_number_tuple(text) for text in f.times],
        guidance=_numbers("guidance", float) or (),
        evaluators=None if f.metrics is None else tuple(f.metrics),
        rerun=f.rerun,
        num_samples=f.num_samples,
        num_seeds=f.num_seeds,
        seed=f.seed,
    )
    for row in rows:
        print(json.dumps(row), flush=True)
    if f.plot:
        from scm_jax import quality_plots

        quality_plots.plot_runs([f.run], f.plot)
        print(f"plot: {f.plot}", file=sys.stderr)
    return 0


def _numbers(flag: str, kind: type) -> tuple | None:
    """A list flag as numbers."""
    texts = flags.FLAGS[flag].value
    if texts is None:
        return None
    try:
        return tuple(kind(text) for text in texts)
    except ValueError as error:
        raise UsageError(f"--{flag}={','.join(texts)}: {error}") from error


def _number_tuple(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split("/"))
    except ValueError as error:
        raise UsageError(f"--times={text}: {error}") from error


@command("describe", "Parameters, multiply-adds, bytes and times of a config.")
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
    _parse()
    _required("config")
    f = flags.FLAGS
    if f.mesh is None and f.hardware is None:
        if f.format == "table" or f.efficiency is not None:
            raise UsageError(
                "--format=table and --efficiency need --mesh or --hardware"
            )
        from scm_jax import describe

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

    from scm_jax import accounts, cost_model

    spec = None if mesh is None else accounts.parse_mesh(mesh)
    # Before anything starts a backend: this process simulates its devices.
    accounts.simulate_devices(1 if spec is None else accounts.num_devices(spec))
    found = accounts.account(
        config,
        spec,
        hardware or accounts.DEFAULT_HARDWARE,
        cost_model.EFFICIENCY if efficiency is None else efficiency,
    )
    if as_json:
        return json.dumps(dataclasses.asdict(found), indent=1)
    return accounts.format_accounts(found)


@command("report", "Writes an HTML page on one or more runs.")
def _report() -> int:
    flags.DEFINE_list("runs", None, "Run directories, comma-separated.")
    flags.DEFINE_string("out", "report.html", "The page.")
    _parse()
    _required("runs")
    from scm_jax import demo

    demo.report_runs(flags.FLAGS.runs, flags.FLAGS.out)
    print(f"report: {flags.FLAGS.out}")
    return 0


@command("demo", "Teacher, sCD and sCT on handwritten digits: train, measure, show.")
def _demo() -> int:
    _flag_workdir("runs/demo")
    flags.DEFINE_bool("quick", False, "A few steps each: does everything work?")
    _parse()
    from scm_jax import demo

    compile_cache.enable()
    status = demo.run(Path(flags.FLAGS.workdir), quick=flags.FLAGS.quick)
    return EXIT_PREEMPTED if status == "preempted" else 0


@command("prepare", "Prepares a dataset of data/ on disk.")
def _prepare() -> int:
    flags.DEFINE_string("dataset", None, "Name of a folder of data/, or a path.")
    flags.DEFINE_string("root", None, "Where to; default is the user's cache.")
    _parse()
    _required("dataset")
    from scm_jax import datasets

    print(datasets.prepare(flags.FLAGS.dataset, flags.FLAGS.root))
    return 0


@command("import", "Makes a run directory of published EDM or EDM2 weights.")
def _import() -> int:
    _flag_config()
    _flag_workdir()
    flags.DEFINE_string("weights", None, "File: .pkl, .pt, .safetensors or .npz.")
    flags.DEFINE_string("key", "", "Entry of the file, such as ema; default: chosen.")
    flags.DEFINE_enum(
        "parameterization",
        "edm",
        ["edm", "trigflow"],
        "What the network was trained in.",
    )
    _parse()
    _required("config", "weights", "workdir")
    from scm_jax import weights

    f = flags.FLAGS
    found = weights.import_run(
        f.config,
        f.weights,
        f.workdir,
        key=f["key"].value,
        parameterization=f.parameterization,
    )
    print(json.dumps(found, indent=1))
    return 0


@command("export", "Writes a run's weights as a file of the EDM family.")
def _export() -> int:
    _flag_run()
    flags.DEFINE_string("out", None, "File: .safetensors, .npz or .pt.")
    _parse()
    _required("run", "out")
    from scm_jax import weights

    f = flags.FLAGS
    count = weights.export_run(f.run, f.out, ema=f.ema, step=f.step)
    print(f"{count} tensors: {f.out}")
    return 0


# --- Dispatch -------------------------------------------------------------------------


def _parse() -> None:
    """Reads the command's flags; ``--help`` prints them and leaves."""
    argv = _ARGV
    if any(a in ("--help", "-h", "-help") for a in argv[1:]):
        print(_COMMANDS[argv[0]][1] + "\n")
        print(_flag_help())
        raise SystemExit(0)
    try:
        rest = flags.FLAGS(["scm " + argv[0], *argv[1:]])
    except flags.Error as error:
        text = str(error)
        if "Traceback" in text:  # of an experiment file: its last line says it all
            text = text.strip().splitlines()[-1]
        raise UsageError(text) from error
    if len(rest) > 1:
        raise UsageError(
            f"unexpected argument {rest[1]!r}; flags look like --name=value"
        )


def _flag_help() -> str:
    lines = []
    for name in sorted(flags.FLAGS):
        flag = flags.FLAGS[name]
        if getattr(flag, "help", None) and name in _own_flags():
            default = "" if flag.default in (None, "", False) else f" [{flag.default}]"
            lines.append(f"  --{name}  {flag.help}{default}")
    return "\n".join(lines)


def _own_flags() -> set[str]:
    return {f.name for f in flags.FLAGS.flags_by_module_dict().get(__name__, [])} | {
        "config"
    }


_ARGV: list[str] = []


def usage() -> str:
    """The commands, a line each."""
    lines = [f"  {name:<10}{summary}" for name, (_, summary) in _COMMANDS.items()]
    return (
        "scm COMMAND [--flag=value ...]; COMMAND --help lists its flags\n"
        + "\n".join(lines)
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    global _ARGV
    _ARGV = list(sys.argv[1:] if argv is None else argv)
    if not _ARGV or _ARGV[0] in ("--help", "-h", "help"):
        print(usage())
        return 0 if _ARGV else 2
    from scm_jax.types import lookup

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    try:
        run, _ = lookup(_COMMANDS, _ARGV[0], "command")
        return run()
    except UsageError as error:
        print(f"scm {_ARGV[0]}: {error}", file=sys.stderr)
        return 2
    except _expected_errors() as error:
        print(_explain(error), file=sys.stderr)
        return 1


def _explain(error: BaseException) -> str:
    """What to print: the message alone where the user can mend it."""
    if isinstance(error, _expected_errors()):
        return f"scm {_ARGV[0]}: {error}"
    return "".join(traceback.format_exception(error))


def _expected_errors() -> tuple[type[Exception], ...]:
    """What a user can cause and mend: shown as a message, without a traceback."""
    errors: list[type[Exception]] = [ValueError, FileNotFoundError, AttributeError]
    if "scm_jax.training.loop" in sys.modules:
        from scm_jax.training import checkpoint, loop

        errors += [loop.NonFiniteError, checkpoint.CheckpointError]
    if "scm_jax.training.peers" in sys.modules:
        from scm_jax.training import peers

        errors.append(peers.PeerError)
    return tuple(errors)
