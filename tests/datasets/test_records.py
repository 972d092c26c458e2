"""Records decoded a batch at a time are what tfds makes of them one by one."""

import numpy as np
import pytest
import tensorflow_datasets as tfds

from scm_jax.datasets import array_records, pipeline, storage
from tests.datasets.builders import write_builder

NUM = 7
RNG = np.random.default_rng(0)
VALUES = {
    "image": RNG.integers(0, 256, (NUM, 3, 5, 2), np.uint8),
    "plain": np.zeros((NUM, 4), np.uint8),
    "label": np.array([0, 127, 128, 2**40, -1, 300, 5]),
    "pairs": RNG.integers(-(2**31), 2**31, (NUM, 2)).astype(np.int32),
    "flag": np.array([1, 0, 0, 1, 1, 0, 1], bool),
    "latent": RNG.standard_normal((NUM, 2, 3)).astype(np.float32),
    "half": RNG.standard_normal((NUM, 6)).astype(np.float16),
    "free": RNG.integers(0, 256, (NUM, 4, 3), np.uint8),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("records")
    fields = {name: list(values) for name, values in VALUES.items()}
    fields["ragged"] = [np.zeros((2 + (item == 3), 2), np.uint8) for item in range(NUM)]
    shapes = {"free": (None, 3), "ragged": (None, 2)}
    return storage.prepare(write_builder(root, "numbers", shapes, **fields), root)


@pytest.mark.parametrize("indices", [[0], [6, 2, 2, 0], list(range(NUM))])
def test_all_types_are_read_back(folder, indices):
    source = pipeline.read_prepared(folder, memory_limit=0, fields=tuple(VALUES))
    found = source.gather(np.array(indices))
    assert set(found) == set(VALUES)
    for name, values in VALUES.items():
        assert found[name].dtype == values.dtype, name
        np.testing.assert_array_equal(found[name], values[indices], err_msg=name)
    builder = tfds.builder_from_directory(folder)
    items = builder.as_data_source(split="train").__getitems__(indices)
    for name in VALUES:
        stacked = np.stack([np.asarray(item[name]) for item in items])
        np.testing.assert_array_equal(found[name], stacked, err_msg=name)


def test_other_features_are_left_to_tfds(folder, monkeypatch):
    for dtype in (np.uint8, np.float16):
        monkeypatch.delitem(array_records._DECODERS, np.dtype(dtype))
    source = pipeline.read_prepared(folder, memory_limit=0, fields=tuple(VALUES))
    found = source.gather(np.array([3, 1]))
    for name, values in VALUES.items():
        np.testing.assert_array_equal(found[name], values[[3, 1]], err_msg=name)


def test_only_what_is_asked_for_is_read(folder):
    source = pipeline.read_prepared(folder, "train[2:]", fields=("label", "half"))
    assert list(source.fields) == ["label", "half"] and len(source) == NUM - 2
    with pytest.raises(ValueError, match="'labels' is not one"):
        pipeline.read_prepared(folder, fields=("labels",))


def test_a_record_of_another_kind_is_named(folder):
    with pytest.raises(ValueError, match=r"item 3 has 'ragged' of shape \(3, 2\)"):
        pipeline.read_prepared(folder, fields=("ragged",))
    source = pipeline.read_prepared(folder, memory_limit=0, fields=("label",))
    renamed = {"other": source.features["label"]}
    broken = array_records.RecordSource(source.records, renamed, ("other",))
    with pytest.raises(ValueError, match=r"item 4 has no 'other'; it has \['flag'"):
        broken.gather(np.array([4, 5]))
