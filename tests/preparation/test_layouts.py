"""What a source is taken for: splits, classes, shards, and the line that says it."""

import json

import numpy as np
import pytest

from scm_jax.datasets.preparation.prepare import prepare
from scm_jax.datasets.preparation.readers.sources import open_items, summarize
from tests.preparation import raw_data as raw

IMAGE = raw.png(0)
EACH = pytest.mark.parametrize("write", raw.WRITERS.values())


def parts(train="train", test="test", around=""):
    """Four images of two classes to train on, and two to test."""
    files = raw.class_files(prefix=f"{around}{train}/")
    return files | raw.class_files(count=1, prefix=f"{around}{test}/")


def told(path, **options):
    """The line on a source without its path."""
    return summarize(open_items(path, **options)).removeprefix(f"{path}: ")


# --- the line -------------------------------------------------------------------------


def test_one_line_says_what_is_read_and_what_is_not(tmp_path):
    files = raw.class_files("edcb") | {"c/8.jfif": IMAGE, "c/9.JPE": IMAGE}
    files |= {"b/0.txt": b"", "b/1.TXT": b"", "README": b"", ".DS_Store": b""}
    for kind, write in raw.WRITERS.items():
        assert told(write(tmp_path / kind, files)) == (
            f"kind {kind}, 10 items, 4 classes (b, c, d, ...); not used: 2 .txt, "
            "1 without a suffix, 1 hidden"
        )


def test_files_beside_the_tars_of_a_folder_are_in_the_line(tmp_path):
    tars = {f"{name}.tar": raw.tar_bytes({"0.png": IMAGE}) for name in ("cat", "ant")}
    path = raw.write_folder(tmp_path / "raw", {**tars, "a.md": b"", "._cat.tar": b"x"})
    assert told(path) == (
        "kind tar, 2 items, 2 classes (ant, cat); each tar is a class, and a shard "
        "with --kind=webdataset; not used beside them: 1 .md"
    )


# --- splits ---------------------------------------------------------------------------


@EACH
@pytest.mark.parametrize(
    "train, test, around",
    [
        ("Training", "Testing", ""),
        ("TRAIN", "Valid", "set/"),
        ("train_set", "dev", ""),
        ("train2017", "val2017", "images/"),
        ("seg_train/seg_train", "seg_test/seg_test", ""),
    ],
)
def test_folders_of_splits_go_by_many_names(tmp_path, write, train, test, around):
    path = write(tmp_path / "raw", parts(train, test, around))
    other = "test" if "est" in test else "validation"
    for target, number in (("train", 4), (other, 2)):
        items = open_items(path, target=target)
        assert len(items) == number and items.class_names == ("ant", "cat")
        assert items.origin["split"] == target


@EACH
def test_what_lies_beside_the_splits_is_in_the_line(tmp_path, write):
    path = write(tmp_path / "raw", {**parts(), "pred/0.png": IMAGE, "a.png": IMAGE})
    line = told(path, target="train")
    assert "split train, 4 items, 2 classes (ant, cat)" in line
    for beside in ("test (2)", "pred (1)", "no folder (1)"):
        assert beside in line
    assert "with --source_split=none such folders are classes" in line
    assert "1 items, no classes" in told(path, target="train", split="pred")


@EACH
def test_a_split_in_each_class_folder_keeps_the_classes(tmp_path, write):
    names = [f"{c}/{s}/0.png" for c in ("ant", "cat") for s in ("train", "test")]
    path = write(tmp_path / "raw", dict.fromkeys(names, IMAGE))
    items = open_items(path, target="train")
    assert len(items) == 2 and items.class_names == ("ant", "cat")
    raw.refused("folders test, train, which are splits", path)


@EACH
def test_a_class_with_the_name_of_a_split_is_a_question(tmp_path, write):
    path = write(tmp_path / "raw", raw.class_files(("cat", "dog", "test")))
    message = "test may be a split, or a class like cat.*split=test reads .*none as a c"
    for target in ("train", "test", None):
        raw.refused(message, path, target=target)
    items = open_items(path, target="train", split="none")
    assert items.class_names == ("cat", "dog", "test")


def test_a_split_that_the_source_has_not(tmp_path):
    one = raw.write_folder(tmp_path / "one", raw.class_files(prefix="val/"))
    raw.refused("folders val, .* none of them 'train'", one, target="train")
    assert len(open_items(one, target="train", split="val")) == 4
    two = raw.write_folder(tmp_path / "two", parts("val", "dev") | parts())
    raw.refused("dev, val all mean the split 'validation'", two, target="validation")
    assert len(open_items(two, target="validation", split="dev")) == 2


@EACH
def test_one_folder_is_a_class_where_labels_are_required(tmp_path, write):
    path = write(tmp_path / "raw", raw.class_files(("cat",)))
    assert "no classes; all lie in cat, the only class with --labels=req" in told(path)
    items = open_items(path, labels="required")
    assert items.class_names == ("cat",) and items.read(0)["label"] == 0


# --- classes in archives --------------------------------------------------------------


def test_folders_of_a_zip_that_windows_has_written(tmp_path):
    names = (".\\pets\\cat\\0.png", "pets\\ant\\0.png", "__MACOSX\\._0.png")
    path = raw.write_zip(tmp_path / "raw.zip", dict.fromkeys(names, IMAGE))
    assert told(path) == "kind zip, 2 items, 2 classes (ant, cat); not used: 1 hidden"
    for write, kind in ((raw.write_tar, "tar"), (raw.write_folder, "folder")):
        files = {name.removeprefix(".\\"): IMAGE for name in names[:2]}
        path = write(tmp_path / kind, files)
        assert told(path) == f"kind {kind}, 2 items, 2 classes (ant, cat)"


