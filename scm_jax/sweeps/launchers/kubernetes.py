"""Writes Kubernetes manifests for runs, and says which command applies them.

``kubectl`` is never called: the cluster is asked with it what it does with the
manifests, and the status of the runs is read from their directories.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scm_jax.files.atomic import write_atomically
from scm_jax.files.optional import require
from scm_jax.sweeps.launchers.options import Options, Root, Runs, in_order, job_command
from scm_jax.sweeps.launchers.profiles import (
    Kubernetes,
    Profile,
    Resources,
    load_profile,
    seconds,
)
from scm_jax.sweeps.plan.planned import PlannedRun
from scm_jax.sweeps.state import journal
from scm_jax.sweeps.state.states import UNKNOWN
from scm_jax.types import EXIT_PREEMPTED

Manifest = dict[str, Any]

NAME = "k8s"
FOLDER = "submissions"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
_LONGEST_NAME = 48  # of 63: pods of a JobSet add "-workers-0-12345"


def submit(root: Root, runs: Runs, options: Options) -> int:
    """Writes ``ROOT/submissions/ID.yaml`` and prints the command that applies it.

    The runs are recorded as sent and are not sent again until ``cancel`` takes that
    back.

    Raises:
      ValueError: a setting that cannot work; nothing has been written then.
    """
    root, profile = _checked(root, runs, options)
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
        write_atomically(path, _text(jobs))
        batch.sent(
            {run.id: _job_name(made) for made, members in jobs for run in members}
        )
    print(f"{len(jobs)} manifests for {len(runs)} runs; now send them:")
    print(f"  kubectl apply --filename={shlex.quote(str(path))}")
    return 0


def script(root: Root, runs: Runs, options: Options) -> str:
    """The manifests of ``submit``; SUBMISSION stands for the id to come."""
    root, profile = _checked(root, runs, options)
    return _text(_objects(root, runs, options, profile, "SUBMISSION"))


def queue(root: Root) -> Mapping[str, str]:
    """UNKNOWN for what was sent: the cluster is not asked."""
    return dict.fromkeys(journal.sent_jobs(root, NAME), UNKNOWN)


def cancel(root: Root, run_ids: Sequence[str]) -> Sequence[str]:
    """Records the runs as taken back, and prints the command that deletes their jobs.

    A Job has several runs: deleting it takes all of them back.
    """
    sent = journal.sent_jobs(root, NAME)
    jobs = {run_id: sent[run_id] for run_id in sent if run_id in run_ids}
    if jobs:
        print("delete these in the cluster; pods get SIGTERM and save:")
        for job in sorted(set(jobs.values())):
            namespace, _, name = job.partition("/")
            print(f"  kubectl delete --namespace={namespace} {name}")
    journal.record_end(root, NAME, jobs)
    return list(jobs)


def _checked(root: Root, runs: Runs, options: Options) -> tuple[Path, Profile]:
    root, profile = Path(root).absolute(), load_profile(options.profile)
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
    return root, profile


def _objects(
    root: Path, runs: Runs, options: Options, profile: Profile, submission: str
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
    for (level, resources, run_id), members in sorted(groups.items()):
        site, need = profile.kubernetes, profile.resources_of(resources)
        if run_id:
            name = object_name("scm", submission[-4:], run_id)
            made = _job_set(members[0], root / run_id, name, site, need)
        else:
            name = object_name("scm", submission, f"{resources or 'default'}-{level}")
            run_list = str(root / FOLDER / f"{name}.list")
            made = _job(name, members, run_list, site, need, options.max_parallel)
        objects.append((made, members))
    return objects


def _job_name(manifest: Manifest) -> str:
    """NAMESPACE/KIND/NAME, as the journal has it."""
    metadata = manifest["metadata"]
    kind = manifest["kind"].lower()
    return f"{metadata['namespace']}/{kind}/{metadata['name']}"


def _text(objects: Sequence[tuple[Manifest, list[PlannedRun]]]) -> str:
    yaml = require("yaml", "writing a manifest", "PyYAML")
    manifests = [manifest for manifest, _ in objects]
    return yaml.safe_dump_all(manifests, sort_keys=False, explicit_start=True)


def _job(
    name: str,
    runs: Runs,
    run_list: str,
    site: Kubernetes,
    need: Resources,
    max_parallel: int,
) -> Manifest:
    """An indexed Job: the pod with index i trains the run in line i + 1 of a file.

    A pod that saved and left, and one that was evicted or preempted, is replaced
    without counting; another failure counts, for its index only.
    """
    choose = f'"$(sed -n "$((JOB_COMPLETION_INDEX + 1))p" {shlex.quote(run_list)})"'
    wait = any(run.depends_on for run in runs)
    spec = _indexed(
        len(runs),
        min(max_parallel or len(runs), len(runs)),
        {"backoffLimitPerIndex": max(run.max_attempts for run in runs) - 1},
        "Ignore",
        _pod(_command(site, choose, wait), site, need, {}),
    )
    return _manifest("batch/v1", "Job", name, site, spec)


def _job_set(
    run: PlannedRun, run_dir: Path, name: str, site: Kubernetes, need: Resources
) -> Manifest:
    """A JobSet for one run on several hosts; all pods start again together.

    Where a pod saved and left or was evicted, the Job fails by its pod failure policy,
    and the JobSet starts again without counting.
    """
    environment = {"JAX_NUM_PROCESSES": str(need.nodes), "JOBSET_NAME": name}
    join = ("--join_timeout=600",)  # pods may start minutes apart
    command = _command(site, shlex.quote(str(run_dir)), bool(run.depends_on), join)
    pod = _pod(command, site, need, environment)
    workers = _indexed(need.nodes, need.nodes, {"backoffLimit": 0}, "FailJob", pod)
    rule = {
        "name": "preempted",
        "action": "RestartJobSetAndIgnoreMaxRestarts",
        "onJobFailureReasons": ["PodFailurePolicy"],
    }
    spec = {
        # Pods find the first at NAME-workers-0-0.NAME: training/processes/cluster.py.
        "network": {"enableDNSHostnames": True},
        "failurePolicy": {"maxRestarts": run.max_attempts - 1, "rules": [rule]},
        "replicatedJobs": [
            {"name": "workers", "replicas": 1, "template": {"spec": workers}}
        ],
    }
    return _manifest("jobset.x-k8s.io/v1alpha2", "JobSet", name, site, spec)


def object_name(*parts: str) -> str:
    """A legal name of an object: lower case, short, with the end of the last part."""
    text = re.sub(r"[^a-z0-9]+", "-", "-".join(parts).lower()).strip("-")
    if len(text) <= _LONGEST_NAME:
        return text
    # The end has the hash of the run.
    head, tail = text[: _LONGEST_NAME - 17], text[-16:]
    return f"{head.strip('-')}-{tail.strip('-')}"


def _manifest(
    version: str, kind: str, name: str, site: Kubernetes, spec: Manifest
) -> Manifest:
    metadata: Manifest = {"name": name, "namespace": site.namespace}
    if site.queue:
        metadata["labels"] = {QUEUE_LABEL: site.queue}
    return {"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec}


def _indexed(
    count: int, parallel: int, limit: Manifest, action: str, pod: Manifest
) -> Manifest:
    """The spec of an indexed Job; ``action`` is for pods that were asked to leave."""
    saved = {"containerName": "train", "operator": "In", "values": [EXIT_PREEMPTED]}
    evicted = {"type": "DisruptionTarget", "status": "True"}
    rules = [
        {"action": action, "onPodConditions": [evicted]},
        {"action": action, "onExitCodes": saved},
    ]
    return {
        "completionMode": "Indexed",
        "completions": count,
        "parallelism": parallel,
        **limit,
        "podFailurePolicy": {"rules": rules},
        "template": pod,
    }


def _command(
    site: Kubernetes, run_dir: str, wait: bool, more: Sequence[str] = ()
) -> list[str]:
    """The command of a container; ``run_dir`` is shell text."""
    *command, _ = job_command("", site.python)
    words = shlex.join([*command, *more, *["--wait"] * wait])
    # With exec, signals reach Python.
    return ["/bin/sh", "-c", f"exec {words} --run={run_dir}"]


def _pod(
    command: list[str], site: Kubernetes, need: Resources, environment: dict[str, str]
) -> Manifest:
    container: Manifest = {
        "name": "train",
        "image": site.image,
        "command": command,
        "resources": _resources(site, need),
        "volumeMounts": [{"name": "shared", "mountPath": site.mount}],
    }
    if variables := {**site.environment, **environment}:
        container["env"] = [{"name": k, "value": v} for k, v in variables.items()]
    claim = {"name": "shared", "persistentVolumeClaim": {"claimName": site.claim}}
    spec: Manifest = {
        "restartPolicy": "Never",  # needed for a pod failure policy
        "terminationGracePeriodSeconds": site.grace_seconds,
        "containers": [container],
        "volumes": [claim],
    }
    if site.node_selector:
        spec["nodeSelector"] = dict(site.node_selector)
    if site.service_account:
        spec["serviceAccountName"] = site.service_account
    if need.time:
        spec["activeDeadlineSeconds"] = seconds(need.time)
    return {"spec": spec}


def _resources(site: Kubernetes, need: Resources) -> Manifest:
    asked = {"cpu": str(need.cpus * need.tasks)}
    limits = {site.accelerator: str(need.gpus)} if need.gpus else {}
    if need.memory:
        # K, M, G and T of SLURM are powers of 1024: Ki, Mi, Gi and Ti here.
        suffix = "i" if need.memory[-1] in "KMGT" else ""
        asked["memory"] = limits["memory"] = need.memory + suffix
    return {"requests": asked, "limits": limits} if limits else {"requests": asked}
