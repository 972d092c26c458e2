"""The pickle machine by itself: plain values as they were, all else as records."""

import collections
import io
import pickle

import pytest

from scm_jax.files.inert_pickle import (
    Attributed,
    Record,
    UnsafePickleError,
    is_name,
    read_pickle,
)


def read(content, builders=None, known=(), persistent=None):
    return read_pickle(
        io.BytesIO(content),
        where="a.pkl",
        builders=builders or {},
        is_known=lambda module, name: f"{module}.{name}" in known,
        persistent=persistent,
    )


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_are_what_pickle_reads(protocol):
    shared = ["again"]
    value = {
        "numbers": [0, 255, -(2**31) - 1, 2**3000, 0.1, -0.0],
        "words": ["", "größe λ 🙂", "x" * 300, 'quote"\\\n'],
        ("tuple", 1): (None, True, (2,), (3, 4), (5, 6, 7), (8, 9, 10, 11)),
        "shared": [shared, shared],
        3: {},
    }
    if protocol >= 4:
        value["sets"] = [set(), {1, "a"}, frozenset({(1, 2)}), b"y" * 70_000]
    # The writer in Python has other opcodes.
    for content in (pickle.dumps(value, protocol), pickle._dumps(value, protocol)):
        again = read(content)
        assert again == value
        assert again["shared"][0] is again["shared"][1]


@pytest.mark.parametrize("protocol", range(2, 6))
def test_objects_are_records_of_what_would_have_made_them(protocol):
    got = read(pickle.dumps([1 + 2j, complex], protocol), known={"builtins.complex"})
    assert isinstance(got[0], Record)
    assert (got[0].maker, got[0].args) == ("builtins.complex", (1.0, 2.0))
    assert is_name(got[1])
    assert got[1].maker == "builtins.complex"


class Point:
    def __init__(self):
        self.x = 1


@pytest.mark.parametrize("protocol", range(2, 6))
def test_a_state_stays_beside_the_object(protocol):
    name = f"{__name__}.Point"
    got = read(pickle.dumps(Point(), protocol), known={name})
    assert (got.maker, got.args, got.state) == (name, (), {"x": 1})
    for content in (b"(K\x01ia\nPoint\n.", b"(ca\nPoint\nK\x01o."):  # as long ago
        got = read(content, known={"a.Point"})
        assert (got.maker, got.args, got.state) == ("a.Point", (1,), None)


def test_builders_make_what_is_wanted_and_attributes_of_dicts_are_left_out():
    value = collections.OrderedDict(b=1, a=2)
    value.note = "an attribute"
    content = pickle.dumps(value, 2)
    got = read(content, builders={"collections.OrderedDict": Attributed})
    assert got == {"b": 1, "a": 2}
    assert list(got) == ["b", "a"]


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (pickle.dumps({1, 2}, 2), "set"),  # __builtin__.set, as in Python 2
        (pickle.dumps([1, eval]), "eval"),  # a name that is not called
    ],
)
def test_other_names_are_refused(content, name):
    with pytest.raises(UnsafePickleError, match=rf"a\.pkl: .* for builtins\.{name}, "):
        read(content)


@pytest.mark.parametrize("state", [{"state": 1}, (None, {"build": 1})])
def test_a_state_sets_no_attribute_of_a_name(state):
    for name, known, builders in [
        ("a.Point", {"a.Point"}, {}),
        ("a.Dict", (), {"a.Dict": Attributed}),
    ]:
        content = b"\x80\x02c" + name.replace(".", "\n").encode() + b"\n"
        state_opcodes = pickle.dumps(state, 2)[2:-1]
        with pytest.raises(ValueError, match=r"a\.pkl"):
            read(content + state_opcodes + b"b.", builders, known)


def test_a_key_is_no_tuple_of_tuples():
    def tuples(depth):
        return b"\x80\x02})" + b"\x85" * depth + b"K\x00s."

    assert read(tuples(1)) == {((),): 0}
    value = {"values": ((((1,),),),), ("a", 1): ((2,),)}
    assert read(pickle.dumps(value)) == value
    for content in (
        tuples(3000),
        b"\x80\x02})" + b"\x85q\x000h\x00" * 3000 + b"K\x00s.",  # by the memo
        b"\x80\x02})" + b"2\x86" * 3000 + b"K\x00s.",
        b"\x80\x04\x8f()" + b"2\x86" * 3000 + b"\x90.",
        b"\x80\x04()" + b"\x85\x94" * 3000 + b"\x91.",
    ):
        with pytest.raises(ValueError, match=r"a\.pkl.* tuple of tuples as a key"):
            read(content)


def test_an_index_of_the_memo_takes_no_memory_of_its_own():
    assert read(b"\x80\x02]r\xff\xff\xff\xff.") == []
