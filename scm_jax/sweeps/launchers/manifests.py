"""Kubernetes manifests as plain data: what a Job or JobSet for runs looks like."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from typing import Any

from scm_jax.sweeps.launchers.options import worker_command
from scm_jax.sweeps.launchers.profiles import Kubernetes, Resources, seconds
from scm_jax.sweeps.plan.planned import PlannedRun
from scm_jax.types import EXIT_PREEMPTED

Manifest = dict[str, Any]

QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
_LONGEST_NAME = 48  # of 63: pods of a JobSet add "-workers-0-12345"


def job(
    name: str,
    runs: Sequence[PlannedRun],
    run_list: str,
    site: Kubernetes,
    need: Resources,
    max_parallel: int = 0,
) -> Manifest:
    """An indexed Job: the pod with index i trains the run in line i + 1 of a file.

    A pod that saved and left (exit code 75), and one that was evicted or preempted, is
    replaced without counting; another failure counts, for its index only.

    Args:
      name: of the job.
      runs: one per index.
      run_list: path of the file, as pods see it.
      site: the cluster.
      need: what one run gets.
      max_parallel: pods at once; 0 is all.
    """
    choose = f'"$(sed -n "$((JOB_COMPLETION_INDEX + 1))p" {shlex.quote(run_list)})"'
    wait = any(run.depends_on for run in runs)
    spec = {
        "completionMode": "Indexed",
        "completions": len(runs),
        "parallelism": min(max_parallel or len(runs), len(runs)),
        "backoffLimitPerIndex": max(run.max_attempts for run in runs) - 1,
        "podFailurePolicy": {
            "rules": [
                {"action": "Ignore", "onPodConditions": [_disrupted()]},
                {"action": "Ignore", "onExitCodes": _preempted()},
            ]
        },
        "template": _pod(_command(site, choose, wait), site, need, {}),
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": _metadata(name, site),
        "spec": spec,
    }


def job_set(
    run: PlannedRun,
    run_dir: str | os.PathLike,
    name: str,
    site: Kubernetes,
    need: Resources,
) -> Manifest:
    """A JobSet for one run on several hosts; all pods start again together.

    Where a pod saved and left (exit code 75) or was evicted, the Job fails by its pod
    failure policy, and the JobSet starts again without counting.
    """
    environment = {"JAX_NUM_PROCESSES": str(need.nodes), "JOBSET_NAME": name}
    # Pods may start minutes apart.
    join = ("--join_timeout=600",)
    wait = bool(run.depends_on)
    command = _command(site, shlex.quote(os.fspath(run_dir)), wait, join)
    workers = {
        "completionMode": "Indexed",
        "completions": need.nodes,
        "parallelism": need.nodes,
        "backoffLimit": 0,
        "podFailurePolicy": {
            "rules": [
                {"action": "FailJob", "onPodConditions": [_disrupted()]},
                {"action": "FailJob", "onExitCodes": _preempted()},
            ]
        },
        "template": _pod(command, site, need, environment),
    }
    spec = {
        # Pods find the first at NAME-workers-0-0.NAME, see training/cluster.py.
        "network": {"enableDNSHostnames": True},
        "failurePolicy": {
            "maxRestarts": run.max_attempts - 1,
            "rules": [
                {
                    "name": "preempted",
                    "action": "RestartJobSetAndIgnoreMaxRestarts",
                    "onJobFailureReasons": ["PodFailurePolicy"],
                }
            ],
        },
        "replicatedJobs": [
            {"name": "workers", "replicas": 1, "template": {"spec": workers}}
        ],
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": _metadata(name, site),
        "spec": spec,
    }


def object_name(*parts: str) -> str:
    """A legal name of an object: lower case, short, with the end of the last part.

    Example:
      >>> object_name("scm", "T32_long-0123456789")
      'scm-t32-long-0123456789'
    """
    text = re.sub(r"[^a-z0-9]+", "-", "-".join(parts).lower()).strip("-")
    if len(text) <= _LONGEST_NAME:
        return text
    # The end has the hash of the run.
    head, tail = text[: _LONGEST_NAME - 17], text[-16:]
    return f"{head.strip('-')}-{tail.strip('-')}"


def _metadata(name: str, site: Kubernetes) -> Manifest:
    metadata: Manifest = {"name": name, "namespace": site.namespace}
    if site.queue:
        metadata["labels"] = {QUEUE_LABEL: site.queue}
    return metadata


def _disrupted() -> Manifest:
    return {"type": "DisruptionTarget", "status": "True"}


def _preempted() -> Manifest:
    return {"containerName": "train", "operator": "In", "values": [EXIT_PREEMPTED]}


def _command(
    site: Kubernetes, run_dir: str, wait: bool, more: Sequence[str] = ()
) -> list[str]:
    """The command of a container; ``run_dir`` is shell text."""
    *command, _ = worker_command("", site.python)
    words = shlex.join([*command, *more, *["--wait"] * wait])
    # With exec, signals reach Python.
    return ["/bin/sh", "-c", f"exec {words} --run={run_dir}"]


def _pod(
    command: list[str], site: Kubernetes, need: Resources, environment: dict[str, str]
) -> Manifest:
    variables = {**site.environment, **environment}
    container: Manifest = {
        "name": "train",
        "image": site.image,
        "command": command,
        "resources": _resources(site, need),
        "volumeMounts": [{"name": "shared", "mountPath": site.mount}],
    }
    if variables:
        container["env"] = [{"name": k, "value": v} for k, v in variables.items()]
    spec: Manifest = {
        "restartPolicy": "Never",  # needed for a pod failure policy
        "terminationGracePeriodSeconds": site.grace_seconds,
        "containers": [container],
        "volumes": [
            {"name": "shared", "persistentVolumeClaim": {"claimName": site.claim}}
        ],
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
    if need.memory:
        asked["memory"] = _quantity(need.memory)
    limits = {site.accelerator: str(need.gpus)} if need.gpus else {}
    if need.memory:
        limits["memory"] = asked["memory"]
    return {"requests": asked, "limits": limits} if limits else {"requests": asked}


def _quantity(memory: str) -> str:
    """Memory as Kubernetes writes it; SLURM's K, M, G and T are powers of 1024.

    Example:
      >>> _quantity("64G"), _quantity("64Gi")
      ('64Gi', '64Gi')
    """
    return f"{memory}i" if memory[-1:] in "KMGT" else memory
