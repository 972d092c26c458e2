"""Order, shards, position and checks of the finite-data pipeline."""

import dataclasses
import itertools
import json

import jax
import numpy as np
import pytest

from scm_jax.datasets import make_dataset, order, pipeline, storage
from scm_jax.types import DatasetInfo

NUM_ITEMS = 24


def numbered(num_items=NUM_ITEMS, **changes):
    """A dataset whose items are told apart by their label."""
    fields = {
        "x": np.arange(num_items * 6, dtype=np.float32).reshape(num_items, 2, 3),
        "label": np.arange(num_items, dtype=np.int32),
    }
    fields |= changes
    info = DatasetInfo("numbered", (2, 3), num_items, 0.5, num_items)
    source = pipeline.MemorySource(fields)
    return pipeline.FiniteDataset(info, source, lambda f: (f["x"], f["label"]))


def parts_of(process_count):
    """The iterators of the processes of one training."""
    indices = range(process_count)
    return [numbered().iterator(8, 5, index, process_count) for index in indices]


def take(iterator, num):
    return list(itertools.islice(iterator, num))


def labels(iterator, num):
    return np.stack([raw.fields["label"] for raw in take(iterator, num)])


def assert_same(raw, *parts):
    """Equal in all, when the rows of ``parts`` are put together."""
    together = jax.tree.map(lambda *a: np.concatenate(a), *parts)
    jax.tree.map(np.testing.assert_array_equal, together, raw)


def test_each_epoch_has_every_item_once_in_an_order_of_its_own():
    epochs = labels(numbered().iterator(8, seed=0), 9).reshape(3, NUM_ITEMS)
    assert np.sort(epochs).tolist() == [list(range(NUM_ITEMS))] * 3
    assert (epochs[0] != epochs[1]).any() and (epochs[1] != epochs[2]).any()


def test_order_is_pinned():
    """A change of the order breaks the resumption of every run there is."""
    items = order.shuffled_items(np.arange(6, 14), num_items=10, seed=3)
    assert items.tolist() == [7, 5, 3, 8, 4, 1, 2, 8]


@pytest.mark.parametrize("batch_size", [7, 60])
def test_batches_are_whole_across_the_end_of_an_epoch(batch_size):
    drawn = labels(numbered().iterator(batch_size, seed=0), 12)
    assert drawn.shape == (12, batch_size)
    whole = drawn.size // NUM_ITEMS * NUM_ITEMS
    assert set(np.bincount(drawn.reshape(-1)[:whole])) == {whole // NUM_ITEMS}


@pytest.mark.parametrize("process_count", [2, 4])
def test_shards_are_disjoint_and_together_the_global_batch(process_count):
    whole = take(numbered().iterator(8, seed=5), 7)
    shards = [take(iterator, 7) for iterator in parts_of(process_count)]
    for raw, *parts in zip(whole, *shards, strict=True):
        assert_same(raw, *parts)
    rows = [raw.fields["label"] for shard in shards for raw in shard[:3]]
    assert sorted(np.concatenate(rows)) == list(range(NUM_ITEMS))


@pytest.mark.parametrize("num_read", [0, 1, 5])
@pytest.mark.parametrize("process_count", [1, 2])
def test_restart_goes_on_bitwise_with_any_number_of_processes(num_read, process_count):
    through = numbered().iterator(8, seed=5)
    take(through, num_read)
    state = json.loads(json.dumps(through.get_state()))
    assert state == {"next_index": num_read}
    expected = take(through, 4)
    restarted = parts_of(process_count)
    for iterator in restarted:
        next(iterator)  # a state counts from wherever the iterator stands
        iterator.set_state(state)
        assert iterator.get_state() == state
    for raw, *parts in zip(expected, *restarted, strict=False):
        assert_same(raw, *parts)


def test_items_read_one_by_one_from_disk_are_the_same(digits_root):
    in_memory = make_dataset("digits", root=digits_root)
    folder = storage.prepared_folder("digits", digits_root)
    records = pipeline.read_prepared(folder, memory_limit=0)
    assert isinstance(in_memory.source, pipeline.MemorySource)
    assert isinstance(records, pipeline.RecordSource)
    from_disk = dataclasses.replace(in_memory, source=records).iterator(16, seed=1)
    expected = in_memory.iterator(16, seed=1)
    for _ in range(3):
        assert_same(next(from_disk), next(expected))
    # Batches that were read ahead do not count as consumed.
    assert from_disk.get_state() == {"next_index": 3}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0), "batch_size 0"),
        ((8, -1), "seed = -1 must be a whole number in 0..4294967295"),
        ((8, 2**32), "seed = 4294967296"),
        ((8, 0, 2, 2), r"process_index 2 is not in 0\.\.1"),
        ((10, 0, 0, 4), r"batch_size 10 .* processes, 4"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        numbered().iterator(*arguments)


@pytest.mark.parametrize("state", [{}, {"next_index": -1}, {"next": 1}])
def test_bad_position(state):
    with pytest.raises(ValueError, match="not a data position"):
        numbered().iterator(8, 0).set_state(state)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_name_the_item(value):
    x = np.zeros((NUM_ITEMS, 2, 3), np.float32)
    x[17, 1, 2] = value
    with pytest.raises(ValueError, match="'numbered': item 17 has values that are not"):
        take(numbered(x=x).iterator(8, seed=0), 3)


@pytest.mark.parametrize("value", [-1, NUM_ITEMS])
def test_labels_out_of_range_name_the_item(value):
    label = np.arange(NUM_ITEMS, dtype=np.int32)
    label[9] = value
    with pytest.raises(ValueError, match=rf"item 9 has the label {value}; legal are 0"):
        take(numbered(label=label).iterator(8, seed=0), 3)


def test_items_of_another_shape_are_refused():
    x = np.zeros((NUM_ITEMS, 3, 2), np.float32)
    with pytest.raises(ValueError, match=r"items are float32 \(3, 2\); declared"):
        next(numbered(x=x).iterator(8, seed=0))
