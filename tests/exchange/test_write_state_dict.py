"""Weights that are written and read again, bit for bit."""

import numpy as np
import pytest

from scm_jax.files.state_dict import read_state_dict, write_state_dict
from scm_jax.files.torch_files import DTYPES
from tests.exchange.torch_pickles import assert_same, ramp, write

ONE = {"w": ramp(2)}


def any_bits(dtype, *shape):
    """Every value of a dtype is as likely as any other: NaN, infinity, -0 too."""
    content = np.random.default_rng(0).bytes(int(np.prod(shape)) * dtype.itemsize)
    if dtype == np.bool_:
        content = bytes(byte & 1 for byte in content)
    return np.frombuffer(content, dtype).reshape(shape)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_written_and_read_again_bit_for_bit(suffix, dtype, tmp_path):
    state = {
        "enc.8x8_conv.weight": any_bits(dtype, 3, 2, 2),
        "transposed": any_bits(dtype, 3, 4).T,
        "strided": any_bits(dtype, 6, 6)[1::2, ::3],
        "backwards": any_bits(dtype, 5)[::-1],
        "one_of_backwards": any_bits(dtype, 5)[::-1][:1],
        "scalar": any_bits(dtype),
        "empty": any_bits(dtype, 0, 3),
        "file": any_bits(dtype, 1),
        "x": any_bits(dtype, 2),
        "x.npy": any_bits(dtype, 3),
        "größe/λ": any_bits(dtype, 2),
    }
    path = tmp_path / f"a{suffix}"
    if (suffix, dtype.name) in {(".npz", "bfloat16"), (".safetensors", "complex128")}:
        with pytest.raises(ValueError, match=f"is of dtype {dtype}; {suffix} can hold"):
            write_state_dict(path, state)
        assert not list(tmp_path.iterdir())
        return
    write_state_dict(path, state)
    again = read_state_dict(path)
    assert sorted(again) == sorted(state)
    for name in state:
        assert_same(again[name], state[name])
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    (tmp_path / "plain").touch()  # with the rights of an ordinary file
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_order_of_bytes_and_of_names_is_kept(tmp_path):
    state = {"z": ramp(3).astype(">f4"), "a": np.complex64([1 + 2j]), "m": 2.5}
    path = tmp_path / "a.npz"
    write_state_dict(path, state)
    again = read_state_dict(path)
    assert list(again) == list(state)
    assert_same(again["z"], ramp(3))
    assert_same(again["m"], np.array(2.5))
    first = path.read_bytes()
    write_state_dict(path, state)
    assert path.read_bytes() == first


def test_npz_is_read_by_numpy_and_numpys_is_read_here(tmp_path):
    write_state_dict(tmp_path / "a.npz", {"net.w": ramp(2, 3), "file": ramp(1)})
    with np.load(tmp_path / "a.npz", allow_pickle=False) as loaded:
        assert_same(loaded["net.w"], ramp(2, 3))
        assert_same(loaded["file"], ramp(1))
    columns = np.asfortranarray(ramp(2, 3)).astype(">f4")
    np.savez_compressed(tmp_path / "b.npz", w=columns)
    array = read_state_dict(tmp_path / "b.npz")["w"]
    assert_same(array, ramp(2, 3))
    assert array.flags.c_contiguous


@pytest.mark.parametrize(
    "name, state, message",
    [
        ("a.pt", ONE, "must be one of .safetensors, .npz; PyTorch reads .safetensors"),
        ("a.npz", {"w": np.array(["x"])}, "'w' is of dtype <U1; .npz can hold float32"),
        ("a.npz", {"w": np.zeros(1, np.uint16)}, "'w' is of dtype uint16"),
        ("a.npz", {"": ramp(1)}, "the name '' is no text"),
        ("a.npz", {3: ramp(1)}, "the name 3 is no text"),
        ("a.npz", {"a\0b": ramp(1)}, "no text without a zero byte"),
        ("a.safetensors", {"__metadata__": ramp(1)}, "'__metadata__' is not a name"),
    ],
)
def test_what_cannot_be_written_is_named_and_leaves_the_old_file(
    name, state, message, tmp_path
):
    old = write(tmp_path / name, b"old")
    with pytest.raises(ValueError, match=message):
        write_state_dict(old, state)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"old"]
