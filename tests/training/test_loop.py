import os
import signal

import jax
import numpy as np
import pytest

from scm_jax.training import loop, seal
from scm_jax.training.ahead import Ahead
from scm_jax.training.late import Dispatched, Flight, bin_means
from tests.training import toy

STEPS = 20
pytestmark = pytest.mark.usefixtures("optimized")


@pytest.fixture(scope="module")
def by_hand(optimized):
    """States after 0..STEPS updates and the losses between, without the loop."""
    step, data, state = jax.jit(toy.train_step), toy.ToyData(), toy.init()
    states, losses = [state], []
    for _ in range(STEPS):
        state, metrics = step(state, toy.place(next(data)))
        states.append(state)
        losses.append(float(metrics["loss"]))
    return states, losses


@pytest.fixture(scope="module")
def finished(optimized, tmp_path_factory):
    """A whole run, with hooks and snapshots, and what it wrote."""
    directory, writer, calls = tmp_path_factory.mktemp("done"), toy.ListWriter(), []

    def probe(state, images):
        calls.append((images, len(writer.scalars)))
        return {"bias": float(state.params["net"]["layer"]["bias"][0])}

    hooks = [
        loop.Hook(7 * toy.BATCH, "eval", probe),
        loop.Hook(0, "final", lambda state, images: {"step": int(state.step)}),
    ]
    more = {"hooks": hooks, "snapshot_every_images": 8 * toy.BATCH}
    return directory, toy.run(directory, STEPS, writer=writer, **more), writer, calls


def test_loop_is_the_step_applied_again_and_again(finished, by_hand):
    _, result, _, _ = finished
    assert result.status == loop.DONE
    toy.assert_same(result.state, by_hand[0][STEPS])


def test_rows_are_means_over_their_interval(finished, by_hand):
    _, _, writer, _ = finished
    rows = [(step, row) for step, row in writer.scalars if "loss" in row]
    assert [step for step, _ in rows] == [4, 8, 12, 16, 20]
    for step, row in rows:
        assert row["images"] == step * toy.BATCH
        assert row["loss"] == pytest.approx(np.mean(by_hand[1][step - 4 : step]))
        assert row["images_per_second"] > 0
        assert "finite" not in row


def test_time_bins_are_divided_and_an_empty_one_is_nan(finished, by_hand):
    step, row = finished[2].arrays[1]
    assert step == 8
    assert row["bins/loss"][0] == pytest.approx(np.mean(by_hand[1][4:8]))
    assert np.isnan(row["bins/loss"][1])
    np.testing.assert_array_equal(row["bins/count"], [4, 0])
    unequal = bin_means({"w": np.array([6.0, 5.0]), "count": np.array([3.0, 1.0])})
    np.testing.assert_array_equal(unequal["bins/w"], [2, 5])


def test_hooks_run_when_due_and_at_the_end(finished):
    _, _, writer, calls = finished
    assert [images for images, _ in calls] == [56, 112, 160]
    final = [row for _, row in writer.scalars if "final/step" in row]
    assert final == [{"images": 160, "final/step": STEPS}]


def test_rows_come_one_interval_late_except_before_a_hook(tmp_path):
    writer, seen = toy.ListWriter(), []
    data = toy.ToyData(before=lambda index: seen.append(len(writer.scalars)))
    toy.run(tmp_path, 17, data=data, writer=writer, checkpoint_every_images=0)
    # The interval that ends with step 4 is written when step 8 has been dispatched;
    # by then batch 8, of the step after it, has been read.
    assert [seen[i] for i in (5, 8, 9, 12, 13, 16)] == [0, 0, 1, 1, 2, 2]


def test_checkpoints_and_snapshots_when_due(finished):
    directory, _, _, _ = finished
    steps = sorted(int(p.name) for p in (directory / "checkpoints").iterdir())
    assert steps == [10, 15, 20]  # and 5, which is one too many to keep
    assert seal.list_steps(directory / "ema_snapshots") == [8, 16, 20]
    metadata = toy.metadata(directory / "checkpoints", 20)
    assert metadata == {"config_hash": "toy", "step": 20, "images": 160}
    assert toy.metadata(directory / "ema_snapshots", 8)["images"] == 64


