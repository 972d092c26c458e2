"""Images and latents in folders, zips, tars and shards."""

import concurrent.futures
import functools
import json
import pickle
import zipfile

import numpy as np
import pytest

from scm_jax.datasets.preparation.readers.items import ItemError
from scm_jax.datasets.preparation.readers.sources import (
    SOURCES,
    detect_kind,
    open_items,
)
from tests.preparation import raw_data as raw


def flat_files(count=3):
    # Written in another order than that of their names.
    return {f"b/{n}.png": raw.png(n) for n in reversed(range(count))}


deflated = functools.partial(raw.write_zip, compression=zipfile.ZIP_DEFLATED)
PLACES = [*raw.WRITERS.items(), ("zip", deflated)]


# --- flat, and classes ----------------------------------------------------------------


@pytest.mark.parametrize("kind, write", PLACES)
def test_flat_images_come_in_the_order_of_their_names(tmp_path, kind, write):
    path = write(tmp_path / "raw", {**flat_files(), "notes.txt": b"no image"})
    items = open_items(path)
    assert items.origin["kind"] == kind and items.class_names == ()
    raw.assert_pictures(items, [0, 1, 2])
    assert set(items.read(0)) == {"image"}
    assert str(path) in items.name(1) and items.name(1).endswith("b/1.png")


@pytest.mark.parametrize("around", ["", "set/", "a/b/"])
@pytest.mark.parametrize("kind, write", PLACES)
def test_folders_are_classes_in_alphabetical_order(tmp_path, kind, write, around):
    path = write(tmp_path / "raw", raw.class_files(prefix=around))
    items = open_items(path)
    assert items.origin["kind"] == kind
    assert items.class_names == ("ant", "cat")
    assert raw.labels_of(items) == [0, 0, 1, 1]
    assert items.read(0)["label"].dtype == np.int64
    raw.assert_pictures(items, [2, 3, 0, 1])


def test_the_class_is_the_first_folder_and_orders_before_its_neighbours(tmp_path):
    # As text "a-b/0.png" is before "a/images/0.png", as a name "a" is before "a-b".
    files = {"a-b/0.png": raw.png(0), "a/images/0.png": raw.png(1)}
    items = open_items(raw.write_folder(tmp_path / "raw", files))
    assert items.class_names == ("a", "a-b") and raw.labels_of(items) == [0, 1]
    raw.assert_pictures(items, [1, 0])


def test_labels_can_be_left_out_or_required(tmp_path):
    classes = raw.write_folder(tmp_path / "classes", raw.class_files())
    items = open_items(classes, labels="none")
    assert items.class_names == () and set(items.read(0)) == {"image"}
    flat = raw.write_folder(tmp_path / "flat", {"0.png": raw.png(0)})
    raw.refused("flat: has no labels", flat, labels="required")
    raw.refused("labels = 'some' is not one of", flat, labels="some")


def test_a_split_is_a_folder_and_a_class_may_have_its_name(tmp_path):
    files = raw.class_files(("train", "boat"), prefix="ILSVRC/train/")
    files |= raw.class_files(("train", "boat"), 1, prefix="ILSVRC/val/")
    path = raw.write_tar(tmp_path / "raw", files)
    assert len(open_items(path, split="train")) == 4
    items = open_items(path, split="validation")
    assert items.class_names == ("boat", "train")
    raw.assert_pictures(items, [1, 0])
    raw.refused("train, val, which are splits", path)
    raw.refused("no images for the split 'test'", path, split="test")


@pytest.mark.parametrize("place, kind", [("tar", "auto"), ("folder", "tar")])
def test_a_tar_of_class_tars(tmp_path, place, kind):
    # As ILSVRC2012_img_train.tar: an inner tar has the name of its class.
    outer = {}
    for name, numbers in (("n02", (0, 1)), ("n01", (2, 3))):
        files = {f"{name}_{number % 2}.JPEG": raw.png(number) for number in numbers}
        outer[f"{name}.tar"] = raw.tar_bytes(files)
    items = open_items(raw.WRITERS[place](tmp_path / "n01.tar", outer), kind=kind)
    assert items.class_names == ("n01", "n02") and raw.labels_of(items) == [0, 0, 1, 1]
    raw.assert_pictures(items, [2, 3, 0, 1])
    assert items.name(0).endswith("n01.tar: n01/n01_0.JPEG")


