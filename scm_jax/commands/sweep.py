"""The commands ``sweep ...``: many runs from one file, on one machine or a cluster."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from scm_jax.commands import cli, compile_cache

if TYPE_CHECKING:
    from scm_jax.sweeps.launchers.options import Options
    from scm_jax.sweeps.plan.planned import PlannedRun


def _flag_root(default: str = "") -> None:
    cli.path("root", None, f"Directory of the sweep, with one per run{default}.")


def _flag_sweep() -> None:
    example = "experiments/sweeps/scale_dit.py:4"
    cli.path("sweep", None, f"Sweep file and argument: {example}")
    _flag_root("; default: runs/NAME")


def _flag_only() -> None:
    flags.DEFINE_list("only", [], "Ids of runs; default: all.")


def _flags_of_launching() -> None:
    flags.DEFINE_string("launcher", "local", "Where: local, slurm, k8s, print.")
    cli.path("profile", "", "File that describes the cluster.")
    cli.integer("max_parallel", 0, "Runs at once; 0: the launcher's choice.", 0)
    cli.integer(
        "devices_per_run",
        None,
        "Accelerators per run of the local launcher; 0: all runs share all of them.",
        lower_bound=0,
    )
    flags.DEFINE_bool("force", False, "Also runs that failed for good.")


def _options(f: flags.FlagValues) -> Options:
    from scm_jax.sweeps.launchers import options

    return options.Options(f.max_parallel, f.devices_per_run, f.profile)


def _planned(f: flags.FlagValues) -> tuple[str, list[PlannedRun]]:
    """The root, and the runs of ``--sweep``, all checked; nothing is written."""
    from scm_jax.sweeps.plan import resolve, sweep_file

    file = sweep_file.load_sweep(f.sweep)
    root = f.root or f"runs/{file.name}"
    return root, resolve.resolve(file, root)


@cli.command("sweep plan", "Checks and shows what a sweep would run; sends nothing.")
def _plan() -> int:
    _flag_sweep()
    _flags_of_launching()
    cli.directories(
        "measured", [], "Finished runs whose rates give the hours; default: the root's."
    )
    flags.DEFINE_bool("show_script", False, "Also print what would be sent.")
    flags.DEFINE_bool("json", False, "Print everything as JSON.")
    cli.integer("limit", 40, "Lines of runs; 0: all.", lower_bound=0)
    f = cli.parse("sweep")
    from scm_jax.sweeps import launchers, submissions
    from scm_jax.sweeps.plan import hours
    from scm_jax.sweeps.state import states

    launcher = launchers.get(f.launcher)
    root, runs = _planned(f)
    jobs = submissions.queue(root)
    found = {r.id: states.read_state(Path(root) / r.id, queue=jobs).state for r in runs}
    measured = hours.measured_runs(f.measured or [Path(root) / r.id for r in runs])
    if f.measured and not measured:
        raise cli.UsageError(
            f"--measured={','.join(f.measured)}: none of them is a finished run with "
            "logged rates"
        )
    rows = hours.plan_rows(runs, found, measured)
    if f.json:
        print(json.dumps(rows, indent=1))
    else:
        hours.print_plan(rows, root, measured, limit=f.limit or None)
    if f.show_script:
        send, _ = submissions.selection(root, runs, force=f.force)
        print(launcher.script(root, send, _options(f)))
    return 0


@cli.command("sweep submit", "Sends every run that is not done, running or queued.")
def _submit() -> int:
    _flag_sweep()
    _flags_of_launching()
    f = cli.parse("sweep")
    from scm_jax.sweeps import submissions

    root, runs = _planned(f)
    return submissions.submit(root, runs, f.launcher, _options(f), force=f.force)


@cli.command("sweep work", "Trains one run of a sweep, as launchers start it.")
def _work() -> int:
    cli.path("run", None, "Directory of the run.")
    flags.DEFINE_bool("wait", False, "Wait for the runs that it depends on.")
    flags.DEFINE_float(
        "heartbeat_seconds", 10.0, "Seconds between heartbeats.", lower_bound=0.01
    )
    cli.process_flags()
    f = cli.parse("run")
    from scm_jax.sweeps import worker

    compile_cache.enable()
    join = cli.processes
    return worker.work(f.run, f.heartbeat_seconds, wait=f.wait, processes=join)


@cli.command("sweep status", "Shows the status of every run of a sweep.")
def _status() -> int:
    _flag_root()
    flags.DEFINE_bool("watch", False, "Refresh until no run is running or queued.")
    flags.DEFINE_bool("json", False, "Print everything as JSON.")
    cli.integer("limit", None, "Lines of runs; 0: all [30, or the terminal's height].")
    f = cli.parse("root")
    from scm_jax.sweeps import status

    if f.json:
        if f.watch:
            raise cli.UsageError("--json and --watch exclude each other")
        print(status.to_json(status.gather(f.root)))
    elif f.watch:
        status.watch(f.root, f.limit or 0)
    else:
        status.show(f.root, status.DEFAULT_LIMIT if f.limit is None else f.limit)
    return 0


@cli.command("sweep resubmit", "Starts what is missing, stale, preempted or failed.")
def _resubmit() -> int:
    _flag_root()
    _flag_only()
    _flags_of_launching()
    f = cli.parse("root")
    from scm_jax.sweeps import submissions

    options = _options(f)
    return submissions.resubmit(f.root, f.launcher, options, only=f.only, force=f.force)


@cli.command("sweep cancel", "Cancels jobs; runs that are training save first.")
def _cancel() -> int:
    _flag_root()
    _flag_only()
    f = cli.parse("root")
    from scm_jax.sweeps import submissions

    cancelled = submissions.cancel(f.root, f.only)
    print("\n".join([*cancelled, f"{len(cancelled)} cancelled"]))
    return 0


@cli.command("sweep collect", "Compacts all runs into Parquet files, for analysis.")
def _collect() -> int:
    _flag_root()
    f = cli.parse("root")
    from scm_jax.analysis.tables.collect import collect

    try:
        print(collect(f.root))
    except OSError as error:
        print(f"scm sweep collect: {error}", file=sys.stderr)
        return 1
    return 0
