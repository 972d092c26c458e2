"""Kubernetes manifests against the schema of the API, and what they say."""

import copy
import json
import pathlib
import subprocess

import jsonschema
import pytest
import yaml

from scm_jax.sweeps.launchers import kubernetes
from scm_jax.sweeps.launchers.options import Options
from scm_jax.sweeps.launchers.profiles import Kubernetes, Resources
from scm_jax.sweeps.plan import planned
from scm_jax.sweeps.state import journal, states
from scm_jax.training.processes import cluster

# The strict JSON schema of batch/v1 Job in Kubernetes 1.37 without its prose, from the
# PyPI package kubernetes-validate 1.37.0 (108 MB, hence this part of it).
SCHEMA = pathlib.Path(__file__).parents[1] / "golden/kubernetes_job_1.37.json"

# The fields of JobSet v1alpha2 around its Job template, as its custom resource
# definition has them (kubernetes-sigs/jobset, config/components/crd/bases).
JOB_SET = {
    "apiVersion": {"const": "jobset.x-k8s.io/v1alpha2"},
    "kind": {"const": "JobSet"},
    "metadata": {"type": "object"},
    "spec": {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "network": {
                "type": "object",
                "additionalProperties": False,
                "properties": {
                    "enableDNSHostnames": {"type": "boolean"},
                    "publishNotReadyAddresses": {"type": "boolean"},
                    "subdomain": {"type": "string"},
                },
            },
            "failurePolicy": {
                "type": "object",
                "additionalProperties": False,
                "properties": {
                    "maxRestarts": {"type": "integer"},
                    "restartStrategy": {"enum": ["Recreate", "BlockingRecreate"]},
                    "rules": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "additionalProperties": False,
                            "required": ["action", "name"],
                            "properties": {
                                "action": {
                                    "enum": [
                                        "FailJobSet",
                                        "RestartJobSet",
                                        "RestartJobSetAndIgnoreMaxRestarts",
                                    ]
                                },
                                "name": {"pattern": "^[A-Za-z]([\\w,:]*\\w)?$"},
                                "onJobFailureReasons": {
                                    "items": {
                                        "enum": [
                                            "BackoffLimitExceeded",
                                            "DeadlineExceeded",
                                            "FailedIndexes",
                                            "MaxFailedIndexesExceeded",
                                            "PodFailurePolicy",
                                        ]
                                    }
                                },
                                "targetReplicatedJobs": {"type": "array"},
                            },
                        },
                    },
                },
            },
            "replicatedJobs": {
                "type": "array",
                "items": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["name", "template"],
                    "properties": {
                        "name": {"type": "string"},
                        "replicas": {"type": "integer"},
                        "template": {
                            "type": "object",
                            "additionalProperties": False,
                            "properties": {
                                "metadata": {"type": "object"},
                                "spec": {"$ref": "#/$defs/io.k8s.api.batch.v1.JobSpec"},
                            },
                        },
                    },
                },
            },
        },
    },
}

PROFILE = """
[kubernetes]
image = "registry.example.com/scm_jax:1"
namespace = "research"
queue = "gpu-queue"
claim = "shared"
mount = "{mount}"
service_account = "trainer"
node_selector = {{ "cloud.google.com/gke-accelerator" = "nvidia-h100" }}
environment = {{ XLA_FLAGS = "--xla_gpu_x=1" }}

[resources.default]
gpus = 1
cpus = 8
memory = "64G"
time = "24:00:00"

[resources.node4]
nodes = 4
gpus = 8
"""


def check(manifest):
    schema = json.loads(SCHEMA.read_text())
    if manifest["kind"] == "JobSet":
        schema = {
            "$defs": schema["$defs"],
            "type": "object",
            "additionalProperties": False,
            "properties": JOB_SET,
        }
    # Not jsonschema.validate: it would check the schema as well, which takes seconds.
    jsonschema.Draft202012Validator(schema).validate(manifest)


def run(name, *depends_on, resources=""):
    return planned.PlannedRun(
        name, "s", "s.py", "", "", {"seed": 0}, {},
        resources=resources, depends_on=depends_on,
    )  # fmt: skip