@pytest.mark.parametrize("kind, write", raw.WRITERS.items())
def test_a_label_file_for_images_without_class_folders(tmp_path, kind, write):
    path = write(tmp_path / "raw", flat_files())
    labels = tmp_path / "labels.csv"
    labels.write_text("ImageId,PredictionString\n2,n07 1 2\nb/0.png n03\n1.png,n07\n")
    items = open_items(path, label_file=labels)
    assert items.class_names == ("n03", "n07") and raw.labels_of(items) == [0, 1, 1]
    raw.assert_pictures(items, [0, 1, 2])
    labels.write_text("0 4\n1 1\n2 2\n")
    assert raw.labels_of(open_items(path, label_file=labels, label_base=1)) == [3, 0, 1]


# --- copies, threads, identity --------------------------------------------------------


@pytest.mark.parametrize("kind, write", PLACES)
def test_copies_are_read_in_threads_and_the_origin_tells_data_apart(
    tmp_path, kind, write
):
    items = open_items(write(tmp_path / "raw", raw.class_files()))
    copy = pickle.loads(pickle.dumps(items))
    raw.assert_pictures(copy, [2, 3, 0, 1])
    assert copy.name(3) == items.name(3)
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        list(threads.map(raw.assert_pictures, [items] * 8, [[2, 3, 0, 1]] * 8))
    again = open_items(write(tmp_path / "raw", raw.class_files()))
    assert json.loads(json.dumps(items.origin)) == again.origin
    more = open_items(write(tmp_path / "raw", raw.class_files(count=3)))
    assert items.origin != more.origin


# --- webdataset -----------------------------------------------------------------------


def shard(first, label="cls", count=2):
    files = {}
    for number in range(first, first + count):
        files[f"{number:04d}.seg.txt"] = b"caption"
        files[f"{number:04d}.jpg"] = raw.png(number)
        content = {"cls": b"%d" % (number % 3), "json": b'{"y": "k%d"}' % (number % 3)}
        if label:
            files[f"{number:04d}.{label}"] = content[label]
    return files


@pytest.mark.parametrize("label", ["cls", "json", ""])
def test_webdataset_shards(tmp_path, label):
    tars = {f"x-{n}.tar": raw.tar_bytes(shard(2 * n, label)) for n in (1, 0)}
    raw.write_folder(tmp_path / "raw", tars)
    for name in ("", "x-*.tar", "x-{0..1}.tar"):
        path = tmp_path / "raw" / name
        items = open_items(path, label_key="y")
        assert items.origin["kind"] == "webdataset"
        raw.assert_pictures(items, [0, 1, 2, 3])
        names = {"cls": ("0", "1", "2"), "json": ("k0", "k1", "k2"), "": ()}
        assert items.class_names == names[label]
        if label:
            assert raw.labels_of(items) == [0, 1, 2, 0]
    assert items.name(2).endswith("x-1.tar: 0002.jpg")


def test_a_range_of_shards_has_all_of_its_numbers(tmp_path):
    tars = {f"x-{n:03d}.tar": raw.tar_bytes(shard(n)) for n in (8, 10)}
    raw.write_folder(tmp_path, tars)
    path, message = tmp_path / "x-{008..010}.tar", r"1 of 3 shards .*x-009\.tar"
    raw.refused(message, path, error=FileNotFoundError)


def test_one_tar_is_shards_where_labels_lie_beside_images(tmp_path):
    assert detect_kind(raw.write_tar(tmp_path / "a", shard(0))) == "webdataset"
    files = {"LICENSE.txt": b"", **flat_files()}
    assert detect_kind(raw.write_tar(tmp_path / "b", files)) == "tar"


def without(files, name):
    return {key: value for key, value in files.items() if key != name}


BAD_SHARDS = {
    "a label is missing": (without(shard(0), "0001.cls"), "0001.jpg: has no label"),
    "a label is no number": ({**shard(0), "0001.cls": b"cat"}, "0001.cls: b'cat'"),
    "a label is negative": ({**shard(0), "0001.cls": b"-1"}, "0001.jpg: the label -1"),
    "an image is missing": (without(shard(0), "0001.jpg"), "0001.*there is no image"),
    "two images": ({**shard(0), "0001.png": b""}, "0001.png: a second image"),
    "no json": ({**shard(0, "json"), "0001.json": b"{"}, "0001.json: is not JSON"),
}


@pytest.mark.parametrize("files, message", BAD_SHARDS.values(), ids=BAD_SHARDS)
def test_bad_shards(tmp_path, files, message):
    path = raw.write_tar(tmp_path / "a.tar", files)
    raw.refused(message, path, label_key="y", error=ItemError)


# --- EDM and EDM2 ---------------------------------------------------------------------


