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
from scm_jax.sweeps.plan import planned
from scm_jax.sweeps.state import journal, states
from scm_jax.training.processes import cluster
from tests.sweeps.planted import plan_run

# The strict JSON schema of batch/v1 Job in Kubernetes 1.37 without its prose, from the
# PyPI package kubernetes-validate 1.37.0 (108 MB, hence this part of it), and the
# fields of JobSet v1alpha2 around it, as its custom resource definition has them
# (kubernetes-sigs/jobset, config/components/crd/bases).
GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
JOB = json.loads((GOLDEN / "kubernetes_job_1.37.json").read_text())
JOB_SET = json.loads((GOLDEN / "kubernetes_jobset_v1alpha2.json").read_text())
SCHEMAS = {"Job": JOB, "JobSet": {"$defs": JOB["$defs"], **JOB_SET}}

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
RUNS = [
    plan_run("student-0123456789", "teacher-0123456789"),
    plan_run("teacher-0123456789"),
    plan_run("other-0123456789"),
    plan_run("Big_one-0123456789", "other-0123456789", resources="node4"),
]


def check(manifest):
    # Not jsonschema.validate: it would check the schema as well, which takes seconds.
    jsonschema.Draft202012Validator(SCHEMAS[manifest["kind"]]).validate(manifest)


def make_site(folder):
    (folder / "profile.toml").write_text(PROFILE.format(mount=folder))
    return folder


@pytest.fixture
def site(tmp_path):
    return make_site(tmp_path)


def options_of(site):
    return Options(profile=str(site / "profile.toml"), max_parallel=1)


def send(site):
    for run in RUNS:
        planned.write_run(site / "root", run)
    assert kubernetes.submit(site / "root", RUNS, options_of(site)) == 0
    (path,) = (site / "root/submissions").glob("*.yaml")
    return list(yaml.safe_load_all(path.read_text()))


@pytest.fixture(scope="module")
def sent(tmp_path_factory):
    """Manifests of the teachers, of their student, and of a run on four hosts."""
    return send(make_site(tmp_path_factory.mktemp("site")))


class TestSchema:
    def test_manifests_follow_it(self, sent):
        assert [manifest["kind"] for manifest in sent] == ["Job", "Job", "JobSet"]
        for manifest in sent:
            check(manifest)

    def test_with_the_defaults_of_a_profile_too(self, site):
        least = f'[kubernetes]\nimage = "i"\nclaim = "c"\nmount = "{site}"\n'
        (site / "profile.toml").write_text(least + "[resources.node4]\nnodes = 4\n")
        for manifest in send(site):
            check(manifest)

    @pytest.mark.parametrize("number", [0, 2])
    def test_it_notices_a_misspelt_field(self, sent, number):
        wrong = copy.deepcopy(sent[number])
        spec = (workers(wrong) if number else wrong)["spec"]
        spec["paralellism"] = spec.pop("parallelism")
        with pytest.raises(jsonschema.ValidationError, match="paralellism"):
            check(wrong)


class TestJob:
    def test_a_pod_per_run_and_teachers_in_a_job_of_their_own(self, sent):
        teachers, students, hosts = sent
        limits = {"completions": 2, "parallelism": 1, "backoffLimitPerIndex": 2}
        assert teachers["spec"].items() >= limits.items()
        assert students["spec"]["completions"] == 1
        waits = [
            "--wait" in command(job) for job in (teachers, students, workers(hosts))
        ]
        assert waits == [False, True, True]

    def test_being_preempted_does_not_count(self, sent):
        rules = sent[0]["spec"]["podFailurePolicy"]["rules"]
        assert [rule["action"] for rule in rules] == ["Ignore", "Ignore"]
        assert rules[0]["onPodConditions"][0]["type"] == "DisruptionTarget"
        assert rules[1]["onExitCodes"]["values"] == [75]
        # The rule names the container that it is about.
        name = rules[1]["onExitCodes"]["containerName"]
        assert [c["name"] for c in pod(sent[0])["containers"]] == [name]

    def test_the_index_chooses_the_run(self, site):
        words = command(send(site)[0]).replace("python -m scm_jax", "echo")
        shell = ["/bin/sh", "-c", words]
        for index, name in enumerate(["teacher-0123456789", "other-0123456789"]):
            environ = {"JOB_COMPLETION_INDEX": str(index)}
            said = subprocess.check_output(shell, env=environ, text=True)
            assert said == f"sweep work --run={site}/root/{name}\n"

    def test_what_the_cluster_wants(self, sent):
        metadata = sent[0]["metadata"]
        assert metadata["namespace"] == "research"
        assert metadata["labels"] == {"kueue.x-k8s.io/queue-name": "gpu-queue"}
        assert pod(sent[0])["activeDeadlineSeconds"] == 86400
        assert pod(sent[0])["containers"][0]["resources"] == {
            "requests": {"cpu": "8", "memory": "64Gi"},
            "limits": {"nvidia.com/gpu": "1", "memory": "64Gi"},
        }


