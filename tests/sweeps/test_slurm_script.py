"""SLURM arrays and their script; SLURM itself is played by small programs on PATH."""

import json
import re
import subprocess
import sys

import pytest

from scm_jax.sweeps.launchers import slurm, slurm_arrays
from scm_jax.sweeps.launchers.options import Options
from scm_jax.sweeps.launchers.profiles import Profile, Resources, Slurm
from scm_jax.sweeps.plan import planned
from scm_jax.sweeps.state import journal
from tests.sweeps.planted import plan_run as run


def planned_as(runs, size=100, **options):
    """(runs by index, what they wait for) of each array."""
    arrays = slurm_arrays.plan_arrays(runs, size, **options)
    return [(dict(array.runs), array.after) for array in arrays]


class TestArrays:
    def test_runs_share_arrays_of_the_size_that_the_site_allows(self):
        kinds = [("a", "x"), ("b", "y"), ("c", "x"), ("d", "x")]
        runs = [run(name, resources=kind) for name, kind in kinds]
        arrays = slurm_arrays.plan_arrays(runs, 2)
        found = {(a.resources, *a.runs.values()) for a in arrays}
        assert found == {("x", "a", "c"), ("x", "d"), ("y", "b")}

    def test_a_student_has_the_index_of_its_teacher(self):
        runs = [run("s1", "t1"), run("t0"), run("t1"), run("s0", "t0"), run("x1", "t1")]
        assert planned_as(runs) == [
            ({0: "t0", 1: "t1"}, ()),
            ({1: "s1", 0: "s0"}, ((0, None),)),
            ({1: "x1"}, ((0, None),)),  # a second student of one teacher
        ]

    def test_a_student_of_two_waits_for_both_elements(self):
        runs = [run("t0"), run("t1"), run("s", "t1", "t0")]
        assert planned_as(runs)[1] == ({0: "s"}, ((0, 0), (0, 1)))

    def test_a_teacher_that_was_sent_before_is_waited_for_until_it_is_done(self):
        assert planned_as([run("s", "t")], jobs={"t": "7_3"}) == [({0: "s"}, ("7_3",))]
        assert planned_as([run("s", "t")], done={"t"}) == [({0: "s"}, ())]

    def test_three_levels(self):
        runs = [run("c", "b"), run("b", "a"), run("a")]
        after = [after for _, after in planned_as(runs)]
        assert after == [(), ((0, None),), ((1, None),)]

    @pytest.mark.parametrize("total", [0, 1, 3, 7, 10, 100])
    def test_arrays_divide_the_runs_at_once(self, total):
        runs = [run(f"r{i}") for i in range(25)]
        arrays = slurm_arrays.plan_arrays(runs, 10, max_parallel=total)
        shares = [array.max_parallel for array in arrays]
        assert min(shares) >= min(total, 1)
        assert sum(shares) == (max(total, 3) if total else 0)


@pytest.mark.parametrize(
    ("after", "condition"),
    [((), None), (((0, None),), "aftercorr:7"), (((1, 4), "3_2"), "afterok:8_4:3_2")],
)
def test_what_an_array_waits_for(after, condition):
    array = slurm_arrays.Array({0: "s"}, after=after)
    wanted = [f"--dependency={condition}", "--kill-on-invalid-dep=yes"]
    found = slurm_arrays.dependency(array, ["7", "8"])
    assert found == (wanted if condition else [])


SITE = {"partition": "gpu", "account": "lab", "python": "python"}
SITE |= {"setup": ("source venv/bin/activate",), "options": ("--constraint=a100",)}
NODE2 = Resources(2, 1, 8, 4, "64G", "24:00:00")
PROFILE = Profile(Slurm(**SITE), resources={"node2": NODE2, "default": Resources()})