def edm_files(labels=(3, 0, 1)):
    names = [f"00000/img{n:08d}.png" for n in range(3)]
    listed = [[names[n], label] for n, label in zip((2, 0, 1), labels, strict=True)]
    files = {name: raw.png(n, 4, 4) for n, name in enumerate(names)}
    return {**files, "dataset.json": json.dumps({"labels": listed}).encode()}


@pytest.mark.parametrize("write", [raw.write_zip, raw.write_folder])
def test_edm_images_are_in_the_order_of_their_labels(tmp_path, write):
    items = open_items(write(tmp_path / "raw", edm_files()))
    assert items.origin["kind"] == "edm"
    assert raw.labels_of(items) == [3, 0, 1] and len(items.class_names) == 4
    raw.assert_images(items, [raw.picture(n, 4, 4) for n in (2, 0, 1)])


@pytest.mark.parametrize("content", [{"labels": None}, {}])
def test_edm_without_labels(tmp_path, content):
    files = {**edm_files(), "dataset.json": json.dumps(content).encode()}
    items = open_items(raw.write_zip(tmp_path / "raw.zip", files))
    assert items.class_names == () and len(items) == 3
    np.testing.assert_array_equal(items.read(2)["image"], raw.picture(2, 4, 4))


@pytest.mark.parametrize("write", [raw.write_zip, raw.write_folder])
def test_edm2_latents_are_channels_last(tmp_path, write):
    latent = np.random.default_rng(0).normal(size=(8, 6, 4)).astype(np.float32)
    listed = b'{"labels": [["00000/img-mean-std-00000000.npy", 7]]}'
    files = {"00000/img-mean-std-00000000.npy": raw.npy(latent), "dataset.json": listed}
    items = open_items(write(tmp_path / "raw", files), num_classes=1000)
    item = items.read(0)
    assert item["latent"].shape == (6, 4, 8) and item["latent"].dtype == np.float32
    np.testing.assert_array_equal(item["latent"][2, 3], latent[:, 2, 3])
    assert item["label"] == 7 and len(items.class_names) == 1000


FIRST = "00000/img00000000.png"
BAD_EDM = {
    "missing file": (without(edm_files(), FIRST), "raw: .*names.*0000.png.*not there"),
    "missing label": ({**edm_files(), "00000/9.png": b""}, "9.png: dataset.json does"),
    "not JSON": ({**edm_files(), "dataset.json": b"{"}, "dataset.json: is not JSON"),
    "vectors": (edm_files((1, [0.5], 2)), "img00000000.png: the label .0.5. is not"),
    "negative": (edm_files((1, -1, 2)), "img00000000.png: the label -1 is out of"),
    "huge": (edm_files((1, 10**30, 2)), "img00000000.png: the label 10*0 is out of"),
    "both": ({**edm_files(), "0.npy": b""}, "3 images and 1 latents"),
    "no labels": ({**edm_files(), "dataset.json": b'{"labels": 3}'}, "is not {"),
    "no pairs": ({**edm_files(), "dataset.json": b'{"labels": [3]}'}, "the entry 3"),
}


@pytest.mark.parametrize("files, message", BAD_EDM.values(), ids=BAD_EDM)
def test_bad_edm_archives(tmp_path, files, message):
    raw.refused(message, raw.write_zip(tmp_path / "raw", files))


BAD_LATENTS = {
    "double": (raw.npy(np.zeros((8, 2, 2))), "float64"),
    "flat": (raw.npy(np.zeros((8, 4), np.float32)), r"float32 \(8, 4\)"),
    "nan": (raw.npy(np.full((8, 2, 2), np.nan, np.float32)), "not finite"),
    "cut off": (raw.npy(np.zeros((8, 2, 2), np.float32))[:-1], "cut off"),
    "objects": (raw.npy(np.array([[["a"]]], object)), "not a numpy array"),
}


@pytest.mark.parametrize("content, message", BAD_LATENTS.values(), ids=BAD_LATENTS)
def test_bad_latents(tmp_path, content, message):
    files = {"a.npy": content, "dataset.json": b"{}"}
    items = open_items(raw.write_zip(tmp_path / "raw", files))
    with pytest.raises(ItemError, match=f"a.npy: .*{message}"):
        items.read(0)


# --- bad input ------------------------------------------------------------------------


