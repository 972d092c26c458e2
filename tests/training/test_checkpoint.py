import errno
import gc
import json
import logging
import os
import shutil
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from scm_jax.training import checkpoint, seal
from tests.training import toy


def state_at(step):
    """A state in which every array tells its step."""
    state = toy.init()
    moved = jax.tree.map(
        lambda x: x + step if jnp.issubdtype(x.dtype, jnp.floating) else x,
        state.replace(key=None, step=None),
    )
    return moved.replace(step=jnp.int32(step), key=toy.make_key(step))


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A run with checkpoints 1, 2, 3, of which 1 is deleted, and a snapshot of each."""
    run = tmp_path_factory.mktemp("run")
    with checkpoint.Checkpointer(run / "checkpoints", max_to_keep=2) as checkpointer:
        for step in (1, 2, 3):
            state = state_at(step)
            data = {"next_index": 10 * step}
            checkpointer.save(step, state, data=data, metadata={"config_hash": "ab"})
            checkpointer.save_ema_snapshot(step, state.ema, {"images": 8 * step})
    return run


@pytest.fixture
def run(template, tmp_path):
    shutil.copytree(template, tmp_path / "run")
    return tmp_path / "run"


def damage(run, step, item, kind="truncated"):
    """Harms the largest file of an item."""
    files = (run / "checkpoints" / str(step) / item).rglob("*")
    path = max((p for p in files if p.is_file()), key=lambda p: p.stat().st_size)
    content = path.read_bytes()
    first, rest = content[: len(content) // 2], content[len(content) // 2 :]
    if kind == "missing":
        path.unlink()
    else:
        flipped = bytes([rest[0] ^ 1]) + rest[1:] if kind == "flipped" else b""
        path.write_bytes(first + flipped)


def load_ema(run, name="0.05", folder="checkpoints", **options):
    return checkpoint.load_ema(run / folder, name, **options)


def test_everything_comes_back_bitwise(run):
    restored = toy.restore(run)
    assert restored.step == 3
    assert restored.data == {"next_index": 30}
    assert restored.metadata == {"config_hash": "ab"}
    assert jax.tree.structure(restored.state) == jax.tree.structure(state_at(3))
    toy.assert_same(restored.state, state_at(3))
    assert restored.state.key.dtype == toy.make_key(0).dtype
    draw = jax.random.normal(restored.state.key, (3,))
    np.testing.assert_array_equal(draw, jax.random.normal(toy.make_key(3), (3,)))
    items = {p.name for p in (run / "checkpoints" / "3").iterdir() if p.is_dir()}
    assert items == {"state", "ema", "data", "metadata"}  # apart on disk


def test_old_checkpoints_go_and_snapshots_stay(run):
    assert seal.list_steps(run / "checkpoints") == [2, 3]
    assert seal.list_steps(run / "ema_snapshots") == [1, 2, 3]
    snapshot = load_ema(run, "0.10", "ema_snapshots", step=1)
    toy.assert_same(snapshot, state_at(1).ema["0.10"])
    assert toy.metadata(run / "ema_snapshots", 1) == {"images": 8}


def test_a_snapshot_passed_a_second_time_is_left_as_it_is(run):
    with checkpoint.Checkpointer(run / "checkpoints") as checkpointer:
        checkpointer.save_ema_snapshot(2, state_at(9).ema)
    assert seal.list_steps(run / "ema_snapshots") == [1, 2, 3]
    kept = load_ema(run, folder="ema_snapshots", step=2)
    toy.assert_same(kept, state_at(2).ema["0.05"])


def test_keeping_less_than_two_is_refused(tmp_path):
    assert toy.restore(tmp_path) is None  # no checkpoint is no error
    with pytest.raises(ValueError, match="max_to_keep=1: must be at least 2"):
        checkpoint.Checkpointer(tmp_path, max_to_keep=1)


@pytest.mark.parametrize("kind", ["missing", "truncated", "flipped"])
@pytest.mark.parametrize("item", ["state", "ema", "data"])
def test_damaged_newest_falls_back_and_says_so(run, item, kind, caplog):
    damage(run, 3, item, kind)
    with caplog.at_level(logging.WARNING, logger=seal.__name__):
        restored = toy.restore(run)
    assert restored.step == 2
    toy.assert_same(restored.state, state_at(2))
    said = caplog.text
    assert "checkpoints/3 is damaged" in said and "falling back to" in said
    assert (run / "checkpoints" / "3.damaged").is_dir()


def test_a_step_can_be_saved_again_after_its_damaged_copy(run):
    damage(run, 3, "state")
    with checkpoint.Checkpointer(run / "checkpoints") as checkpointer:
        checkpointer.restore_latest(jax.eval_shape(toy.init))
        checkpointer.save(3, state_at(33))
        checkpointer.wait()
    toy.assert_same(toy.restore(run).state, state_at(33))


def test_none_whole_is_an_error_that_changes_nothing(run):
    for step in (2, 3):
        damage(run, step, "state")
    message = r"none of the 2 .*(?s:.*)3: .*bytes.*(?s:.*)2:"
    with pytest.raises(checkpoint.CheckpointError, match=message):
        toy.restore(run)
    assert seal.list_steps(run / "checkpoints") == [2, 3]


def test_other_shapes_name_the_parameter_and_both_shapes(run):
    abstract = jax.eval_shape(lambda: toy.init(width=6))
    message = r"net/layer/kernel: .* has \(64, 64\) float32, .* needs \(64, 6\) float32"
    with pytest.raises(ValueError, match=message):
        toy.restore(run, abstract)
    assert (run / "checkpoints" / "3").is_dir()
    abstract = jax.eval_shape(toy.init)
    net = dict(abstract.params["net"], head=abstract.params["net"].pop("layer"))
    abstract.params["net"] = net
    with pytest.raises(ValueError, match="net/head/kernel: missing in") as caught:
        toy.restore(run, abstract)
    assert "net/layer/kernel: unknown to this config" in str(caught.value)


def test_another_type_is_not_cast_in_silence(run):
    abstract = jax.eval_shape(toy.init)
    kernel = abstract.params["net"]["layer"]["kernel"]
    abstract.params["net"]["layer"]["kernel"] = kernel.update(dtype=jnp.bfloat16)
    with pytest.raises(ValueError, match=r"float32, this config needs .* bfloat16"):
        toy.restore(run, abstract)


def test_one_average_without_the_rest(run):
    # reads the EMA only: the state may even be gone
    shutil.rmtree(run / "checkpoints" / "3" / "state")
    average = load_ema(run)
    toy.assert_same(average, state_at(3).ema["0.05"])
    assert {len(x.devices()) for x in jax.tree.leaves(average)} == {1}
    abstract = jax.eval_shape(lambda: optax.tree.cast(average, jnp.bfloat16))
    average = load_ema(run, abstract=abstract)
    assert average["layer"]["kernel"].dtype == jnp.bfloat16


def test_average_of_the_newest_whole_checkpoint(run):
    damage(run, 3, "ema", "flipped")
    toy.assert_same(load_ema(run), state_at(2).ema["0.05"])
    with pytest.raises(checkpoint.CheckpointError, match="has changed since"):
        load_ema(run, step=3)
    assert (run / "checkpoints" / "3").is_dir(), "reading must not rename"


def test_unknown_averages_and_steps_list_what_there_is(run, tmp_path):
    with pytest.raises(ValueError, match=r"no EMA '0.2'; stored are \['0.05', '0.10'"):
        load_ema(run, "0.2")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint 7 .*\[2, 3\]"):
        load_ema(run, step=7)
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        load_ema(tmp_path / "nothing")


def test_a_state_without_averages(tmp_path):
    with checkpoint.Checkpointer(tmp_path / "checkpoints") as checkpointer:
        checkpointer.save(1, state_at(1).replace(ema={}))
        abstract = jax.eval_shape(toy.init).replace(ema={})
        restored = checkpointer.restore_latest(abstract)
    toy.assert_same(restored.state, state_at(1).replace(ema={}))


def test_buffers_reused_while_the_save_runs_do_not_leak_into_it(tmp_path):
    # The step donates the state; the files are written after save() returned.
    step = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    big = {"net": {"w": jnp.zeros((4, 2**18))}}
    state = toy.ToyState(jnp.int32(0), big, {"m": jnp.zeros(2**18)}, {}, jnp.int32(0))
    abstract = jax.eval_shape(lambda: state)
    with checkpoint.Checkpointer(tmp_path / "checkpoints", max_to_keep=None) as c:
        for n in range(3):
            c.save(n, state)
            for _ in range(30):
                state = step(state)
    for _ in range(3):
        with checkpoint.Checkpointer(tmp_path / "checkpoints", max_to_keep=None) as c:
            restored = c.restore_latest(abstract)
        for leaf in jax.tree.leaves(restored.state):
            assert np.unique(leaf) == [30 * restored.step]
        shutil.rmtree(tmp_path / "checkpoints" / str(restored.step))


def full_disk(directory):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory))


def check_until(checkpointer):
    """``check`` never waits."""
    for _ in range(1000):
        checkpointer.check()
        time.sleep(0.02)


def test_full_disk_is_a_clear_error_and_loses_nothing(run, monkeypatch):
    message = (
        r"could not save step 5 .* MiB free: .*No space left(?s:.*)"
        r"\[3, 4\] are untouched"
    )
    with checkpoint.Checkpointer(run / "checkpoints", max_to_keep=2) as checkpointer:
        checkpointer.save(4, state_at(4))  # the first one is waited for
        with monkeypatch.context() as patch:
            patch.setattr(seal, "write_manifest", full_disk)
            for notice in (checkpointer.wait, lambda: check_until(checkpointer)):
                checkpointer.save(5, state_at(5))
                with pytest.raises(checkpoint.CheckpointError, match=message):
                    notice()
        restored = checkpointer.restore_latest(jax.eval_shape(toy.init))
        toy.assert_same(restored.state, state_at(4))
        checkpointer.save(5, state_at(5))  # room was made
    toy.assert_same(toy.restore(run).state, state_at(5))


# --- Paths ----------------------------------------------------------------------------

NAMES = ["betas=[0.9,0.99]", "a*b", "wh?y", "back\\slash", "gs:", "M\u00fcller", "100%"]
NAMES += ["d\udce9", " spaces ", "#1", "'quoted\"", "line\nbreak", "n" * 250]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_run_can_be_read_whatever_its_path_is_called(tmp_path, name):
    run = tmp_path / name / "deeper"
    with checkpoint.Checkpointer(run / "checkpoints") as checkpointer:
        checkpointer.save(7, state_at(7), metadata={"config_hash": "cd"})
        checkpointer.save_ema_snapshot(7, state_at(7).ema)
    toy.assert_same(toy.restore(run).state, state_at(7))
    for folder in ("checkpoints", "ema_snapshots"):
        toy.assert_same(load_ema(run, folder=folder), state_at(7).ema["0.05"])
    assert toy.metadata(run / "checkpoints", 7) == {"config_hash": "cd"}


def test_where_no_plain_name_can_be_given_nothing_is_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp[0]"))
    with pytest.raises(checkpoint.CheckpointError, match="set TMPDIR to a path"):
        checkpoint.Checkpointer(tmp_path / "a[1]" / "checkpoints")


# --- The first save is read back ------------------------------------------------------


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("folder", ["checkpoints", "ema_snapshots"])
def test_a_first_save_that_cannot_be_read_stops_the_training(run, monkeypatch, folder):
    """The files are written and sealed, and the index in them is nobody's."""
    write = seal.write_manifest

    def broken(directory):
        for file in directory.glob("*/manifest.ocdbt"):
            file.write_bytes(b"nothing")
        write(directory)

    monkeypatch.setattr(seal, "write_manifest", broken)
    checkpointer = checkpoint.Checkpointer(run / "checkpoints")
    message = rf"{folder}/4 was saved and cannot be read back(?s:.*) untouched"
    with pytest.raises(checkpoint.CheckpointError, match=message):
        if folder == "checkpoints":
            checkpointer.save(4, state_at(4))
        else:
            checkpointer.save_ema_snapshot(4, state_at(4).ema)
    checkpointer.close()
    assert (run / folder / "4.damaged").is_dir()
    monkeypatch.undo()
    assert toy.restore(run).step == 3
    gc.collect()  # of readers that Orbax left half finished, while they are ignored