class TestScript:
    def text(self, root="/r", **facts):
        array = slurm_arrays.Array({0: "a", 1: "b", 5: "c"}, **facts)
        return slurm_arrays.render(array, PROFILE, root, "ID")

    def test_directives(self):
        text = self.text(resources="node2", max_parallel=2)
        assert " ".join(re.findall(r"^#SBATCH --(.*)$", text, re.MULTILINE)) == (
            "partition=gpu account=lab array=0-1,5%2 nodes=2 ntasks-per-node=1 "
            "cpus-per-task=4 gpus-per-node=8 mem=64G time=24:00:00 signal=USR1@180 "
            "open-mode=append requeue constraint=a100 job-name=scm-ID "
            "output=/r/submissions/ID.log"
        )
        assert "--output=/r%%j/submissions/ID.log\n" in self.text("/r%j")  # no pattern

    def test_the_run_is_a_step_after_the_setup(self):
        work = "python -m scm_jax sweep work"
        step = f'srun --cpus-per-task=4 --label {work} --run="$run"'
        text = self.text(resources="node2")
        assert f"\nsource venv/bin/activate\n{step}\n" in text

    @pytest.mark.parametrize(
        ("code", "restarts", "requeued"),
        [(0, 0, False), (1, 0, False), (75, 0, True), (75, 99, True), (75, 100, False)],
    )
    def test_the_script_runs(self, tmp_path, code, restarts, requeued):
        """bash runs it, with programs that say how they were called."""
        root = tmp_path / "a b/c's"
        (root / "b").mkdir(parents=True)
        (root / "submissions").mkdir()
        array = slurm_arrays.Array({0: "a", 1: "b"})
        (root / "submissions/ID.txt").write_text(slurm_arrays.list_text(array, root))
        profile = Profile(slurm=Slurm(python="python"))
        script = slurm_arrays.render(array, profile, root, "ID")
        programs = program(tmp_path, "srun", f'echo "srun $*"; exit {code}')
        program(tmp_path, "scontrol", 'echo "scontrol $*"')
        environ = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "1"}
        environ["SLURM_RESTART_COUNT"] = str(restarts)
        environ["PATH"] = f"{programs}:/usr/bin:/bin"
        done = subprocess.run(["bash", "-c", script], env=environ, check=False)
        assert done.returncode == code
        log = (root / "b/logs/slurm.log").read_text()
        called = "srun --cpus-per-task=1 python -m scm_jax sweep work"
        assert f"{called} --run={root}/b\n" in log
        assert ("scontrol requeue 7_1" in log) == requeued

    def test_the_interpreter_that_submits_is_the_default(self):
        array = slurm_arrays.Array({0: "a"})
        assert sys.executable in slurm_arrays.render(array, Profile(), "/r", "ID")

    def test_blank_lines_stand_for_unused_indices(self):
        array = slurm_arrays.Array({2: "c", 0: "a"})
        assert slurm_arrays.list_text(array, "/r") == "/r/a\n\n/r/c\n"


def program(folder, name, body):
    """A program for PATH; returns its folder."""
    programs = folder / "programs"
    programs.mkdir(exist_ok=True)
    path = programs / name
    path.write_text(f"#!/bin/bash\n{body}\n")
    path.chmod(0o755)
    return programs


class Site:
    """A SLURM that writes down what it is sent, and gives jobs numbers from 101."""

    def __init__(self, folder):
        self.folder, self.root = folder, folder / "root"
        calls = folder / "calls"
        calls.write_text("")
        (folder / "queue").write_text("")
        sbatch = f"""
if [ "$1" = --test-only ]; then cat >/dev/null; exit ${{REFUSE:-0}}; fi
if [ "$(grep -c . {calls})" = "${{FAIL_AT:-none}}" ]; then echo down >&2; exit 1; fi
echo "$*" >> {calls}
echo $((100 + $(grep -c . {calls})))"""
        self.programs = program(folder, "sbatch", sbatch)
        program(folder, "sinfo", "echo gpu; echo cpu")
        program(folder, "squeue", f"cat {folder}/queue")
        program(folder, "scancel", f'echo "scancel $*" >> {calls}')

    def options(self, profile='[slurm]\npartition = "gpu"\n'):
        (self.folder / "profile.toml").write_text(profile)
        return Options(profile=str(self.folder / "profile.toml"))

    def send(self, *runs, **profile):
        for each in runs:
            planned.write_run(self.root, each)
        return slurm.submit(self.root, runs, self.options(**profile))

    def calls(self):
        return (self.folder / "calls").read_text().splitlines()

    def jobs(self):
        return journal.sent_jobs(self.root, "slurm")

    def newest(self, name):
        return journal.newest_submission(self.root / name)


@pytest.fixture
def site(tmp_path, monkeypatch):
    found = Site(tmp_path)
    monkeypatch.setenv("PATH", f"{found.programs}:/usr/bin:/bin")
    return found


