"""Stored data in a training: what is made on the device resumes and can be repeated."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scm_jax.datasets import pipeline
from scm_jax.training import ahead, loop, sharding
from scm_jax.types import DatasetInfo
from tests.training import toy

STEPS, NUM_ITEMS = 9, 24


def random_signs(fields, keys):
    sign = jax.vmap(lambda key: jax.random.rademacher(key, (1,), jnp.int8))(keys)
    return {**fields, "x": fields["x"] * sign}


def dataset(bad_item=None):
    """Whole numbers whose sign is drawn anew; one item can decode to infinity."""
    x = np.random.default_rng(0).integers(1, 100, (NUM_ITEMS, toy.DIM)).astype(np.int8)
    if bad_item is not None:
        x[bad_item, 3] = 0
    info = DatasetInfo("signs", (toy.DIM,), 0, 0.5, NUM_ITEMS)

    def decode(fields):
        return 20 / fields["x"].astype(np.float32), None

    return pipeline.FiniteDataset(
        info, pipeline.MemorySource({"x": x}), decode, random_signs
    )


def run(monkeypatch, directory, steps, data, **changes):
    mesh = sharding.make_mesh(sharding.MeshSpec(data=1))
    monkeypatch.setattr(toy, "place", ahead.make_place(data.to_batch, mesh))
    iterator = data.iterator(toy.BATCH, seed=1)
    return toy.run(directory, steps, data=iterator, **changes)


def test_resumption_is_bitwise_with_chance_in_the_data(tmp_path, monkeypatch):
    through = run(monkeypatch, tmp_path / "through", STEPS, dataset()).state
    run(monkeypatch, tmp_path / "resumed", 4, dataset())
    resumed = run(monkeypatch, tmp_path / "resumed", STEPS, dataset()).state
    toy.assert_same(resumed, through)
    # The signs were drawn: without them the training goes elsewhere.
    fixed = dataclasses.replace(dataset(), randomize=None)
    plain = toy.leaves(run(monkeypatch, tmp_path / "plain", STEPS, fixed).state)
    kernel = "params/net/layer/kernel"
    assert (plain[kernel] != toy.leaves(through)[kernel]).any()


def test_batch_that_was_not_finite_can_be_made_again(tmp_path, monkeypatch):
    data = dataset(bad_item=5)
    with pytest.raises(loop.NonFiniteError) as caught:
        run(monkeypatch, tmp_path, STEPS, data, max_in_flight=0)
    written = np.load(caught.value.path)
    assert written["fields/x"].dtype == np.int8
    seed, _, items = written["items"].T
    assert (seed == 1).all() and 5 in items
    np.testing.assert_array_equal(written["fields/x"], data.source.fields["x"][items])
    raw = pipeline.RawBatch({"x": written["fields/x"]}, written["items"])
    again = jax.jit(data.to_batch)(raw).x
    iterator = data.iterator(toy.BATCH, seed=1)
    iterator.set_state({"next_index": int(written["step"])})
    seen = jax.jit(data.to_batch)(next(iterator)).x
    np.testing.assert_array_equal(again, seen)
    assert np.argwhere(~np.isfinite(again)).tolist() == [
        [int(np.flatnonzero(items == 5)[0]), 3]
    ]
