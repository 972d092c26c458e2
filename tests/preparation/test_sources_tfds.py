"""Datasets that tfds has prepared, read without TensorFlow."""

import json
import pickle

import numpy as np
import pytest

from scm_jax.datasets.preparation.readers import tfds_items
from scm_jax.datasets.preparation.readers.decode import to_channels
from scm_jax.datasets.preparation.readers.sources import open_items
from tests.preparation.made_items import arrays, run
from tests.preparation.raw_data import refused

IMAGES = arrays(4, (2, 3, 3)).fields["image"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("tfds")
    run(arrays(4, (2, 3, 3), classes=2), root)
    run(arrays(1, (2, 3, 3), classes=2), root, split="test")
    return root


def test_a_prepared_folder_and_its_name(root, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(root))
    monkeypatch.setenv("SCM_JAX_DATA", str(root / "elsewhere"))
    for path in (root / "tiny" / "1.0.0", root / "tiny", "tfds:tiny"):
        items = open_items(path)
        assert items.origin["kind"] == "tfds"
        assert items.class_names == ("a", "b") and len(items) == 4
        item = pickle.loads(pickle.dumps(items)).read(3)
        np.testing.assert_array_equal(item["image"], IMAGES[3])
        assert item["label"] == 1
        assert json.loads(json.dumps(items.origin)) == items.origin
        assert str(items.origin["num_bytes"]).isdecimal()
    assert items.name(3).endswith("tiny/1.0.0: train: item 3")


def test_splits_labels_and_grey(root):
    path = root / "tiny"
    assert len(open_items(path, split="test")) == 1
    assert len(open_items(path, split="train[1:3]")) == 2
    items = open_items(path, labels="none", channels=1)
    assert items.class_names == () and set(items.read(0)) == {"image"}
    np.testing.assert_array_equal(items.read(2)["image"], to_channels(IMAGES[2], 1))
    refused("split = 'val' is not one of", path, split="val")
    assert open_items(path, label_base=1).read(1)["label"] == 0


@pytest.mark.parametrize("tensorflow", [None, "a spec"])
def test_what_is_not_prepared_says_how(monkeypatch, tmp_path, tensorflow):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(tfds_items.importlib.util, "find_spec", lambda _: tensorflow)
    with pytest.raises(FileNotFoundError) as raised:
        open_items("tfds:imagenet_resized/64x64")
    said = str(raised.value)
    assert f"{tmp_path}. Prepare it with `tfds build imagenet_resized/64x64 --f" in said
    assert ("pip install 'scm_jax[tf]'" in said) == (tensorflow is None)


def test_records_without_access_by_number_are_refused(root, tmp_path):
    folder = tmp_path / "1.0.0"
    folder.mkdir()
    for file in (root / "tiny" / "1.0.0").glob("*.json"):
        text = file.read_text().replace('"array_record"', '"tfrecord"')
        (folder / file.name).write_text(text)
    refused("1.0.0: is prepared as tfrecord.*tfds build", folder)