@pytest.mark.parametrize("write", [raw.write_zip, raw.write_tar])
def test_an_empty_class_folder_of_an_archive_would_shift_the_classes(tmp_path, write):
    path = write(tmp_path / "raw", {**raw.class_files(prefix="set/"), "set/bat/": b""})
    raw.refused("the class folder set/bat/ is empty", path)


def tars(tmp_path, *names, inside=None):
    inside = inside or {"0.png": IMAGE}
    files = {f"{name}.tar": raw.tar_bytes(inside) for name in names}
    return raw.write_folder(tmp_path / "raw", files)


def test_one_tar_for_each_class(tmp_path):
    path = tars(tmp_path, "n02", "n05", "n09")
    for kind in ("auto", "tar"):
        assert open_items(path, kind=kind).class_names == ("n02", "n05", "n09")
    assert "a class with --kind=tar" in told(path, kind="webdataset")


def test_a_kind_that_the_source_cannot_be(tmp_path):
    path = tars(tmp_path, "ant")
    raw.refused("is a folder, and the kind 'zip' is a zip", path, kind="zip")
    raw.refused("is no folder, and the kind 'folder'", path / "ant.tar", kind="folder")


def test_numbered_tars_without_labels_are_a_question(tmp_path):
    path = tars(tmp_path, "x-008", "x-009", "x-010")
    raw.refused("--kind=tar reads classes, --kind=webdataset", path)
    assert len(open_items(path, kind="tar").class_names) == 3


def test_tars_of_splits(tmp_path):
    path = tars(tmp_path, "train", "val", inside=raw.class_files())
    items = open_items(path, target="train")
    assert len(items) == 4 and items.class_names == ("ant", "cat")


def test_captions_in_class_folders_are_a_question(tmp_path):
    files = {f"{c}/0.{s}": IMAGE for c in ("a", "b") for s in ("png", "txt")}
    path = raw.write_tar(tmp_path / "raw.tar", files)
    raw.refused("--kind=webdataset reads a shard, --kind=tar", path)
    assert open_items(path, kind="tar").class_names == ("a", "b")


# --- what is asked for without effect -------------------------------------------------


def test_latents_have_no_colours_and_no_recipe(tmp_path):
    latent = raw.npy(np.zeros((8, 4, 4), np.float32))
    files = {"0.npy": latent, "dataset.json": b'{"labels": [["0.npy", 0]]}'}
    path = raw.write_zip(tmp_path / "raw.zip", files)
    raw.refused(r"channels = 1: .*raw.zip holds latents", path, channels=1)
    for how in ({"size": 2, "recipe": "box"}, {"size": 2}):
        with pytest.raises(ValueError, match=r"raw.zip are latents, .* not resized"):
            prepare(open_items(path), tmp_path / "a/1.0.0", **how)


def test_options_of_other_kinds(tmp_path):
    np.savez(tmp_path / "npz", images=np.zeros((2, 4, 4, 3), np.uint8))
    raw.write_zip(tmp_path / "edm", {"0.png": IMAGE, "dataset.json": b"{}"})
    for kind, option, value in (
        *(("npz.npz", "label_key", "y"), ("npz.npz", "max_pixels", 9)),
        *(("npz.npz", "label_base", 1), ("edm", "label_file", "a.csv")),
        ("edm", "split", "train"),
    ):
        raw.refused(f"{option} = .*{kind}", tmp_path / kind, **{option: value})


def test_batches_of_a_folder_that_are_no_splits(tmp_path):
    for name in "ab":
        np.savez(tmp_path / f"{name}.npz", images=np.zeros((2, 4, 4, 3), np.uint8))
    (tmp_path / "a.txt").write_text("")
    line = "kind npz, 4 items, no classes; not used beside them: 1 .txt"
    assert told(tmp_path, target="train") == line


# --- dataset.json ---------------------------------------------------------------------


def listing(*entries):
    return json.dumps({"labels": list(entries)}).encode()


@EACH
@pytest.mark.parametrize("around", ["", "set/", "a/set/"])
def test_dataset_json_counts_wherever_it_lies(tmp_path, write, around):
    names = ("00000/1.png", "00000\\0.png")  # as Windows writes the second
    files = {"00000/0.png": IMAGE, "00000/1.png": IMAGE}
    files["dataset.json"] = listing([names[0], 2], [names[1], 0])
    files = {around + name: content for name, content in files.items()}
    path = write(tmp_path / "raw", {**files, "README": b""})
    assert told(path) == (
        "kind edm, 2 items, 3 classes (0, 1, 2); not used: 1 without a suffix"
    )
    assert open_items(path).name(0).endswith(": " + around + names[0])


@EACH
@pytest.mark.parametrize(
    "content, message",
    [
        (listing(["x.png", 0]), "set/dataset.json: names x.png, which is not there"),
        (b'{"licence": "none"}', 'set/dataset.json: is not {"labels"'),
    ],
)
def test_another_dataset_json_is_named(tmp_path, write, content, message):
    files = {**raw.class_files(prefix="set/"), "set/dataset.json": content}
    path = write(tmp_path / "raw", files)
    kind = write.__name__.removeprefix("write_")
    raw.refused(f"{message}.*--kind={kind} reads the source", path)
    assert open_items(path, kind=kind).class_names == ("ant", "cat")


def test_several_dataset_json(tmp_path):
    files = {f"{part}/dataset.json": b"{}" for part in ("train", "val")}
    path = raw.write_zip(tmp_path / "raw.zip", {**parts(test="val"), **files})
    raw.refused(r"2 files dataset.json, the first in train/", path)
    assert len(open_items(path, kind="zip", target="train")) == 4
