"""Datasets that tfds has prepared, read without TensorFlow."""

import json
import pickle

import pytest

from scm_jax.datasets import storage
from scm_jax.datasets.preparation.readers.sources import open_items
from tests.preparation.raw_data import refused

BUILDER = """
import numpy as np
import tensorflow_datasets as tfds

class Builder(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Tensor(shape=(2, 3, 3), dtype=np.uint8),
            "label": tfds.features.ClassLabel(names=["ant", "cat"]),
        }
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        return {"train": self._items(4), "test": self._items(1)}

    def _items(self, count):
        for number in range(count):
            image = np.full((2, 3, 3), number, np.uint8)
            yield number, {"image": image, "label": number % 2}

    def _generate_examples(self):
        pass
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("tfds")
    builder = root / "toy_dataset_builder.py"
    builder.write_text(BUILDER)
    storage.prepare(builder, root / "data")
    return root / "data"


def test_a_prepared_folder_and_its_name(root, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(root))
    monkeypatch.setenv("SCM_JAX_DATA", str(root / "elsewhere"))
    for path in (root / "toy" / "1.0.0", root / "toy", "tfds:toy"):
        items = open_items(path)
        assert items.origin["kind"] == "tfds"
        assert items.class_names == ("ant", "cat") and len(items) == 4
        item = pickle.loads(pickle.dumps(items)).read(3)
        assert item["image"].shape == (2, 3, 3) and item["label"] == 1
        assert (item["image"] == 3).all()
        assert json.loads(json.dumps(items.origin)) == items.origin
        assert str(items.origin["num_bytes"]).isdecimal()
    assert items.name(3).endswith("toy/1.0.0: train: item 3")


def test_splits_labels_and_grey(root):
    path = root / "toy"
    assert len(open_items(path, split="test")) == 1
    assert len(open_items(path, split="train[1:3]")) == 2
    items = open_items(path, labels="none", channels=1)
    assert items.class_names == () and set(items.read(0)) == {"image"}
    assert items.read(2)["image"].tolist() == [[[2]] * 3] * 2
    refused("split = 'val' is not one of", path, split="val")
    assert open_items(path, label_base=1).read(1)["label"] == 0


def test_what_is_not_prepared_says_how(monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    message = (
        f"{tmp_path}. Prepare it with `tfds build imagenet_resized/64x64 "
        "--file_format=array_record`"
    )
    refused(message, "tfds:imagenet_resized/64x64", error=FileNotFoundError)


def test_a_missing_tensorflow_is_mentioned(monkeypatch, tmp_path):
    from scm_jax.datasets.preparation.readers import tfds_items

    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    for there in (None, "a spec"):
        monkeypatch.setattr(
            tfds_items.importlib.util, "find_spec", lambda name, there=there: there
        )
        with pytest.raises(FileNotFoundError) as raised:
            open_items("tfds:cifar10")
        assert ("pip install 'scm_jax[tf]'" in str(raised.value)) == (there is None)


def test_records_without_access_by_number_are_refused(root, tmp_path):
    folder = tmp_path / "1.0.0"
    folder.mkdir()
    for file in (root / "toy" / "1.0.0").glob("*.json"):
        text = file.read_text().replace('"array_record"', '"tfrecord"')
        (folder / file.name).write_text(text)
    refused("1.0.0: is prepared as tfrecord.*tfds build", folder)