class TestSubmit:
    def test_students_wait_and_everything_is_recorded(self, site):
        assert site.send(run("s", "t"), run("t")) == 0
        teachers, students = site.calls()
        assert "--dependency" not in teachers
        assert "--dependency=aftercorr:101 --kill-on-invalid-dep=yes" in students
        assert site.jobs() == {"t": "101_0", "s": "102_0"}

    def test_the_script_that_is_shown_is_the_one_that_is_sent(self, site):
        runs = [run("t"), run("s", "t")]
        shown = slurm.script(site.root, runs, site.options())
        site.send(*runs)
        ids = [site.newest(name).submission for name in "ts"]
        for number, submission in enumerate(ids):
            shown = shown.replace(f"SUBMISSION{number}", submission)
        for submission in ids:
            assert (site.root / f"submissions/{submission}.sh").read_text() in shown
        assert "sbatch --dependency=aftercorr:JOB0" in shown

    @pytest.mark.parametrize(
        ("profile", "variables", "message"),
        [
            ('[slurm]\npartition = "gpus"', {}, r"'gpus' does not.*\['cpu', 'gpu'\]"),
            ("", {"REFUSE": "1"}, "sbatch --test-only"),
            ('[resources.default]\ntime = "00:04:00"', {}, "'00:04:00' must be more"),
            ("", {"PATH": "/nowhere"}, "sbatch was not found"),
        ],
    )
    def test_what_cannot_work_is_not_sent(
        self, site, monkeypatch, profile, variables, message
    ):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(ValueError, match=message):
            site.send(run("a"), profile=profile)
        assert site.calls() == []
        assert not list(site.root.glob("*/submissions.jsonl"))

    def test_a_failure_in_the_middle_leaves_a_record_of_both_halves(
        self, site, monkeypatch
    ):
        monkeypatch.setenv("FAIL_AT", "1")
        with pytest.raises(ValueError, match="down"):
            site.send(run("a"), run("b"), profile="[slurm]\nmax_array_size = 1\n")
        assert site.jobs() == {"a": "101_0"}
        assert site.newest("b").event == journal.FAILED
        assert "down" in site.newest("b").error

    def test_the_limit_on_queued_jobs_lets_the_first_through(self, site, capsys):
        (site.folder / "queue").write_text("1\n2_0\n2_1\n")
        profile = "[slurm]\nmax_submit = 5\n"
        assert site.send(run("s", "t"), run("t"), run("u"), profile=profile) == 0
        assert sorted(site.jobs()) == ["t", "u"]
        said = capsys.readouterr().out
        assert "1 runs were not sent, as slurm.max_submit is 5" in said


class TestQueue:
    @pytest.fixture
    def two(self, site):
        """A site where the run ``a`` trains and ``b`` waits."""
        site.send(run("a"), run("b"))
        name = site.newest("a").submission
        (site.folder / "queue").write_text(
            f"101_0 RUNNING scm-{name}\n101_1 PENDING scm-{name}\n9 RUNNING mine\n"
        )
        return site

    def test_a_job_is_found_though_its_sending_was_never_recorded(self, two):
        assert slurm.queue(two.root) == {"a": "running", "b": "queued"}
        for path in two.root.glob("*/submissions.jsonl"):
            first = path.read_text().splitlines()[0]
            assert json.loads(first)["event"] == "sending"
            path.write_text(first + "\n")
        assert slurm.queue(two.root) == {"a": "running", "b": "queued"}

    def test_nothing_is_asked_where_nothing_was_sent(self, site, monkeypatch):
        monkeypatch.setenv("PATH", "/nowhere")
        assert slurm.queue(site.root) == {}
        assert slurm.cancel(site.root, ["a"]) == []

    def test_unknown_where_squeue_fails(self, two):
        program(two.folder, "squeue", "exit 1")
        assert slurm.queue(two.root) == {"a": "unknown", "b": "unknown"}

    def test_cancel_takes_back_what_was_named(self, two):
        assert slurm.cancel(two.root, ["b"]) == ["b"]
        assert two.calls()[-1] == "scancel 101_1"
        assert two.newest("b").event == journal.CANCELLED
        assert two.newest("a").event == journal.SENT
