"""The engine: what it stores, and that kills and bad items do not change that."""

import dataclasses
import multiprocessing
import os
import pathlib
import resource
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds

from scm_jax.datasets import pipeline
from scm_jax.datasets.preparation import manifest, parallel, prepare, progress, shards
from scm_jax.datasets.preparation.readers.items import ItemError
from tests.hang import HANG
from tests.preparation import made_items as made

ORIGIN = {"kind": "folder", "path": "a", "num_bytes": 3}
STORED = {"field": "image", "shape": (8, 8, 3), "dtype": "uint8", "class_names": ()}
HOW = {"recipe": "none", "size": 0, "shard_items": 4}
PLAN = shards.Plan("tiny", "train", **STORED, **HOW, num_items=made.NUM, origin=ORIGIN)


# --- layout ---------------------------------------------------------------------------

CLASSES = {"latent": made.LATENTS, "label": np.arange(9)}, tuple("abcdefghi")
LAYOUTS = {
    "images": (made.arrays(), {}, "uint8"),
    "grey without classes": (made.arrays(shape=(5, 7, 1), classes=0), {}, "uint8"),
    "float32 latents": (made.ArrayItems({"latent": made.LATENTS}), {}, "float32"),
    "float16 latents": (made.ArrayItems(*CLASSES), {"dtype": "float16"}, "float16"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout_is_read_by_tfds_and_by_the_pipeline(tmp_path, name):
    raw, options, dtype = LAYOUTS[name]
    folder = made.run(raw, tmp_path, **options)
    field = "image" if "image" in raw.fields else "latent"
    expected = raw.fields[field].astype(dtype)
    info = tfds.builder_from_directory(folder).info
    assert info.splits["train"].num_examples == len(raw) and info.name == "tiny"
    assert info.splits["train"].num_shards == -(-len(raw) // 4)
    if raw.class_names:
        assert tuple(info.features["label"].names) == raw.class_names
    assert set(info.features) == set(raw.fields)
    for memory_limit in (0, pipeline.MEMORY_LIMIT):
        source = pipeline.read_prepared(folder, "train", memory_limit)
        stored = source.gather(np.arange(len(raw)))
        assert stored[field].dtype == dtype
        np.testing.assert_array_equal(stored[field], expected)
        if raw.class_names:
            np.testing.assert_array_equal(stored["label"], raw.fields["label"])
    assert len(pipeline.read_prepared(folder, "train[3:5]")) == 2


def test_class_names_that_tfds_cannot_store_are_in_the_manifest(tmp_path):
    raw = dataclasses.replace(made.arrays(), class_names=("a", "a", " b"))
    folder = made.run(raw, tmp_path)
    assert tfds.builder_from_directory(folder).info.features["label"].num_classes == 3
    assert manifest.read(folder)["class_names"] == ["a", "a", " b"]


def test_shards_are_bounded_in_items_and_bytes():
    assert prepare._shard_items((64, 64, 3), "uint8") == 4096
    assert prepare._shard_items((64, 64, 8), "float32") == 2048
    assert prepare._shard_items((10**5, 10**4, 3), "uint8") == 1


def test_a_second_split_comes_into_the_same_folder(tmp_path):
    folder = made.run(made.arrays(), tmp_path)
    before = {k: v for k, v in made.contents(folder).items() if "array_record" in k}
    other = made.arrays(num=6, seed=1)
    assert made.run(other, tmp_path, split="test") == folder
    assert made.contents(folder).items() >= before.items()
    for split, raw in (("train", made.arrays()), ("test", other)):
        made.assert_stored(folder, raw.fields["image"], split)
    assert os.listdir(folder.parent) == ["1.0.0"]
    with pytest.raises(ValueError, match=r"shape = \[8, 8, 3\]; the new split has"):
        made.run(made.arrays(shape=(4, 4, 3)), tmp_path, split="validation")


def test_a_split_that_was_published_by_half_is_finished(tmp_path, monkeypatch):
    folder = made.run(made.arrays(), tmp_path)
    write, written = manifest.write_atomically, []

    def fail(file, text):
        written.append(file)
        if len(written) == 2:  # between the first file and the second
            raise KeyboardInterrupt
        write(file, text)

    monkeypatch.setattr(manifest, "write_atomically", fail)
    with pytest.raises(KeyboardInterrupt):
        made.run(made.arrays(seed=1), tmp_path, split="test")
    monkeypatch.undo()
    again = made.counted(raw=made.arrays(seed=1))
    made.run(again, tmp_path, split="test")
    assert again.reads == [0]  # for its shape; no shard is made again
    made.assert_stored(folder, again.fields["image"], "test")
    assert os.listdir(folder.parent) == ["1.0.0"]


# --- processes and kills --------------------------------------------------------------
# Two commands at once: test_encode.py.


def test_three_workers_store_the_same_bytes(tmp_path, plain):
    # Fields in alphabetical order: protobuf's own differs from process to process.
    assert made.contents(made.run(made.arrays(), tmp_path, workers=3)) == plain


def test_a_killed_command_goes_on_where_it_stopped(tmp_path, plain):
    raw = made.deadly(14, tmp_path / "mark")
    context = multiprocessing.get_context("forkserver")
    killed = context.Process(target=made.run, args=(raw, tmp_path))
    killed.start()
    killed.join(HANG)
    assert killed.exitcode == -9 and not made.target(tmp_path).exists()
    again = made.counted()
    folder = made.run(again, tmp_path)
    # The first for its shape; then the shard in which it was killed, and the rest.
    assert again.reads == [0, *range(12, made.NUM)]
    assert made.contents(folder) == plain
    assert os.listdir(tmp_path / "tiny") == ["1.0.0"]


def test_a_killed_worker_is_an_error_and_a_rerun_goes_on(tmp_path, plain):
    raw = made.deadly(14, tmp_path / "mark")
    with pytest.raises(OSError, match="ended with code -9; run the same command"):
        made.run(raw, tmp_path, workers=2)
    assert not made.target(tmp_path).exists()
    assert made.contents(made.run(made.arrays(), tmp_path)) == plain


def test_each_of_several_commands_begins_at_another_shard(tmp_path):
    raw = made.counted()
    made.run(raw, tmp_path, process_index=1, process_count=2)
    assert raw.reads == [0, *range(12, made.NUM), *range(12)]


def test_a_claim_is_held_by_one(tmp_path):
    with parallel.claimed(tmp_path / "a") as first:
        with parallel.claimed(tmp_path / "a") as second:
            assert (first, second) == (True, False)
    with parallel.claimed(tmp_path / "a") as third:
        assert third
    with parallel.claimed(tmp_path / "gone/a") as nowhere:
        assert not nowhere


class Moving(type(pathlib.Path())):
    """A folder whose shards go to ``published`` when they are looked at once."""

    def stat(self, **options):
        found = super().stat(**options)
        if self.parent.name == "folder":
            shutil.move(str(self), self.parent.with_name("published"))
        return found


@pytest.fixture
def work(tmp_path):
    work = shards.Work(made.arrays(), PLAN, tmp_path, tmp_path / "published")
    for folder in (work.folder, work.state, work.target):
        folder.mkdir()
    return work


def test_a_shard_that_another_process_publishes_meanwhile_is_whole(work):
    shards.write_shard(work, 0)
    assert dataclasses.replace(work, staging=Moving(work.staging)).record(0) is not None
    assert os.listdir(work.target) == [PLAN.file(0)]
    assert dataclasses.replace(work, target=work.staging).record(0) is None


def test_leftovers_of_killed_processes_go(work):
    own, next_one = work.temporary(0), work.temporary(1)
    other = work.state / f".{PLAN.file(0)}.another-host.1"
    for file in (own, next_one, other):
        file.touch()
    work.remove_leftovers(0)
    assert set(work.state.iterdir()) == {next_one, other}


# --- what may not be mixed ------------------------------------------------------------


def test_shards_of_another_recipe_are_not_used(tmp_path):
    with pytest.raises(ItemError):
        made.run(made.counted(bad=(14,)), tmp_path)
    folder = made.run(made.arrays(), tmp_path, recipe="box", size=4)
    stored = pipeline.read_prepared(folder).fields["image"]
    assert stored.shape == (made.NUM, 4, 4, 3)
    with pytest.raises(ValueError, match=r"with shape = \[4, 4, 3\]"):
        made.run(made.arrays(), tmp_path)


def test_a_split_made_otherwise_is_not_taken_for_this_one(tmp_path):
    folder = made.run(made.arrays(), tmp_path)
    before = made.contents(folder)
    for change, message in (
        ({"recipe": "center_crop_bicubic", "size": 8}, "recipe: none there, center"),
        ({"shard_items": 5}, "shard_items: 4 there, 5 now"),
        ({"options": {"label_base": 1}}, "options: {} there"),
    ):
        with pytest.raises(ValueError, match=message):
            made.run(made.arrays(), tmp_path, **change)
    with pytest.raises(ValueError, match="raw items: 23 there, 22 now"):
        made.run(made.arrays(num=22), tmp_path)
    assert made.contents(folder) == before
    again = made.counted()
    assert made.run(again, tmp_path) == folder
    assert again.reads == [0]


def test_foreign_files_are_not_overwritten(tmp_path):
    mine = made.target(tmp_path) / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("keep")
    with pytest.raises(FileExistsError, match=r"1\.0\.0 already exists"):
        made.run(made.arrays(), tmp_path)
    assert mine.read_text() == "keep" and os.listdir(tmp_path / "tiny") == ["1.0.0"]


# --- disk and progress ----------------------------------------------------------------


def test_a_full_disk_is_said_and_a_rerun_goes_on(tmp_path):
    raw = made.arrays(num=60, shape=(64, 64, 3))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    try:
        with pytest.raises(OSError, match=r"cannot write .*tiny-train.*Make room"):
            made.run(raw, tmp_path, shard_items=30)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    left = [f for f in tmp_path.rglob("*tiny-train*") if ".claim" not in f.name]
    assert left == [] and not made.target(tmp_path).exists()
    assert len(pipeline.read_prepared(made.run(raw, tmp_path, shard_items=30))) == 60


def test_progress_in_words(capsys):
    say = progress.Progress("flowers train", 2000)
    say.start(before=500)
    say.at(250)
    assert say.text(5.0) == "750 of 2,000 items (38 %), 50 items/s, 25 s left"
    say.end()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "flowers train: 500 of 2,000 items are there; going on"
    assert len(lines) == 2 and "250 items in" in lines[1]


def test_the_plan_decides_what_is_used_again():
    kept = {"num_items": 22, "origin": ORIGIN | {"num_bytes": 4}}
    for name, value in kept.items():
        assert dataclasses.replace(PLAN, **{name: value}).hash() == PLAN.hash()
    new = {"size": 8, "recipe": "box", "dtype": "float16", "options": {"channels": 1}}
    new |= {"origin": ORIGIN | {"path": "b"}, "class_names": ("a",), "split": "t"}
    hashes = {dataclasses.replace(PLAN, **{n: v}).hash() for n, v in new.items()}
    assert len(hashes | {PLAN.hash()}) == len(new) + 1
