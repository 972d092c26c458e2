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
        runs = [run(f"r{i}") for i in range(5)]
        assert planned_as(runs, size=2) == [
            ({0: "r0", 1: "r1"}, ()),
            ({0: "r2", 1: "r3"}, ()),
            ({0: "r4"}, ()),
        ]

    def test_other_resources_are_another_array(self):
        runs = [run(name, resources=kind) for name, kind in ("ax", "by", "cx")]
        arrays = slurm_arrays.plan_arrays(runs, 100)
        assert [(a.resources, list(a.runs.values())) for a in arrays] == [
            ("x", ["a", "c"]),
            ("y", ["b"]),
        ]

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

    def test_nobody_waits_for_a_teacher_that_is_done(self):
        assert planned_as([run("s", "t")], done={"t"}) == [({0: "s"}, ())]

    def test_a_teacher_that_was_sent_before_is_waited_for(self):
        assert planned_as([run("s", "t")], jobs={"t": "7_3"}) == [({0: "s"}, ("7_3",))]

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
    ("after", "options"),
    [
        ((), []),
        (((0, None),), ["--dependency=aftercorr:7", "--kill-on-invalid-dep=yes"]),
        (
            ((1, 4), "3_2"),
            ["--dependency=afterok:8_4:3_2", "--kill-on-invalid-dep=yes"],
        ),
    ],
)
def test_what_an_array_waits_for(after, options):
    array = slurm_arrays.Array({0: "s"}, after=after)
    assert slurm_arrays.dependency(array, ["7", "8"]) == options


PROFILE = Profile(
    slurm=Slurm(
        partition="gpu",
        account="lab",
        python="python",
        setup=("source venv/bin/activate",),
        options=("--constraint=a100",),
    ),
    resources={
        "node2": Resources(2, 1, 8, 4, "64G", "24:00:00"),
        "default": Resources(),
    },
)


class TestScript:
    def text(self, root="/r", **facts):
        array = slurm_arrays.Array({0: "a", 1: "b", 5: "c"}, **facts)
        return slurm_arrays.render(array, PROFILE, root, "ID")

    def test_directives(self):
        text = self.text(resources="node2", max_parallel=2)
        assert re.findall(r"^#SBATCH --(.*)$", text, re.MULTILINE) == [
            "partition=gpu",
            "account=lab",
            "array=0-1,5%2",
            "nodes=2",
            "ntasks-per-node=1",
            "cpus-per-task=4",
            "gpus-per-node=8",
            "mem=64G",
            "time=24:00:00",
            "signal=USR1@180",
            "open-mode=append",
            "requeue",
            "constraint=a100",
            "job-name=scm-ID",
            "output=/r/submissions/ID.log",
        ]

    def test_the_run_is_a_step_after_the_setup(self):
        lines = self.text(resources="node2").splitlines()
        step = lines.index(
            'srun --cpus-per-task=4 --label python -m scm_jax sweep work --run="$run"'
        )
        assert lines[step - 1] == "source venv/bin/activate"

    @pytest.mark.parametrize("root", ["/r", "/a b/c's"])
    @pytest.mark.parametrize(
        ("code", "restarts", "requeued"),
        [(0, 0, False), (1, 0, False), (75, 0, True), (75, 99, True), (75, 100, False)],
    )
    def test_the_script_runs(self, tmp_path, root, code, restarts, requeued):
        """bash runs it, with programs that say how they were called."""
        root = tmp_path / root[1:]
        (root / "b").mkdir(parents=True)
        (root / "submissions").mkdir()
        array = slurm_arrays.Array({0: "a", 1: "b"})
        (root / "submissions/ID.txt").write_text(slurm_arrays.list_text(array, root))
        profile = Profile(slurm=Slurm(python="python"))
        script = slurm_arrays.render(array, profile, root, "ID")
        programs = program(tmp_path, "srun", f'echo "srun $*"; exit {code}')
        program(tmp_path, "scontrol", 'echo "scontrol $*"')
        environ = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "1"}
        environ |= {"SLURM_RESTART_COUNT": str(restarts)}
        environ |= {"PATH": f"{programs}:/usr/bin:/bin"}
        done = subprocess.run(["bash", "-c", script], env=environ, check=False)
        assert done.returncode == code
        log = (root / "b/logs/slurm.log").read_text()
        called = "srun --cpus-per-task=1 python -m scm_jax sweep work"
        assert f"{called} --run={root}/b\n" in log
        assert ("scontrol requeue 7_1" in log) == requeued

    def test_blank_lines_stand_for_unused_indices(self):
        array = slurm_arrays.Array({2: "c", 0: "a"})
        assert slurm_arrays.list_text(array, "/r") == "/r/a\n\n/r/c\n"

    def test_a_percent_in_the_path_is_no_pattern(self):
        assert "--output=/r%%j/submissions/ID.log\n" in self.text("/r%j")