@pytest.mark.parametrize("needed", ["manifest.ocdbt", "_METADATA"])
def test_what_reading_needs_is_needed_for_a_seal(run, needed):
    path = run / "checkpoints" / "3"
    (path / "state" / needed).unlink()
    with pytest.raises(checkpoint.CheckpointError, match=f"state/{needed} was not"):
        seal.write_manifest(path)
    # A seal of an earlier version of this program, which asked for nothing.
    sealed = json.loads((path / seal.MANIFEST).read_text())
    del sealed[f"state/{needed}"]
    (path / seal.MANIFEST).write_text(json.dumps(sealed))
    assert seal.find_damage(path) == f"state/{needed} was never written"
    assert seal.find_damage(path, "ema/") is None
    assert toy.restore(run).step == 2


# --- Folders that are no checkpoints --------------------------------------------------


@pytest.mark.parametrize("name", ["3 (1)", "copy of 3", "03", "3.bak", "\u00b3"])
def test_a_renamed_checkpoint_is_named_where_it_is_not_used(run, name, caplog):
    (run / "checkpoints" / "3").rename(run / "checkpoints" / name)
    for read in (toy.restore, load_ema):
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger=seal.__name__):
            read(run)
        assert "using checkpoint" in caplog.text and "checkpoints/2;" in caplog.text
        assert f"not used: {name!r}" in caplog.text
    with pytest.raises(FileNotFoundError, match="no checkpoint 3 .*; not used: "):
        load_ema(run, step=3)


