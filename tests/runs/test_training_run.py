"""What a training asks of its directory before the first step."""

import pytest

from scm_jax import config as config_lib
from scm_jax.runs import train as training_run
from scm_jax.runs.directory import locks
from tests.commands.in_process import scm
from tests.sweeps import planted
from tests.sweeps.test_locks import HOLD


def tiny_config(steps=4):
    return config_lib.from_dict(planted.tiny_config(steps=steps))


class TestOneAtATime:
    @pytest.fixture
    def holder(self, tmp_path):
        with planted.python(HOLD, tmp_path, 60) as process:
            assert process.stdout.readline() == "held\n"
            yield process

    def test_a_second_training_is_refused_before_it_writes(self, tmp_path, holder):
        with pytest.raises(locks.HeldError, match=f"held by process {holder.pid}"):
            training_run.train_and_evaluate(tiny_config(), tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["LOCK"]

    @pytest.mark.filterwarnings("ignore:the load_module.*:DeprecationWarning")
    def test_the_command_says_so_in_a_sentence(self, tmp_path, holder):
        config = "--config=experiments/mixture.py:teacher,quick"
        said = scm("train", config, f"--workdir={tmp_path}", check=1).stderr
        assert f"held by process {holder.pid}" in said and "Traceback" not in said

    def test_it_holds_the_directory_of_a_killed_one_while_it_trains(
        self, tmp_path, monkeypatch, holder
    ):
        holder.kill()
        holder.wait()
        seen = []
        train = training_run.loop.train

        def watched(*args, **kwargs):
            seen.append(locks.read_owner(tmp_path))
            return train(*args, **kwargs)

        monkeypatch.setattr(training_run.loop, "train", watched)
        assert training_run.train_and_evaluate(tiny_config(), tmp_path) == "done"
        (owner,) = seen
        assert locks.same_process(owner, locks.identity())
        assert not locks.is_held(tmp_path)