def program(folder, name, body):
    """A program for PATH; returns its folder."""
    programs = folder / "programs"
    programs.mkdir(exist_ok=True)
    path = programs / name
    path.write_text(f"#!/bin/bash\n{body}\n")
    path.chmod(0o755)
    return programs


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A SLURM that writes down what it is sent, and gives jobs numbers from 101."""
    calls = tmp_path / "calls"
    sbatch = f"""
if [ "$1" = --test-only ]; then cat >/dev/null; exit ${{REFUSE:-0}}; fi
if [ "$(grep -c . {calls})" = "${{FAIL_AT:-none}}" ]; then echo down >&2; exit 1; fi
echo "$*" >> {calls}
echo $((100 + $(grep -c . {calls})))"""
    calls.write_text("")
    programs = program(tmp_path, "sbatch", sbatch)
    program(tmp_path, "sinfo", "echo gpu; echo cpu")
    program(tmp_path, "squeue", f"cat {tmp_path}/queue")
    program(tmp_path, "scancel", f'echo "scancel $*" >> {calls}')
    (tmp_path / "queue").write_text("")
    (tmp_path / "profile.toml").write_text('[slurm]\npartition = "gpu"\n')
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    return tmp_path


def send(site, runs, profile=None):
    if profile is not None:
        (site / "profile.toml").write_text(profile)
    for each in runs:
        planned.write_run(site / "root", each)
    options = Options(profile=str(site / "profile.toml"))
    return slurm.submit(site / "root", runs, options)


def calls(site):
    return (site / "calls").read_text().splitlines()


class TestSubmit:
    def test_students_wait_and_everything_is_recorded(self, site):
        assert send(site, [run("s", "t"), run("t")]) == 0
        teachers, students = calls(site)
        assert "--dependency" not in teachers
        assert "--dependency=aftercorr:101 --kill-on-invalid-dep=yes" in students
        assert journal.sent_jobs(site / "root", "slurm") == {"t": "101_0", "s": "102_0"}

    def test_the_script_that_is_shown_is_the_one_that_is_sent(self, site):
        runs = [run("t"), run("s", "t")]
        options = Options(profile=str(site / "profile.toml"))
        shown = slurm.script(site / "root", runs, options)
        send(site, runs)
        submissions = [journal.newest_submission(site / "root" / i) for i in "ts"]
        for number, submission in enumerate(submissions):
            shown = shown.replace(f"SUBMISSION{number}", submission.submission)
        for submission in submissions:
            path = site / "root/submissions" / f"{submission.submission}.sh"
            assert path.read_text() in shown
        assert "sbatch --dependency=aftercorr:JOB0" in shown

    def test_a_partition_that_does_not_exist(self, site):
        message = r"'gpus' does not exist.*\['cpu', 'gpu'\]"
        with pytest.raises(ValueError, match=message):
            send(site, [run("a")], '[slurm]\npartition = "gpus"\n')
        self.assert_nothing_was_sent(site)

    def test_what_slurm_refuses_in_a_test(self, site, monkeypatch):
        monkeypatch.setenv("REFUSE", "1")
        with pytest.raises(ValueError, match="sbatch --test-only"):
            send(site, [run("a")])
        self.assert_nothing_was_sent(site)

    def test_a_limit_that_is_over_at_once(self, site):
        with pytest.raises(ValueError, match=r"'00:04:00' must be more than 240 s"):
            send(site, [run("a")], '[resources.default]\ntime = "00:04:00"\n')
        self.assert_nothing_was_sent(site)

    def test_without_slurm(self, site, monkeypatch):
        monkeypatch.setenv("PATH", str(site / "nowhere"))
        with pytest.raises(ValueError, match="sbatch was not found"):
            send(site, [run("a")])

    def assert_nothing_was_sent(self, site):
        assert calls(site) == []
        assert not list((site / "root").glob("*/submissions.jsonl"))

    def test_a_failure_in_the_middle_leaves_a_record_of_both_halves(
        self, site, monkeypatch
    ):
        monkeypatch.setenv("FAIL_AT", "1")
        runs = [run("a"), run("b")]
        with pytest.raises(ValueError, match="down"):
            send(site, runs, "[slurm]\nmax_array_size = 1\n")
        assert journal.sent_jobs(site / "root", "slurm") == {"a": "101_0"}
        newest = journal.newest_submission(site / "root/b")
        assert newest.event == journal.FAILED
        assert "down" in newest.error

    def test_the_limit_on_queued_jobs_lets_the_first_through(self, site, capsys):
        (site / "queue").write_text("1\n2_0\n2_1\n")
        runs = [run("s", "t"), run("t"), run("u")]
        assert send(site, runs, "[slurm]\nmax_submit = 5\n") == 0
        assert sorted(journal.sent_jobs(site / "root", "slurm")) == ["t", "u"]
        said = capsys.readouterr().out
        assert "1 runs were not sent, as slurm.max_submit is 5" in said


class TestQueue:
    def send_two(self, site):
        send(site, [run("a"), run("b")])
        name = journal.newest_submission(site / "root/a").submission
        (site / "queue").write_text(
            f"101_0 RUNNING scm-{name}\n101_1 PENDING scm-{name}\n9 RUNNING mine\n"
        )

    def test_squeue_decides(self, site):
        self.send_two(site)
        assert slurm.queue(site / "root") == {"a": "running", "b": "queued"}

    def test_a_job_is_found_though_its_sending_was_never_recorded(self, site):
        self.send_two(site)
        for name in "ab":
            path = site / "root" / name / "submissions.jsonl"
            first = path.read_text().splitlines()[0]
            assert json.loads(first)["event"] == "sending"
            path.write_text(first + "\n")
        assert slurm.queue(site / "root") == {"a": "running", "b": "queued"}

    def test_nothing_is_asked_where_nothing_was_sent(self, site, monkeypatch):
        monkeypatch.setenv("PATH", str(site / "nowhere"))
        assert slurm.queue(site / "root") == {}
        assert slurm.cancel(site / "root", ["a"]) == []

    def test_unknown_where_squeue_fails(self, site):
        self.send_two(site)
        program(site, "squeue", "exit 1")
        assert slurm.queue(site / "root") == {"a": "unknown", "b": "unknown"}

    def test_cancel_takes_back_what_was_named(self, site):
        self.send_two(site)
        assert slurm.cancel(site / "root", ["b"]) == ["b"]
        assert calls(site)[-1] == "scancel 101_1"
        assert journal.newest_submission(site / "root/b").event == journal.CANCELLED
        assert journal.newest_submission(site / "root/a").event == journal.SENT


def test_the_interpreter_that_submits_is_the_default():
    array = slurm_arrays.Array({0: "a"})
    assert sys.executable in slurm_arrays.render(array, Profile(), "/r", "ID")
