"""Combinators: what they list, in which order, and what they refuse."""

import pytest

from scm_jax import sweeps
from scm_jax.sweeps import cross, grid, loguniform, sample, seeds, uniform


def test_a_grid_has_every_combination_and_the_last_key_varies_fastest():
    found = grid({"a": (1, 2), "b": ("x", "y", "z")})
    assert found == [{"a": a, "b": b} for a in (1, 2) for b in "xyz"]


def test_zipped_pairs_and_cross_merges():
    pairs = sweeps.zipped({"a": (1, 2), "b": (3, 4)})
    assert pairs == [{"a": 1, "b": 3}, {"a": 2, "b": 4}]
    found = cross(grid({"a": (1, 2)}), seeds(2))
    assert found == [{"a": a, "seed": s} for a in (1, 2) for s in (0, 1)]


def test_chain_copies_what_it_lists():
    first = [{"a": 1}]
    both = sweeps.chain(first, [{"b": 2}])
    both[0]["a"] = 5
    assert both[1] == {"b": 2}
    assert first == [{"a": 1}]


def test_a_longer_sample_begins_with_the_shorter_and_keys_do_not_disturb():
    axes = {"lr": loguniform(1e-4, 1e-2), "mean": uniform(-2, 0), "norm": ("l2", "no")}
    few, many = sample(5, 7, axes), sample(40, 7, axes)
    assert many[:5] == few
    alone = sample(5, 7, {"mean": axes["mean"]})
    assert [d["mean"] for d in alone] == [d["mean"] for d in few]
    assert sample(5, 8, axes) != few
    assert all(1e-4 <= d["lr"] <= 1e-2 and -2 <= d["mean"] <= 0 for d in many)
    pairs = sample(8, 0, {"a": uniform(0, 1), "b": uniform(0, 1)})
    assert all(d["a"] != d["b"] for d in pairs)
    assert {d["norm"] for d in many} == {"l2", "no"}
    # Uniform in the logarithm: about half of them below the geometric mean.
    assert 10 <= sum(d["lr"] < 1e-3 for d in many) <= 30


REFUSED = {
    "'a': 1, 'b': 2": lambda: sweeps.zipped({"a": (1,), "b": (3, 4)}),
    "'sct'.*write": lambda: grid({"a": "sct"}),
    "3.*write": lambda: grid({"a": 3}),
    r"\['a'\]": lambda: cross(grid({"a": (1, 2)}), grid({"a": (3,)})),
    "at least 1": lambda: seeds(0),
    "at least 0": lambda: sweeps.of_duration(-0.1),
    "0 < low": lambda: loguniform(0.0, 1.0),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_refused(message):
    with pytest.raises(ValueError, match=message):
        REFUSED[message]()