RUNS = [
    run("student-0123456789", "teacher-0123456789"),
    run("teacher-0123456789"),
    run("other-0123456789"),
    run("Big_one-0123456789", "other-0123456789", resources="node4"),
]


@pytest.fixture
def site(tmp_path):
    (tmp_path / "profile.toml").write_text(PROFILE.format(mount=tmp_path))
    return tmp_path


def send(site, runs=RUNS, max_parallel=0):
    for each in runs:
        planned.write_run(site / "root", each)
    options = Options(profile=str(site / "profile.toml"), max_parallel=max_parallel)
    assert kubernetes.submit(site / "root", runs, options) == 0
    (path,) = (site / "root/submissions").glob("*.yaml")
    return list(yaml.safe_load_all(path.read_text()))


class TestSchema:
    def test_manifests_follow_it(self, site):
        found = send(site, max_parallel=1)
        assert [manifest["kind"] for manifest in found] == ["Job", "Job", "JobSet"]
        for manifest in found:
            check(manifest)

    def test_with_the_defaults_of_a_profile_too(self, site):
        least = f'[kubernetes]\nimage = "i"\nclaim = "c"\nmount = "{site}"\n'
        (site / "profile.toml").write_text(least + "[resources.node4]\nnodes = 4\n")
        for manifest in send(site):
            check(manifest)

    @pytest.mark.parametrize("kind", ["Job", "JobSet"])
    def test_it_notices_a_misspelt_field(self, site, kind):
        manifest = next(m for m in send(site) if m["kind"] == kind)
        wrong = copy.deepcopy(manifest)
        spec = wrong["spec"]
        if kind == "JobSet":
            spec = spec["replicatedJobs"][0]["template"]["spec"]
        spec["paralellism"] = spec.pop("parallelism")
        with pytest.raises(jsonschema.ValidationError, match="paralellism"):
            check(wrong)


