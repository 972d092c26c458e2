"""Stacked images: npz, the batches of ImageNet 64x64, CIFAR-10."""

import json
import os
import pickle

import numpy as np
import pytest

from scm_jax.datasets.preparation.readers.items import ItemError
from scm_jax.datasets.preparation.readers.sources import open_items
from scm_jax.files.inert_pickle import UnsafePickleError
from tests.preparation import raw_data as raw

IMAGES = np.stack([raw.picture(n, 4, 4) for n in range(3)])
LABELS = np.array([2, 0, 2])


def write_npz(path, save=np.savez, **arrays):
    with path.open("wb") as file:
        save(file, **arrays)
    return path


def assert_items(items, images, labels=None):
    raw.assert_images(items, images)
    if labels is None:
        assert set(items.read(0)) == {"image"}
    else:
        assert raw.labels_of(items) == list(labels)
        assert items.read(0)["label"].dtype == np.int64


# --- npz ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "image_key, label_key",
    [("images", "labels"), ("arr_0", "arr_1"), ("data", "labels"), ("images", None)],
)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path, save, image_key, label_key):
    arrays = {image_key: IMAGES} | ({label_key: LABELS} if label_key else {})
    items = open_items(write_npz(tmp_path / "raw", save, **arrays))
    assert items.origin["kind"] == "npz"
    assert_items(items, IMAGES, LABELS if label_key else None)
    assert items.class_names == (("0", "1", "2") if label_key else ())
    copy = pickle.loads(pickle.dumps(items))
    assert_items(copy, IMAGES, LABELS if label_key else None)
    assert json.loads(json.dumps(items.origin)) == items.origin
    assert "item 2" in items.name(2)


def test_layouts_of_stacked_images(tmp_path):
    planes_first = IMAGES.transpose(0, 3, 1, 2)
    for number, stored in enumerate((IMAGES, raw.planar(IMAGES), planes_first)):
        path = write_npz(tmp_path / f"{number}", images=stored)
        assert_items(open_items(path), IMAGES)
    path = write_npz(tmp_path / "grey", images=IMAGES[..., 0])
    assert_items(open_items(path, channels=1), IMAGES[..., :1])
    assert_items(open_items(path), np.repeat(IMAGES[..., :1], 3, axis=-1))


BAD_ARRAYS = {
    "floats": ({"images": IMAGES / 255}, "images: must be an array of uint8"),
    "vectors": ({"images": IMAGES[:, 0, :, 0]}, r"has the shape \(3, 4\); legal are"),
    "no images": ({"pixels": IMAGES, "y": LABELS}, "its keys are 'pixels', 'y'"),
    "one label too few": ({"images": IMAGES, "labels": LABELS[1:]}, "2 labels for 3"),
    "one-hot": ({"images": IMAGES, "labels": np.eye(3)}, "one whole number per item"),
    "negative": ({"images": IMAGES, "labels": LABELS - 1}, "item 1: the label -1"),
    "objects": ({"images": np.array([None])}, "the npz is cut off or damaged"),
    "empty": ({"images": IMAGES[:0]}, "holds no images"),
}


@pytest.mark.parametrize("arrays, message", BAD_ARRAYS.values(), ids=BAD_ARRAYS)
def test_bad_arrays(tmp_path, arrays, message):
    raw.refused(f"raw.*{message}", write_npz(tmp_path / "raw", **arrays))


def test_an_npz_that_is_cut_off(tmp_path):
    path = write_npz(tmp_path / "raw", images=IMAGES)
    path.write_bytes(path.read_bytes()[:-30])
    raw.refused("raw: .*cut off or damaged", path)


# --- ImageNet 64x64 -------------------------------------------------------------------


def batch_of(count, first, dump=pickle.dumps):
    images = np.stack([raw.picture(first + n, 2, 2) for n in range(count)])
    labels = [1 + (first + n) % 3 for n in range(count)]
    return dump({"data": raw.planar(images), "labels": labels, "mean": images[0]})


def write_batches(root):
    # Batch 10 is after batch 2, in numbers and not in letters.
    batches = {
        "train_data_batch_10": batch_of(1, 3),
        "train_data_batch_1": batch_of(2, 0, raw.pickle_of_python2),
        "train_data_batch_2": batch_of(1, 2, lambda d: pickle.dumps(d, 2)),
        "val_data": batch_of(1, 9),
    }
    return raw.write_folder(root, batches)