def test_a_finished_run_does_nothing_when_started_again(finished, by_hand):
    directory, _, _, _ = finished
    writer = toy.ListWriter()
    result = toy.run(directory, STEPS, writer=writer)
    assert result.status == loop.DONE and writer.scalars == []
    toy.assert_same(result.state, by_hand[0][STEPS])


def test_step_compiles_once(tmp_path):
    traces = []

    def counting(state, batch):
        traces.append(1)
        return toy.train_step(state, batch)

    toy.run(tmp_path, 12, step=counting)
    data = toy.ToyData()
    compiled, state, ok = loop._compile_step(counting, toy.init())
    for _ in range(3):
        state, ok, _ = compiled(state, ok, toy.place(next(data)))
    assert compiled._cache_size() == 1
    assert len(traces) == 2  # once in each


def test_step_args_reach_the_step(tmp_path):
    def step(state, batch, teacher):
        new, metrics = toy.train_step(state, batch)
        return new, {**metrics, "teacher": teacher["w"]}

    writer = toy.ListWriter()
    toy.run(tmp_path, 4, step=step, writer=writer, args=({"w": np.float32(3)},))
    assert writer.scalars[0][1]["teacher"] == 3


@pytest.mark.parametrize(
    ("period", "steps"), [(8, [1, 2, 3, 4]), (16, [2, 4]), (20, [3]), (0, [])]
)
def test_a_period_is_due_when_a_multiple_is_reached_or_passed(period, steps, tmp_path):
    settings = toy.settings(tmp_path)
    assert [n for n in range(1, 5) if settings.due(period, n)] == steps


def test_settings_must_be_positive(tmp_path):
    with pytest.raises(ValueError, match="log_every_images=0: must be above 0"):
        toy.settings(tmp_path, log_every_images=0)


def test_flags_are_read_only_when_old():
    read = []

    class Flag:
        def __init__(self, index):
            self.index = index

        def __bool__(self):
            read.append(self.index)
            return True

    flight = Flight(limit=3)
    for n in range(6):
        flight.add(Dispatched(n, None, {}, {"finite": Flag(n)}))
    assert read == [0, 1, 2]
    flight.drain()
    assert read == [0, 1, 2, 3, 4, 5]


# --- Ahead ----------------------------------------------------------------------------


def test_position_is_of_the_batch_that_was_not_taken():
    placed = []
    batches = Ahead(toy.ToyData(), lambda batch: placed.append(batch) or len(placed), 2)
    assert len(placed) == 1 and batches.position == {"next_index": 0}
    first = batches.take()
    assert (first.arrays, first.position) == (1, {"next_index": 0})
    np.testing.assert_array_equal(first.host.x, next(toy.ToyData()).x)
    assert batches.position == {"next_index": 1}
    batches.fetch()
    assert len(placed) == 2 and batches.position == {"next_index": 1}
    assert batches.take().position == {"next_index": 1}
    batches.fetch()
    assert len(placed) == 2 and batches.position == {"next_index": 2}


def test_next_batch_is_placed_before_the_host_waits(tmp_path, monkeypatch):
    placed, seen = [], []
    place, wait = toy.place, jax.block_until_ready
    monkeypatch.setattr(toy, "place", lambda batch: placed.append(1) or place(batch))
    monkeypatch.setattr(
        loop.jax, "block_until_ready", lambda x: seen.append(len(placed)) or wait(x)
    )
    toy.run(tmp_path, 5, max_in_flight=0, checkpoint_every_images=0)
    assert seen[:5] == [2, 3, 4, 5, 5]


# --- Not finite -----------------------------------------------------------------------