@pytest.mark.parametrize("kind, write", PLACES)
def test_an_image_that_is_cut_off_is_named(tmp_path, kind, write):
    good = raw.encode(raw.picture(0, 40, 40), "JPEG")
    files = {"0.jpg": good, "1.jpg": good[: len(good) // 2], "2.jpg": b"text"}
    items = open_items(write(tmp_path / "raw", files))
    assert items.read(0)["image"].shape == (40, 40, 3)
    for index in (1, 2):
        with pytest.raises(ItemError, match=f"raw: {index}.jpg: .*does not decode"):
            items.read(index)


@pytest.mark.parametrize("kind, write", raw.WRITERS.items())
def test_an_image_outside_of_the_class_folders_is_named(tmp_path, kind, write):
    path = write(tmp_path / "raw", {**raw.class_files(), "stray.png": raw.png(9)})
    raw.refused("raw: stray.png: lies outside", path, error=ItemError)
    assert len(open_items(path, labels="none")) == 5


def test_an_empty_class_folder_would_shift_the_classes(tmp_path):
    path = raw.write_folder(tmp_path / "raw", raw.class_files(prefix="train/"))
    (path / "train" / "bat").mkdir()
    raw.refused("the class folder train/bat/ is empty", path)
    (path / "train" / "bat").rmdir()
    (path / "train" / "cat" / "none").mkdir()
    assert len(open_items(path)) == 4


def test_there_must_be_as_many_class_folders_as_classes(tmp_path):
    path = raw.write_folder(tmp_path / "raw", raw.class_files())
    for number in (1, 3):
        raw.refused(f"has 2 classes, expected are {number}", path, num_classes=number)


@pytest.mark.parametrize("size", [0, 100, 600, 700, 1100])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_an_archive_that_is_cut_off(tmp_path, kind, size):
    path = raw.WRITERS[kind](tmp_path / "raw", raw.class_files(count=8))
    path.write_bytes(path.read_bytes()[:size])
    raw.refused("raw: .*cut off or damaged", path, kind=kind)
    if size > 512:
        raw.refused("raw: .*cut off or damaged", path)


ONE = raw.tar_bytes({"0.png": raw.png(0)})
BROKEN_TARS = {
    "raw: .*it has no end mark": ONE[:1024],  # what is there is whole
    "raw: b.tar: .*cut off": raw.tar_bytes({"a.tar": ONE, "b.tar": ONE[:600]}),
    "raw: holds 0.png twice": ONE[:1024] + ONE,  # a header and its file
    "raw: is compressed with gzip": raw.tar_bytes({}, mode="w:gz"),
    "raw: is compressed with xz": raw.tar_bytes({}, mode="w:xz"),
}


@pytest.mark.parametrize("message", BROKEN_TARS)
def test_broken_tars(tmp_path, message):
    (tmp_path / "raw").write_bytes(BROKEN_TARS[message])
    for kind in ("tar", "auto"):
        raw.refused(message, tmp_path / "raw", kind=kind)


def test_damage_in_a_zip_is_found_by_its_checksum(tmp_path):
    path = raw.write_zip(tmp_path / "raw", {"0.bmp": raw.encode(raw.picture(0), "BMP")})
    content = bytearray(path.read_bytes())
    content[100] ^= 1  # a pixel: the image would decode
    path.write_bytes(content)
    with pytest.raises(ItemError, match="raw: 0.bmp: .*CRC"):
        open_items(path).read(0)


def test_an_archive_that_shrank_since(tmp_path):
    path = raw.write_tar(tmp_path / "raw", raw.class_files())
    items = open_items(path)
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(ItemError, match="cat/1.png: .*the file ends before it"):
        items.read(3)


def test_other_compression_of_a_zip_is_refused(tmp_path):
    lzma = {"compression": zipfile.ZIP_LZMA}
    path = raw.write_zip(tmp_path / "raw", raw.class_files(), **lzma)
    raw.refused("cat/0.png is encrypted or compressed", path)


def test_nothing_there(tmp_path):
    raw.refused("is an empty folder", tmp_path)
    raw.refused("holds no images; image files end in .png", tmp_path, kind="folder")
    raw.refused("holds no images", raw.write_tar(tmp_path / "a.tar", {}))
    path = raw.write_zip(tmp_path / "a.zip", {"a.heic": b"", "b.heic": b""})
    raw.refused("holds no images.*not used: 2 .heic", path)
    for kind in ("auto", "zip", "webdataset"):
        raw.refused("missing", tmp_path / "missing", kind=kind, error=FileNotFoundError)


def test_a_file_of_an_unknown_kind(tmp_path):
    (tmp_path / "raw").write_bytes(b"text")
    listed = ".*".join(rf"{kind} \(" for kind in SOURCES)
    raw.refused(f"raw: is of no known kind.*{listed}", tmp_path / "raw")
    raw.refused("kind = 'zpi' is not one of.*mean 'zip'", tmp_path / "raw", kind="zpi")