class TestJobSet:
    def test_its_pods_find_each_other(self, sent):
        """What the training reads of the environment that Kubernetes makes of it."""
        name = sent[2]["metadata"]["name"]
        template = workers(sent[2])
        container = pod(template)["containers"][0]
        environ = {v["name"]: v["value"] for v in container["env"]}
        for index in range(4):
            environ["JOB_COMPLETION_INDEX"] = str(index)
            environ["HOSTNAME"] = f"{name}-workers-0-{index}"
            found = cluster.find_cluster(environ)
            assert (found.num_processes, found.process_id) == (4, index)
            assert found.coordinator == f"{name}-workers-0-0.{name}:8482"
        assert template["spec"]["completions"] == 4
        assert sent[2]["spec"]["network"] == {"enableDNSHostnames": True}

    def test_being_preempted_does_not_count(self, sent):
        policy = sent[2]["spec"]["failurePolicy"]
        assert policy["maxRestarts"] == 2
        assert policy["rules"][0]["action"] == "RestartJobSetAndIgnoreMaxRestarts"
        rules = workers(sent[2])["spec"]["podFailurePolicy"]["rules"]
        assert [rule["action"] for rule in rules] == ["FailJob", "FailJob"]


def workers(job_set):
    (replicated,) = job_set["spec"]["replicatedJobs"]
    assert replicated["name"] == "workers"
    return replicated["template"]


def pod(job):
    return job["spec"]["template"]["spec"]


def command(job):
    shell, _, words = pod(job)["containers"][0]["command"]
    assert shell == "/bin/sh"
    return words


@pytest.mark.parametrize("name", ["A_b.c-0123456789", "x" * 90 + "-0123456789"])
def test_names_are_legal_and_keep_the_hash(name):
    found = kubernetes.object_name("scm", "ab12", name)
    assert found.endswith("-0123456789")
    assert set(found) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    # Pods add to it, and a name of a host has at most 63 characters.
    assert len(f"{found}-workers-0-9999") <= 63


class TestSubmit:
    def test_it_is_recorded_and_taken_back(self, site, capsys):
        name = send(site)[0]["metadata"]["name"]
        assert "kubectl apply --filename=" in capsys.readouterr().out
        sent = journal.sent_jobs(site / "root", "k8s")
        assert sent["teacher-0123456789"] == f"research/job/{name}"
        assert kubernetes.queue(site / "root") == dict.fromkeys(sent, states.UNKNOWN)
        kubernetes.cancel(site / "root", ["teacher-0123456789"])
        said = capsys.readouterr().out
        assert f"kubectl delete --namespace=research job/{name}" in said
        assert "teacher-0123456789" not in journal.sent_jobs(site / "root", "k8s")

    def test_what_is_shown_is_what_is_written(self, site):
        shown = kubernetes.script(site / "root", RUNS, options_of(site))
        assert not (site / "root").exists()
        send(site)
        (path,) = (site / "root/submissions").glob("*.yaml")
        shown = shown.replace("scm-submission-", f"scm-{path.stem}-")
        shown = shown.replace("scm-sion-", f"scm-{path.stem[-4:]}-")
        assert shown == path.read_text()

    @pytest.mark.parametrize(
        ("search", "replace", "message"),
        [
            ("image = ", "# ", r"kubernetes\.image is missing"),
            ("claim = ", "# ", r"kubernetes\.claim is missing"),
            ("mount = ", 'mount = "/elsewhere" #', r"not lie in kubernetes\.mount"),
            ("nodes = 4", "nodes = 4\ntasks = 8", r"'node4': tasks = 8.*must be 1"),
        ],
    )
    def test_what_cannot_work_is_refused(self, site, search, replace, message):
        text = (site / "profile.toml").read_text()
        (site / "profile.toml").write_text(text.replace(search, replace))
        with pytest.raises(ValueError, match=message):
            kubernetes.submit(site / "root", RUNS, options_of(site))
        assert not (site / "root").exists()
