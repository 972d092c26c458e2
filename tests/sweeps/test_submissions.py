import json
import types

import pytest

from scm_jax.runs.directory import locks
from scm_jax.sweeps import launchers, submissions
from scm_jax.sweeps.launchers.options import Launcher, Options
from scm_jax.sweeps.plan import planned
from scm_jax.sweeps.state import journal, states
from tests.commands.in_process import scm
from tests.sweeps import planted
from tests.sweeps.planted import plan_run


@pytest.fixture
def sent(monkeypatch):
    """Ids of each ``submit`` of a launcher ``fake`` that sends and asks nobody."""
    calls = []

    def submit(root, runs, options):
        with journal.sending(root, "fake", [run.id for run in runs]) as batch:
            batch.sent({run.id: "1" for run in runs})
        calls.append([run.id for run in runs])
        return 0

    def queue(root):
        return dict.fromkeys(journal.sent_jobs(root, "fake"), "queued")

    fake = types.SimpleNamespace(submit=submit, queue=queue)
    monkeypatch.setitem(launchers.LAUNCHERS, "fake", fake)
    return calls


RETRIED = ["broken_off", "failed", "missing", "preempted", "stale"]
FORCED = ["failed_final", "failed_often", "stale_often"]


@pytest.fixture
def root(tmp_path):
    """A run in every state; the names say which."""
    for name in (*RETRIED, *FORCED, "queued", "done", "running", "elsewhere"):
        planted.make_run(tmp_path, name)
    planted.write_submission(tmp_path / "queued")
    planted.write_submission(tmp_path / "broken_off", "sending", time=0.0)
    planted.write_status(tmp_path / "preempted", state="preempted")
    planted.write_status(tmp_path / "stale")
    planted.write_status(tmp_path / "failed", state="failed")
    planted.write_attempts(tmp_path / "failed", "failed")
    planted.write_attempts(tmp_path / "stale_often", "lost", "failed")
    planted.write_status(tmp_path / "stale_often", attempt=3)
    planted.write_attempts(tmp_path / "failed_often", *["failed"] * 3)
    planted.write_status(tmp_path / "failed_often", state="failed", attempt=3)
    planted.write_status(tmp_path / "failed_final", state="failed", retry=False)
    planted.write_status(tmp_path / "running")
    planted.write_status(tmp_path / "elsewhere", **planted.ELSEWHERE)
    planted.finish(tmp_path / "done")
    with locks.hold(tmp_path / "running"):
        yield tmp_path


class TestResubmit:
    def test_exactly_what_needs_to_run_and_can(self, root, sent):
        assert submissions.resubmit(root, "fake", Options()) == 0
        assert sent == [RETRIED]
        # What was sent a moment ago is queued now.
        assert submissions.resubmit(root, "fake", Options()) == 0
        assert len(sent) == 1

    def test_force_adds_what_failed_for_good_and_nothing_else(self, root, sent):
        submissions.resubmit(root, "fake", Options(), force=True)
        assert sent == [sorted(RETRIED + FORCED)]
        for name in FORCED:
            found = states.read_state(root / name, queue={})
            assert states.retryable(found, 3), found

    def test_only_some_and_none_with_an_unknown_id(self, root, sent):
        with pytest.raises(FileNotFoundError, match="no run 'mising' in"):
            submissions.resubmit(root, "fake", Options(), only=["stale", "mising"])
        submissions.resubmit(root, "fake", Options(), only=["stale", "done"])
        assert sent == [["stale"]]

    def test_some_digits_of_an_id_are_enough(self, tmp_path, sent):
        for name in ("t32-0123456789", "t64-abcdef0123"):
            planted.make_run(tmp_path, name)
        submissions.resubmit(tmp_path, "fake", Options(), only=["abcdef"])
        assert sent == [["t64-abcdef0123"]]
        planted.make_run(tmp_path, "t96-0123450000")
        for digits, said in (
            ("012345", "each of .*t96-0123"),
            ("01234", "no run '01234'"),
        ):
            with pytest.raises(FileNotFoundError, match=said):
                submissions.resubmit(tmp_path, "fake", Options(), only=[digits])

    def test_through_the_command(self, root, sent):
        said = scm("sweep", "resubmit", f"--root={root}", "--launcher=fake")
        assert len(sent[0]) == 5
        assert "not sent: 1 done, 2 running, 1 stale, 2 failed, 1 queued" in said.stderr


class TestSubmit:
    def test_directories_are_made_and_equal_runs_sent_once(self, tmp_path, sent):
        runs = [plan_run("a", label="x"), plan_run("b"), plan_run("a")]
        assert submissions.submit(tmp_path, runs, "fake", Options()) == 0
        assert sent == [["a", "b"]]
        assert planned.read_run(tmp_path / "a").label == "x"
        assert submissions.submit(tmp_path, runs, "fake", Options()) == 0
        assert len(sent) == 1

    def test_a_directory_of_another_config_sends_nothing(self, tmp_path, sent):
        planned.write_run(tmp_path, plan_run("b", config={"seed": 7}))
        runs = [plan_run("a"), plan_run("b")]
        with pytest.raises(ValueError, match="belongs to another config"):
            submissions.submit(tmp_path, runs, "fake", Options())
        assert sent == []

    def test_the_unknown_launcher_comes_before_the_directories(self, tmp_path):
        message = r"--launcher = 'slrum' .*'local', 'print'"
        with pytest.raises(ValueError, match=message):
            submissions.submit(tmp_path, [plan_run("a")], "slrum", Options())
        assert list(tmp_path.iterdir()) == []


class TestLaunchers:
    @pytest.mark.parametrize("name", list(launchers.LAUNCHERS))
    def test_all_can_what_they_must(self, name):
        assert isinstance(launchers.get(name), Launcher)

    def test_printed_commands_are_in_order_and_record_nothing(self, tmp_path, capsys):
        planted.make_run(tmp_path, "a", "b")
        planted.make_run(tmp_path, "b")
        assert submissions.resubmit(tmp_path, "print", Options()) == 0
        lines = capsys.readouterr().out.splitlines()
        work = f"python -m scm_jax sweep work --run={tmp_path}"
        assert lines == [f"{work}/b", f"{work}/a --wait"]
        assert states.read_state(tmp_path / "a").state == "missing"


def test_status_as_json_has_every_run(root, sent):
    found = json.loads(scm("sweep", "status", f"--root={root}", "--json").stdout)
    counts = {"running": 2, "queued": 1, "missing": 2, "preempted": 1, "stale": 2}
    assert found["counts"] == {**counts, "failed": 3, "done": 1}
    by_id = {run["id"]: run for run in found["runs"]}
    assert by_id["stale_often"]["failures"] == 3
    assert by_id["elsewhere"]["host"] == "elsewhere"
