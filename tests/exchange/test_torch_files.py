"""Weights in files: exact values, and which entry of a file holds them.

The files of ``golden/torch/`` were written by PyTorch (``golden/make_torch_files.py``);
here PyTorch is neither needed nor imported.
"""

import pickle
import shutil

import numpy as np
import pytest

from scm_jax.files.state_dict import read_groups, read_state_dict, write_state_dict
from tests.exchange.torch_pickles import (
    FILES,
    GOLDEN,
    Call,
    assert_same,
    golden_network,
    golden_tensors,
    legacy_stream,
    ramp,
    wrap_legacy,
    write,
    write_zip,
)


@pytest.mark.parametrize("suffix", [".pt", "_legacy.pt", ".safetensors"])
def test_tensors_of_torch_have_their_values(suffix):
    state = read_state_dict(GOLDEN / f"tensors{suffix}")
    expected = golden_tensors()
    order = sorted if suffix == ".safetensors" else list
    assert order(state) == order(expected)
    for key in expected:
        assert_same(state[key], expected[key])
        assert state[key].flags.c_contiguous
        assert state[key].flags.writeable
    state["shared.a"][:] = 7
    assert_same(state["shared.b"], expected["shared.b"])


@pytest.mark.parametrize(
    "name, key, dtype",
    [
        ("network_protocol2.pkl", "", np.float32),
        ("network_protocol4.pkl", "", np.float32),
        ("network_protocol4.pkl", "ema", np.float32),
        ("network_half.pkl", "", np.float16),
        ("training_state.pt", "", np.float32),
        ("training_state.pt", "net", np.float32),
    ],
)
def test_a_pickled_network_has_the_names_and_values_of_its_state_dict(
    name, key, dtype, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    state = read_state_dict(GOLDEN / name, key=key)
    expected = golden_network(dtype)
    assert list(state) == list(expected)
    for entry in expected:
        assert_same(state[entry], expected[entry])
    # The source text in the pickle would have left a file of this name here.
    assert b"module_src_was_run" in (GOLDEN / name).read_bytes()
    assert not list(tmp_path.iterdir())


def test_a_whole_network_of_torch_layers_reads_like_its_state_dict():
    whole = read_state_dict(GOLDEN / "layers_legacy.pt")
    state = read_state_dict(GOLDEN / "model.pt")
    assert list(whole) == list(state)
    assert_same(whole["1.num_batches_tracked"], np.array(0))
    assert all(np.array_equal(whole[name], state[name]) for name in whole)


def test_the_format_is_seen_in_the_content_not_in_the_suffix(tmp_path):
    for number, name in enumerate(FILES):
        copy = tmp_path / f"weights_{number}.npz"
        shutil.copy(GOLDEN / name, copy)
        assert list(read_state_dict(copy)) == list(read_state_dict(GOLDEN / name))


@pytest.mark.parametrize("protocol", range(6))
def test_numpy_arrays_in_a_pickle(protocol, tmp_path):
    state = {
        "by_rows": ramp(2, 3),
        "by_columns": np.asfortranarray(ramp(2, 3).astype(np.float64)),
        "big_endian": ramp(4).astype(">f4"),
        "number": np.float32(2.5),
        "bool": np.array([True, False]),
        "none": np.zeros((0, 2), np.int64),
    }
    path = write(tmp_path / "a.pkl", pickle.dumps(state, protocol))
    for name, array in read_state_dict(path).items():
        native = np.asarray(state[name]).dtype.newbyteorder("=")
        assert_same(array, np.asarray(state[name], native))


def test_groups_of_arrays_and_values(tmp_path):
    """What files of statistics are; keys that are no text become text."""
    file = tmp_path / "a.pkl"
    array = np.arange(6.0).reshape(2, 3).T
    top = {"n": 5, "m": np.int64(7), "list": [1], 3: {"x": array, 4: None}}
    file.write_bytes(pickle.dumps(top))
    found = read_groups(file)
    assert (found["n"], found["m"], found["list"]) == (5, 7, [1])
    assert_same(found["3"]["x"], np.ascontiguousarray(array))
    assert found["3"]["4"] is None
    file.write_bytes(pickle.dumps({"x": {"y": np.array([object])}}))
    with pytest.raises(ValueError, match=r"a\.pkl"):
        read_groups(file)


def test_numbers_of_a_big_endian_machine(rebuild, tmp_path):
    content = ramp(6).astype(">f4").tobytes()
    state = {"w": rebuild(1, (2, 2), (1, 2))}
    path = write_zip(tmp_path / "a.pt", state, [content], byteorder="big")
    assert_same(read_state_dict(path)["w"], ramp(6)[1:5].reshape(2, 2).T)
    path = write_zip(tmp_path / "a.pt", state, [content], byteorder="middle")
    with pytest.raises(ValueError, match="byte order 'middle'"):
        read_state_dict(path)


def test_a_legacy_storage_that_is_part_of_another(rebuild, tmp_path):
    tensor = rebuild(1, (2,), (1,))
    tensor.args[0].pid += (("view", 3, 3),)
    path = write(tmp_path / "a.pt", legacy_stream({"w": tensor}, [ramp(6)]))
    assert_same(read_state_dict(path)["w"], ramp(6)[4:])


@pytest.mark.parametrize("form", ["legacy", "zip"])
def test_a_storage_in_a_pickle_is_a_file_of_either_kind(
    form, nested, rebuild, tmp_path
):
    storage = rebuild(0, (), ()).args[0]
    inner = legacy_stream(storage, [ramp(6)])
    if form == "zip":
        content = ramp(6).astype("<f4").tobytes()
        inner = write_zip(tmp_path / "inner", storage, [content]).read_bytes()
    path = write(tmp_path / "a.pkl", {"ema": {"w": nested(inner, 1, (2, 2), (1, 2))}})
    assert_same(read_state_dict(path)["w"], ramp(6)[1:5].reshape(2, 2).T)
    for length in range(0, len(inner), 9):
        write(path, {"ema": {"w": nested(inner[:length])}})
        with pytest.raises(ValueError, match=r"a\.pkl.*tensor 'w'"):
            read_state_dict(path)


def test_a_storage_that_is_none(named, nested, rebuild, tmp_path):
    storage = named("torch.FloatStorage")
    for tensor, message in [
        (nested("text"), "bytes of a storage that are a str"),
        (nested(pickle.dumps(3)), "a storage that is a int"),
        (nested(wrap_legacy(pickle.dumps(3) + pickle.dumps([]))), "is a int"),
        (rebuild(0, (1,), (1,), storage=Call(storage)), r"of torch\.FloatStorage"),
        (rebuild(0, (1,), (1,), storage=storage), r"an object of torch\.FloatStorage"),
    ]:
        path = write(tmp_path / "a.pkl", {"w": tensor})
        with pytest.raises(ValueError, match=f"tensor 'w': a?.*{message}"):
            read_state_dict(path)


ONE, TWO = {"w": ramp(2)}, {"v": ramp(3)}


@pytest.mark.parametrize(
    "top, key, expected",
    [
        (ONE, "", "w"),
        ({"net": ONE, "ema": TWO}, "", "v"),
        ({"net": ONE, "ema": TWO}, "net", "w"),
        ({"model": ONE, "state_dict": TWO}, "", "v"),
        ({"model": ONE, "epoch": 3}, "", "w"),
        ({"state_dict": ONE, "net": TWO}, "", "v"),
        # What does not fit is passed over: EDM2 keeps its averages in lists.
        ({"ema": {"stds": [0.1], "emas": [TWO]}, "net": ONE}, "", "w"),
        ({"ema": None, "net": ONE}, "", "w"),
        ({"ema": {}, "net": ONE}, "", "w"),
        ({"ema": TWO, "teacher": ONE}, "teacher", "w"),
    ],
)
def test_key_chooses_the_entry(top, key, expected, tmp_path):
    state = read_state_dict(write(tmp_path / "a.pkl", top), key=key)
    assert list(state) == [expected]


@pytest.mark.parametrize(
    "top, key, message",
    [
        ({"a": ONE, "b": 3}, "", r"key.* 'a' \(a dict of 1\), 'b' \(a int\)\. Choose"),
        ({"ema": ONE}, "net", r"no key 'net'; its keys are 'ema' \(a dict of 1\)"),
        ({"ema": ONE, "b": 3}, "b", "'b' is a int, neither a state dict nor a network"),
        ({"w": ramp(2), "step": 3}, "", r"'w' \(a tensor\), 'step' \(a int\)"),
        ([ONE], "", "the file holds a list"),
        (ramp(2), "", "the file holds a tensor"),
        (ramp(2), "ema", "no key 'ema'; the file holds a tensor"),
        ({str(i): i for i in range(50)}, "", "'19' .* and 30 more"),
    ],
)
def test_a_key_that_does_not_fit_lists_what_there_is(top, key, message, tmp_path):
    path = write(tmp_path / "a.pkl", top)
    with pytest.raises(ValueError, match=message) as info:
        read_state_dict(path, key=key)
    assert str(path) in str(info.value)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_flat_formats_have_no_entries(suffix, tmp_path):
    write_state_dict(tmp_path / f"a{suffix}", ONE)
    with pytest.raises(ValueError, match="no key 'w': the format holds one state"):
        read_state_dict(tmp_path / f"a{suffix}", key="w")