class TestJob:
    def test_a_pod_per_run_and_teachers_in_a_job_of_their_own(self, site):
        teachers, students, _ = send(site, max_parallel=1)
        assert teachers["spec"]["completions"] == 2
        assert teachers["spec"]["parallelism"] == 1
        assert teachers["spec"]["backoffLimitPerIndex"] == 2
        assert students["spec"]["completions"] == 1
        assert "--wait" in command(students)
        assert "--wait" not in command(teachers)

    def test_being_preempted_does_not_count(self, site):
        job = send(site)[0]
        rules = job["spec"]["podFailurePolicy"]["rules"]
        assert [rule["action"] for rule in rules] == ["Ignore", "Ignore"]
        assert rules[0]["onPodConditions"][0]["type"] == "DisruptionTarget"
        assert rules[1]["onExitCodes"]["values"] == [75]
        # The rule names the container that it is about.
        name = rules[1]["onExitCodes"]["containerName"]
        assert [c["name"] for c in pod(job)["containers"]] == [name]

    def test_the_index_chooses_the_run(self, site):
        job = send(site)[0]
        words = command(job).replace("python -m scm_jax", "echo")
        for index, name in enumerate(["teacher-0123456789", "other-0123456789"]):
            said = subprocess.check_output(
                ["/bin/sh", "-c", words], env={"JOB_COMPLETION_INDEX": str(index)}
            )
            assert said.decode() == f"sweep work --run={site}/root/{name}\n"

    def test_what_the_cluster_wants(self, site):
        job = send(site)[0]
        assert job["metadata"]["namespace"] == "research"
        assert job["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "gpu-queue"}
        assert pod(job)["activeDeadlineSeconds"] == 86400
        assert pod(job)["containers"][0]["resources"] == {
            "requests": {"cpu": "8", "memory": "64Gi"},
            "limits": {"nvidia.com/gpu": "1", "memory": "64Gi"},
        }


class TestJobSet:
    def test_its_pods_find_each_other(self, site):
        """What the training reads of the environment that Kubernetes makes of it."""
        job_set = send(site)[-1]
        name = job_set["metadata"]["name"]
        workers = job_set["spec"]["replicatedJobs"][0]
        container = pod(workers["template"])["containers"][0]
        environ = {v["name"]: v["value"] for v in container["env"]}
        for index in range(4):
            found = cluster.find_cluster(
                {
                    **environ,
                    "JOB_COMPLETION_INDEX": str(index),
                    "HOSTNAME": f"{name}-{workers['name']}-0-{index}",
                }
            )
            assert (found.num_processes, found.process_id) == (4, index)
            assert found.coordinator == f"{name}-workers-0-0.{name}:8482"
        assert workers["template"]["spec"]["completions"] == 4
        assert job_set["spec"]["network"] == {"enableDNSHostnames": True}

    def test_being_preempted_does_not_count(self, site):
        job_set = send(site)[-1]
        policy = job_set["spec"]["failurePolicy"]
        assert policy["maxRestarts"] == 2
        assert policy["rules"][0]["action"] == "RestartJobSetAndIgnoreMaxRestarts"
        workers = job_set["spec"]["replicatedJobs"][0]["template"]["spec"]
        rules = workers["podFailurePolicy"]["rules"]
        assert [rule["action"] for rule in rules] == ["FailJob", "FailJob"]

    def test_it_waits_for_the_run_that_it_depends_on(self, site):
        assert "--wait" in command(
            send(site)[-1]["spec"]["replicatedJobs"][0]["template"]
        )


def pod(job):
    return job["spec"]["template"]["spec"]


def command(job):
    shell, _, words = pod(job)["containers"][0]["command"]
    assert shell == "/bin/sh"
    return words


class TestNames:
    @pytest.mark.parametrize("name", ["A_b.c-0123456789", "x" * 90 + "-0123456789"])
    def test_they_are_legal_and_keep_the_hash(self, name):
        found = kubernetes.object_name("scm", "ab12", name)
        assert found.endswith("-0123456789")
        assert set(found) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
        # Pods add to it, and a name of a host has at most 63 characters.
        assert len(f"{found}-workers-0-9999") <= 63


class TestSubmit:
    def test_it_is_recorded_and_taken_back(self, site, capsys):
        found = send(site)
        name = found[0]["metadata"]["name"]
        assert "kubectl apply --filename=" in capsys.readouterr().out
        sent = journal.sent_jobs(site / "root", "k8s")
        assert sent["teacher-0123456789"] == f"research/job/{name}"
        assert kubernetes.queue(site / "root") == dict.fromkeys(sent, states.UNKNOWN)
        kubernetes.cancel(site / "root", ["teacher-0123456789"])
        assert (
            f"kubectl delete --namespace=research job/{name}" in capsys.readouterr().out
        )
        assert "teacher-0123456789" not in journal.sent_jobs(site / "root", "k8s")

    def test_what_is_shown_is_what_is_written(self, site):
        options = Options(profile=str(site / "profile.toml"))
        shown = kubernetes.script(site / "root", RUNS, options)
        assert not (site / "root").exists()
        send(site)
        (path,) = (site / "root/submissions").glob("*.yaml")
        shown = shown.replace("scm-submission-", f"scm-{path.stem}-")
        shown = shown.replace("scm-sion-", f"scm-{path.stem[-4:]}-")
        assert shown == path.read_text()

    @pytest.mark.parametrize(
        ("search", "replace", "message"),
        [
            ('image = "registry.example.com/scm_jax:1"', "", r"kubernetes\.image"),
            ('claim = "shared"', "", r"kubernetes\.claim is missing"),
            (
                "mount = ",
                'mount = "/elsewhere" #',
                r"does not lie in kubernetes\.mount",
            ),
            ("nodes = 4", "nodes = 4\ntasks = 8", r"'node4': tasks = 8.*must be 1"),
        ],
    )
    def test_what_cannot_work_is_refused(self, site, search, replace, message):
        text = (site / "profile.toml").read_text()
        (site / "profile.toml").write_text(text.replace(search, replace))
        options = Options(profile=str(site / "profile.toml"))
        with pytest.raises(ValueError, match=message):
            kubernetes.submit(site / "root", RUNS, options)
        assert not (site / "root").exists()


def test_memory_of_slurm_is_memory_of_kubernetes():
    need = Resources(memory="64G")
    pod_resources = kubernetes._resources(Kubernetes(), need)
    assert pod_resources["requests"]["memory"] == "64Gi"
