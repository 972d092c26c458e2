"""The commands: ``python -m scm_jax COMMAND --help``."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import flags

from scm_jax.commands import allocator, cli, compile_cache, data, sweep
from scm_jax.files import user_paths
from scm_jax.files.user_paths import real_number, whole_number
from scm_jax.types import EXIT_PREEMPTED, MAX_SEED

# These modules register their commands.
__all__ = ["data", "main", "sweep"]


def _flag_config() -> None:
    cli.config_file("config", "Experiment file and argument: experiments/digits.py:scd")


def _flag_workdir(default: str | None = None) -> None:
    cli.path("workdir", default, "Run directory; made if it does not exist.")


def _flag_run() -> None:
    cli.path("run", None, "Run directory of a trained model.")
    cli.integer("step", None, "Step of the checkpoint; default: the newest.", 0)


def _flag_ema() -> None:
    flags.DEFINE_string("ema", "", "Name of the EMA; default: the run's own choice.")


@cli.command("train", "Trains, or resumes a run where it stopped.")
def _train() -> int:
    from scm_jax.runs import train
    from scm_jax.training.processes import multihost

    _flag_config()
    _flag_workdir()
    flags.DEFINE_bool("dry_run", False, "Only print config, cost estimate, sharding.")
    cli.process_flags()
    f = cli.parse("config")
    if f.dry_run:
        from scm_jax.runs.estimate import describe

        print(describe.dry_run(f.config))
        return 0
    cli.required("workdir")
    compile_cache.enable()
    with cli.processes(f.config) as peers:
        multihost.check_shared(peers, f.workdir)
        status = train.train_and_evaluate(f.config, f.workdir)
    return EXIT_PREEMPTED if status == "preempted" else 0


@cli.command("sample", "Draws samples from a run into a PNG grid.")
def _sample() -> int:
    _flag_run()
    _flag_ema()
    cli.integer(
        "num", None, "Number of samples; default: 64, or 16 of prompts.", lower_bound=1
    )
    flags.DEFINE_string("prompt", None, "Caption of all samples, for text to image.")
    cli.path("prompts", None, "Text file with a prompt a line, or data encode-text's.")
    flags.DEFINE_enum(
        "too_long", "refuse", ["refuse", "cut"], "Prompts longer than the context."
    )
    cli.integer("steps", None, "Sampler steps; default: the run's.", lower_bound=1)
    cli.integer("seed", 0, "Seed of the noise.", 0, MAX_SEED)
    cli.integer("class", None, "Class of all samples; default: all in turn.")
    flags.DEFINE_float("guidance", None, "Guidance scale; default: the run's.")
    flags.DEFINE_string("sampler", None, "consistency, map, heun, ddim or 2m.")
    flags.DEFINE_float("gamma", None, "Share of new noise in each step of map.")
    cli.path("vae", None, "Weights that decode latents; none: show the latents.")
    cli.integer("frames", None, "Length of clips; default: the training's.", 1)
    help = "Image or clip that all clips begin with: .png, .gif, .npy, .mp4, ..."
    cli.path("first", None, help)
    help = ".png grid, .npy; clips: .gif, .webp, .apng, .mp4; sound: .wav."
    cli.path("out", "grid.png", help)
    f = cli.parse("run")
    from scm_jax.runs import conditions, sample
    from scm_jax.runs.directory import media, reading

    compile_cache.enable()
    reading.samples_file(f.out)  # before the work, not after it
    loaded = sample.load_generate(f.run, f.ema, f.step, f.vae, f.frames or 0)
    prompts, num = None, f.num or 64
    text = loaded.generate.info.text
    if f.prompt is None and f.prompts and os.path.isdir(f.prompts):
        prompts = conditions.read_states(f.prompts, text)
    elif f.prompt is not None or f.prompts:
        texts = conditions.read_prompts(f.prompt, f.prompts)
        prompts = conditions.from_texts(text, texts, too_long=f.too_long)
    if prompts is not None:
        num = f.num or max(16, len(prompts.texts))
    started = time.perf_counter()
    options = {"sampler": f.sampler, "guidance": f.guidance, "gamma": f.gamma}
    if f.first:
        channels = loaded.generate.info.sample_shape[-1]
        options["first"] = media.read_frames(f.first, channels)
    label = f["class"].value
    drawn = sample.draw(loaded, num, f.steps, f.seed, label, prompts, **options)
    seconds = time.perf_counter() - started
    drawn.save(f.out)
    print(f"{num} samples in {seconds:.2f} s, compilation included: {f.out}")
    return 0


@cli.command("evaluate", "Measures a run; appends rows to its results.jsonl.")
def _evaluate() -> int:
    _flag_run()
    flags.DEFINE_list(
        "ema", [""], "EMAs, by name or relative width; default: the run's own choice."
    )
    flags.DEFINE_list("steps", None, "Sampler steps; default: the run's.")
    flags.DEFINE_list(
        "times", [], "Lists of intermediate times: 1.1 for 2 steps, 1.1/0.6 for 3."
    )
    flags.DEFINE_list("guidance", [], "Guidance scales; default: the run's.")
    flags.DEFINE_list(
        "sampler", [], "Samplers, as consistency,map; default: the run's."
    )
    flags.DEFINE_float("gamma", None, "Share of new noise in each step of map.")
    flags.DEFINE_list("metrics", None, "Evaluators; default: the run's.")
    cli.path("reference", None, "Reference statistics; default: the run's or data's.")
    cli.integer("num_samples", None, "Samples in a set; default: the metric's.", 0)
    cli.integer("num_seeds", None, "Sets of samples; default: the run's.", 1)
    cli.integer("seed", None, "Seed of the first set.", 0, MAX_SEED)
    flags.DEFINE_bool("rerun", False, "Measure again what results.jsonl has already.")
    cli.path("plot", None, "PNG of these rows over network evaluations.")
    f = cli.parse("run")
    from scm_jax.runs import evaluate

    compile_cache.enable()
    if f.plot:
        user_paths.writable(f.plot)
    rows = evaluate.evaluate_run(
        f.run,
        averages=f.ema,
        step=f.step,
        steps=None if f.steps is None else _numbers("steps", f.steps, whole_number),
        times=[_numbers("times", t.split("/"), real_number, "/") for t in f.times],
        guidance=_numbers("guidance", f.guidance, real_number),
        samplers=tuple(f.sampler),
        gamma=f.gamma,
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


def _numbers(
    flag: str, texts: list[str], kind: Callable[[str], float], separator: str = ","
) -> tuple:
    try:
        return tuple(kind(text) for text in texts)
    except ValueError as error:
        raise cli.UsageError(f"--{flag}={separator.join(texts)}: {error}") from error


@cli.command("describe", "Parameters, multiply-adds, bytes and times of a config.")
def _describe() -> int:
    _flag_config()
    flags.DEFINE_string("mesh", None, "Mesh to compile for, such as data=2,fsdp=4.")
    flags.DEFINE_string("hardware", None, "Accelerator, such as h100.")
    flags.DEFINE_float("efficiency", None, "Share of the peak that products reach.")
    flags.DEFINE_enum(
        "format", None, ["table", "json"], "Default: table for a mesh or hardware."
    )
    f = cli.parse("config")
    if f.mesh is None and f.hardware is None:
        if f.format == "table" or f.efficiency is not None:
            raise cli.UsageError(
                "--format=table and --efficiency need --mesh or --hardware"
            )
        from scm_jax.runs.estimate import describe

        print(json.dumps(describe.describe(f.config), indent=1))
        return 0
    print(_accounts(f))
    return 0


def _accounts(f: flags.FlagValues) -> str:
    from scm_jax.cost import roofline
    from scm_jax.runs.estimate import accounts, describe

    spec = None if f.mesh is None else accounts.parse_mesh(f.mesh)
    # Before anything starts a backend: this process simulates its devices.
    accounts.simulate_devices(1 if spec is None else math.prod(spec.sizes))
    efficiency = roofline.EFFICIENCY if f.efficiency is None else f.efficiency
    hardware = f.hardware or accounts.DEFAULT_HARDWARE
    found = accounts.account(f.config, spec, hardware, efficiency)
    if f.format == "json":
        return json.dumps(dataclasses.asdict(found), indent=1)
    return describe.format_accounts(found)


@cli.command("report", "Writes an HTML page on one or more runs.")
def _report() -> int:
    cli.directories("runs", None, "Run directories, comma-separated.")
    cli.path("out", "report.html", "The page.")
    f = cli.parse("runs")
    from scm_jax.commands import report

    user_paths.writable(f.out)
    report.report_runs(f.runs, f.out)
    print(f"report: {f.out}")
    return 0


@cli.command("demo", "The whole story in minutes: models, samples, table, report.")
def _demo() -> int:
    flags.DEFINE_enum(
        "name",
        "digits",
        ["digits", "text", "video", "sound"],
        "digits: trains teacher, sCD and sCT; text, video, sound: shipped models.",
    )
    _flag_workdir("")
    flags.DEFINE_bool("quick", False, "A few steps each, to see that all works.")
    text = "All but digits: train the shipped models again."
    flags.DEFINE_bool("train", False, text)
    f = cli.parse()
    compile_cache.enable()
    workdir = Path(f.workdir or {"digits": "runs/demo"}.get(f.name, f"runs/{f.name}"))
    if f.name == "digits":
        from scm_jax.commands import demo

        status = demo.run(workdir, quick=f.quick)
    else:
        from scm_jax.commands import shipped_models

        shown = importlib.import_module(f"scm_jax.commands.demo_{f.name}").DEMO
        how = {"quick": f.quick, "train_again": f.train}
        status = shipped_models.run(shown, workdir, **how)
    return EXIT_PREEMPTED if status == "preempted" else 0


@cli.command("import", "Makes a run directory of published weights.")
def _import() -> int:
    _flag_config()
    _flag_workdir()
    cli.path("weights", None, "File: .pkl, .pt, .safetensors or .npz.")
    flags.DEFINE_string("key", "", "Entry of the file, such as ema; default: chosen.")
    help = "That of the network, such as edm, dit or sit; default: by the file."
    flags.DEFINE_string("parameterization", None, help)
    f = cli.parse("config", "weights", "workdir")
    from scm_jax.runs import transfer

    options = {name: f[name].value or "" for name in ("key", "parameterization")}
    found = transfer.import_run(f.config, f.weights, f.workdir, **options)
    print(json.dumps(found, indent=1))
    return 0


@cli.command("export", "Writes a run's weights as a file under the published names.")
def _export() -> int:
    _flag_run()
    _flag_ema()
    cli.path("out", None, "File: .safetensors or .npz.")
    f = cli.parse("run", "out")
    from scm_jax.runs import transfer

    user_paths.writable(f.out)
    count = transfer.export_run(f.run, f.out, ema=f.ema, step=f.step)
    print(f"{count} tensors: {f.out}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    allocator.keep_freed_memory()
    return cli.run(argv)