def test_the_pickled_batches_of_imagenet_count_from_one(tmp_path):
    path = write_batches(tmp_path / "raw")
    images = [raw.picture(n, 2, 2) for n in range(4)]
    items = open_items(path, split="train", label_base=1, num_classes=1000)
    assert_items(items, images, [0, 1, 2, 0])
    assert len(items.class_names) == 1000
    assert items.name(3).endswith("train_data_batch_10: item 0")
    assert_items(open_items(path, split="train"), images, [1, 2, 3, 1])
    validation = open_items(path, split="validation", label_base=1)
    assert_items(validation, [raw.picture(9, 2, 2)], [0])
    raw.refused("batches of several splits", path)
    few = {"split": "train", "label_base": 1, "num_classes": 2}
    message = "batch_2: item 0: the label 3.*legal are 1..2"
    raw.refused(message, path, error=ItemError, **few)


def test_items_are_read_in_any_order_from_more_files_than_are_kept(tmp_path):
    items = open_items(write_batches(tmp_path / "raw"), split="train")
    for index in (3, 0, 2, 3, 1, 0):
        assert (items.read(index)["image"] == raw.picture(index, 2, 2)).all()
    with pytest.raises(IndexError, match="item 4 of 4"):
        items.read(4)


class Trap:
    def __reduce__(self):
        return os.mkdir, ("trapped",)


def test_a_pickle_is_never_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "raw").write_bytes(pickle.dumps({"data": Trap()}))
    with pytest.raises(UnsafePickleError, match="raw: .*posix.mkdir"):
        open_items(tmp_path / "raw")
    assert not (tmp_path / "trapped").exists()


BAD_PICKLES = {
    "cut off or damaged": batch_of(1, 0)[:-20],
    "holds a list": pickle.dumps([1]),
    "data: must be an array of uint8": pickle.dumps({"data": [1], "labels": [1]}),
    # A text of 2^60 bytes, as a flipped bit can ask for.
    "the pickle is .*damaged": b"\x80\x04\x8d" + (2**60).to_bytes(8, "little") + b"abc",
}


@pytest.mark.parametrize("message", BAD_PICKLES)
def test_bad_pickles(tmp_path, message):
    (tmp_path / "raw").write_bytes(BAD_PICKLES[message])
    raw.refused(f"raw.*{message}", tmp_path / "raw")


# --- CIFAR-10 -------------------------------------------------------------------------


@pytest.mark.parametrize("python2", [True, False])
def test_cifar10_as_published(tmp_path, python2):
    files = raw.cifar10_files(python2)
    archive = raw.write_tar(tmp_path / "cifar.tar.gz", files, mode="w:gz")
    folder = raw.write_folder(tmp_path, files) / "cifar-10-batches-py"
    for path in (archive, folder):
        items = open_items(path)
        assert items.origin["kind"] == "cifar10"
        assert items.class_names == ("aeroplane", "cart")
        numbers = [10 * batch + n for batch in range(5) for n in range(2)]
        assert_items(items, [raw.picture(n, 4, 4) for n in numbers], [1, 0] * 5)
        test = open_items(path, split="test")
        assert_items(test, [raw.picture(n, 4, 4) for n in (50, 51)], [1, 0])
        assert test.origin != items.origin
        assert test.name(1).endswith("test_batch: item 1")
    unlabelled = open_items(archive, labels="none")
    assert unlabelled.class_names == () and set(unlabelled.read(0)) == {"image"}


def test_bad_cifar10(tmp_path):
    archive = raw.write_tar(tmp_path / "cifar.tar.gz", raw.cifar10_files(), mode="w:gz")
    raw.refused("cifar10 = 'val' is not one of", archive, split="val")
    short = tmp_path / "cifar-10-python.tar.gz"
    short.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    raw.refused("10-python.tar.gz: is cut off or damaged", short)
    files = raw.cifar10_files(labels_from=1)
    shifted = raw.write_tar(tmp_path / "shifted.tar.gz", files, mode="w:gz")
    message = "batch_1: item 0: the label 2.*legal are 0..1"
    raw.refused(message, shifted, error=ItemError)
    folder = raw.write_folder(tmp_path, raw.cifar10_files()) / "cifar-10-batches-py"
    (folder / "data_batch_3").unlink()
    raw.refused("data_batch_3: is not there", folder)