def test_a_run_whose_checkpoints_are_all_renamed_does_not_begin_anew(run):
    for step in ("2", "3"):
        (run / "checkpoints" / step).rename(run / "checkpoints" / f"{step} (1)")
    message = r"'2 \(1\)', '3 \(1\)'.* step 0, move it away"
    with pytest.raises(checkpoint.CheckpointError, match=message):
        toy.restore(run)


def test_what_was_set_aside_or_not_finished_is_no_stray(run, caplog):
    folder = run / "checkpoints"
    for name in ("4.orbax-checkpoint-tmp", "1.damaged", "1.damaged-2", ".trash"):
        (folder / name).mkdir()
    (folder / "notes.txt").touch()
    with caplog.at_level(logging.WARNING):
        load_ema(run)
    assert caplog.text == "" and seal.strays_text(folder) == ""


def test_a_checkpoint_that_may_not_be_read_is_skipped_with_its_reason(
    run, monkeypatch, caplog
):
    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    checksum = seal._checksum
    monkeypatch.setattr(
        seal, "_checksum", lambda p: (refuse if "/3/" in str(p) else checksum)(p)
    )
    with caplog.at_level(logging.WARNING, logger=seal.__name__):
        toy.assert_same(load_ema(run), state_at(2).ema["0.05"])
    assert "it cannot be read: " in caplog.text and "Permission denied" in caplog.text


def test_files_that_cannot_grow_stop_the_run_and_leave_it_resumable(tmp_path):
    """A real failing write inside the array library, in a process of its own."""
    limited = toy.in_new_process(tmp_path, "--file_limit=16384")
    assert limited.returncode == 1, limited.stderr
    assert "CheckpointError: could not save step 10" in limited.stderr
    assert "[5] are untouched" in limited.stderr
    assert toy.restore(tmp_path).step == 5
    names = {p.name for p in (tmp_path / "checkpoints").iterdir()}
    assert names == {"5"}, "what was left half written is gone"


def test_a_full_disk_is_a_sentence_before_orbax_begins(tmp_path, monkeypatch, caplog):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    with checkpoint.Checkpointer(tmp_path) as checkpointer:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
        with pytest.raises(checkpoint.CheckpointError, match="No space left"):
            checkpointer.save(1, state_at(1))
    assert not caplog.records