@pytest.mark.parametrize("ahead", [0, 4])
def test_bad_batch_stops_the_run_with_everything_intact(ahead, tmp_path, by_hand):
    data, writer = toy.ToyData(bad=(7,)), toy.ListWriter()
    with pytest.raises(loop.NonFiniteError) as caught:
        toy.run(tmp_path, STEPS, data=data, writer=writer, max_in_flight=ahead)
    assert [step for step, _ in writer.scalars] == [4], "whole rows are written"
    path = tmp_path / "nonfinite" / "step_7.npz"
    assert caught.value.step == 7 and caught.value.path == path
    assert str(path) in str(caught.value)
    assert "x has 1 of 512 values not finite" in str(caught.value)
    assert "loss is nan" in str(caught.value)

    stored = np.load(path)
    assert np.argwhere(np.isnan(stored["x"])).tolist() == [[3, 1]]
    key = jax.random.wrap_key_data(stored["key"], impl=str(stored["key_impl"]))
    assert key == toy.init().key
    assert stored["step"] == 7 and np.isnan(stored["metrics/loss"])

    restored = toy.restore(tmp_path)
    # The batches dispatched after the bad one must not have moved the state.
    assert restored.step == 7 and restored.data == {"next_index": 7}
    toy.assert_same(restored.state, by_hand[0][7])

    # repaired data: as if nothing had happened
    toy.assert_same(toy.run(tmp_path, STEPS).state, by_hand[0][STEPS])


def test_data_that_ends_before_the_training_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="the data ended before the training"):
        toy.run(tmp_path, 6, data=toy.ToyData(end=2))
    assert toy.run(tmp_path, 6, data=toy.ToyData(end=6)).status == loop.DONE


def test_unreadable_data_are_an_error_after_all_before_them_is_saved(tmp_path):
    def fails(index):
        if index == 10:
            raise OSError("a disk is gone")

    with pytest.raises(OSError, match="a disk is gone"):
        toy.run(tmp_path, STEPS, data=toy.ToyData(before=fails))
    restored = toy.restore(tmp_path)
    assert restored.step == 10 and restored.data == {"next_index": 10}


# --- Interruption ---------------------------------------------------------------------


def signalling(at, *signums):
    """Data that send signals to this process when a batch is asked for."""

    def send(index):
        for signum in signums if index == at else ():
            os.kill(os.getpid(), signum)

    return toy.ToyData(before=send)


def test_signals_save_at_the_next_step_and_resume(tmp_path, by_hand, capsys):
    for signum, at in ((signal.SIGINT, 6), (signal.SIGUSR1, 11), (signal.SIGTERM, 14)):
        before = signal.getsignal(signum)
        writer, data = toy.ListWriter(), signalling(at, signum)
        result = toy.run(tmp_path, STEPS, data=data, writer=writer)
        assert result.status == loop.PREEMPTED and int(result.state.step) == at
        assert signal.getsignal(signum) == before
        assert writer.scalars[-1][0] == at, "no row may be lost"
        assert writer.flushes
        said = f"saved step {at}; run the same command to resume"
        assert said in capsys.readouterr().err
    result = toy.run(tmp_path, STEPS)
    assert result.status == loop.DONE
    toy.assert_same(result.state, by_hand[0][STEPS])
    assert "resumes at step 14 of 20" in capsys.readouterr().err


def test_second_interrupt_aborts_at_once(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    data = signalling(6, signal.SIGINT, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        toy.run(tmp_path, STEPS, data=data)
    assert signal.getsignal(signal.SIGINT) == before


def test_killed_in_the_middle_of_a_save_resumes_bitwise(tmp_path, by_hand):
    killed = toy.in_new_process(tmp_path, "--kill_while_saving=1")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names[0].startswith("10.") and names[1:] == ["5"], names
    result = toy.run(tmp_path, STEPS)
    toy.assert_same(result.state, by_hand[0][STEPS])
    assert not list((tmp_path / "checkpoints").glob("10.*"))
