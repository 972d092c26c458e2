"""Constants of a graph that TensorFlow wrote (``golden/make_graph_def.py``)."""

import pathlib

import numpy as np
import pytest

from scm_jax.files.graph_def import read_constants

GOLDEN = pathlib.Path(__file__).parents[1] / "golden/constants.pb"
RAMP = np.arange(24, dtype=np.float32).reshape(2, 3, 4) / 8 - 1


def test_constants_of_tensorflow_have_their_values():
    constants = read_constants(GOLDEN)
    assert list(constants) == ["conv/conv2d_params", "conv/gamma", "scalar"]
    np.testing.assert_array_equal(constants["conv/conv2d_params"], RAMP)
    np.testing.assert_array_equal(constants["conv/gamma"], np.full(5, 0.5))
    assert constants["scalar"].shape == () and constants["scalar"] == 2.5
    assert {x.dtype for x in constants.values()} == {np.dtype(np.float32)}


def test_a_file_that_is_cut_off(tmp_path):
    """At any place: an error, or what stands before it where a node ends there."""
    whole, path = GOLDEN.read_bytes(), tmp_path / "cut.pb"
    complete = {name: x.tobytes() for name, x in read_constants(GOLDEN).items()}
    refused = 0
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        try:
            got = read_constants(path)
        except ValueError as error:
            assert "cut.pb" in str(error)
            refused += 1
        else:
            assert got and all(x.tobytes() == complete[n] for n, x in got.items())
    assert refused > 0.9 * len(whole)


@pytest.mark.parametrize(
    "content",
    [b"", b"some text", b"\xff" * 40, b"PK\x03\x04", b"\x0a\x00"],
    ids=["empty", "text", "ones", "zip", "node"],
)
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "other.pb"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"other\.pb"):
        read_constants(path)


def test_a_constant_with_too_few_bytes_is_named(tmp_path):
    """The ramp's last dimension, 4, becomes 5."""
    content = GOLDEN.read_bytes()
    shape = b"\x12\x02\x08\x02\x12\x02\x08\x03\x12\x02\x08\x04"
    assert content.count(shape) == 1
    path = tmp_path / "graph.pb"
    path.write_bytes(content.replace(shape, shape[:-1] + b"\x05"))
    with pytest.raises(ValueError, match=r"conv2d_params \(2, 3, 5\) has 96 bytes"):
        read_constants(path)
