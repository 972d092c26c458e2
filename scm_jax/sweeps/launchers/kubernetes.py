"""Writes Kubernetes manifests for runs, and says which command applies them.

``kubectl`` is never called: what the cluster does with the manifests is asked there,
and the status of the runs is read from their directories.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from scm_jax.files.atomic import write_atomically
from scm_jax.files.optional import require
from scm_jax.sweeps.launchers import manifests
from scm_jax.sweeps.launchers.manifests import Manifest
from scm_jax.sweeps.launchers.options import Options, in_order
from scm_jax.sweeps.launchers.profiles import Profile, load_profile
from scm_jax.sweeps.plan.planned import PlannedRun
from scm_jax.sweeps.state import journal
from scm_jax.sweeps.state.states import UNKNOWN

NAME = "k8s"
FOLDER = "submissions"


def submit(
    root: str | os.PathLike, runs: Sequence[PlannedRun], options: Options
) -> int:
    """Writes ``ROOT/submissions/ID.yaml`` and prints the command that applies it.

    The runs are recorded as sent, so that nobody sends them twice; ``cancel`` takes
    that back.

    Raises:
      ValueError: a setting that cannot work; nothing has been written then.
    """
    root = Path(root).absolute()
    profile = load_profile(options.profile)
    _check(root, runs, profile)
    folder = root / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    with journal.sending(root, NAME, [run.id for run in runs]) as batch:
        jobs = _objects(root, runs, options, profile, batch.submission)
        for manifest, members in jobs:
            if manifest["kind"] == "Job":
                lines = "".join(f"{root / run.id}\n" for run in members)
                name = manifest["metadata"]["name"]
                write_atomically(folder / f"{name}.list", lines)
        path = folder / f"{batch.submission}.yaml"
        write_atomically(path, _text([manifest for manifest, _ in jobs]))
        batch.sent(
            {run.id: _job(manifest) for manifest, members in jobs for run in members}
        )
    print(f"{len(jobs)} manifests for {len(runs)} runs; now send them:")
    print(f"  kubectl apply --filename={shlex.quote(str(path))}")
    return 0


def script(
    root: str | os.PathLike, runs: Sequence[PlannedRun], options: Options
) -> str:
    """The manifests of ``submit``; SUBMISSION stands for the id to come."""
    root = Path(root).absolute()
    profile = load_profile(options.profile)
    _check(root, runs, profile)
    jobs = _objects(root, runs, options, profile, "SUBMISSION")
    return _text([manifest for manifest, _ in jobs])


def queue(root: str | os.PathLike) -> Mapping[str, str]:
    """UNKNOWN for what was sent: the cluster is not asked."""
    return dict.fromkeys(journal.sent_jobs(root, NAME), UNKNOWN)


def cancel(root: str | os.PathLike, run_ids: Sequence[str]) -> Sequence[str]:
    """Records the runs as taken back, and prints the command that deletes their jobs.

    A Job has several runs: deleting it takes all of them back.
    """
    jobs = {
        run_id: job
        for run_id, job in journal.sent_jobs(root, NAME).items()
        if run_id in set(run_ids)
    }
    if jobs:
        print("delete these in the cluster; pods get SIGTERM and save:")
        for job in sorted(set(jobs.values())):
            namespace, _, name = job.partition("/")
            print(f"  kubectl delete --namespace={namespace} {name}")
    journal.record_cancelled(root, NAME, jobs)
    return list(jobs)


def _check(root: Path, runs: Sequence[PlannedRun], profile: Profile) -> None:
    site = profile.kubernetes
    for key in ("image", "claim", "mount"):
        if not getattr(site, key):
            raise ValueError(f"kubernetes.{key} is missing in the profile")
    if not root.is_relative_to(site.mount):
        raise ValueError(
            f"{root} does not lie in kubernetes.mount = {site.mount!r}: pods could not "
            "read it"
        )
    for run in runs:
        need = profile.resources_of(run.resources)
        if need.tasks > 1:
            raise ValueError(
                f"resources {run.resources!r}: tasks = {need.tasks}, but a pod runs "
                "one process with all GPUs of its host: must be 1"
            )


def _objects(
    root: Path,
    runs: Sequence[PlannedRun],
    options: Options,
    profile: Profile,
    submission: str,
) -> list[tuple[Manifest, list[PlannedRun]]]:
    """Manifests with their runs; those that others wait for come first.

    Runs that wait are in other Jobs than those they wait for: were they in one, waiting
    pods could take all its places, and a pod that they wait for would find none.
    """
    # (level, resources, run id or "" for runs that share a Job) -> runs
    groups: dict[tuple[int, str, str], list[PlannedRun]] = {}
    levels: dict[str, int] = {}
    for run in in_order(runs):
        levels[run.id] = 1 + max((levels.get(d, 0) for d in run.depends_on), default=0)
        alone = profile.resources_of(run.resources).nodes > 1
        key = (levels[run.id], run.resources, run.id if alone else "")
        groups.setdefault(key, []).append(run)
    objects = []
    for level, resources, run_id in sorted(groups):
        members = groups[level, resources, run_id]
        site, need = profile.kubernetes, profile.resources_of(resources)
        if run_id:
            name = manifests.object_name("scm", submission[-4:], run_id)
            made = manifests.job_set(members[0], root / run_id, name, site, need)
        else:
            kind = f"{resources or 'default'}-{level}"
            name = manifests.object_name("scm", submission, kind)
            made = manifests.job(
                name,
                members,
                str(root / FOLDER / f"{name}.list"),
                site,
                need,
                options.max_parallel,
            )
        objects.append((made, members))
    return objects


def _job(manifest: Manifest) -> str:
    """NAMESPACE/KIND/NAME, as the journal has it."""
    metadata = manifest["metadata"]
    kind = manifest["kind"].lower()
    return f"{metadata['namespace']}/{kind}/{metadata['name']}"


def _text(objects: Sequence[Manifest]) -> str:
    yaml = require("yaml", "writing a manifest", "PyYAML")
    return yaml.safe_dump_all(objects, sort_keys=False, explicit_start=True)
