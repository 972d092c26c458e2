"""Published weights: where they are looked for, and what is said if they are absent."""

import hashlib

import numpy as np
import pytest

from scm_jax.files import atomic, catalogue
from scm_jax.files.catalogue import find_weights
from scm_jax.files.tensors import tensors_sha256

FILES = {"first.pth": "https://example.org/first.pth", "second.npz": "likewise"}


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """The two folders of a network, both empty: of the variable and of the user."""
    monkeypatch.setitem(catalogue.PUBLISHED, "net", FILES)
    monkeypatch.setenv("SCM_JAX_WEIGHTS", str(tmp_path / "variable"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folders = tmp_path / "variable/net", tmp_path / "home/.cache/scm_jax/weights/net"
    for folder in folders:
        folder.mkdir(parents=True)
    return folders


def test_the_variable_comes_before_the_cache(folders, tmp_path):
    variable, cache = folders
    for file in (cache / "second.npz", cache / "first.pth", variable / "second.npz"):
        file.touch()
        assert find_weights("net") == find_weights("net", "") == file
    # An explicit path is taken, whatever its name.
    path = tmp_path / "other"
    path.touch()
    assert find_weights("net", str(path)) == find_weights("net", path) == path


@pytest.mark.parametrize("path", [None, "", "gone.pth"])
def test_a_missing_file_says_what_to_get_and_where_to_put_it(folders, path):
    if path:  # what lies in the usual place is not what was asked for
        (folders[0] / "first.pth").touch()
    with pytest.raises(FileNotFoundError) as caught:
        find_weights("net", path)
    message = str(caught.value)
    start = "no weights of net at gone.pth." if path else "no weights of net."
    assert message.startswith(start)
    assert "first.pth: https://example.org/first.pth" in message
    assert all(f"  {folder}\n" in message + "\n" for folder in folders)
    assert "SCM_JAX_WEIGHTS" not in message


def test_an_empty_variable_is_none(folders, monkeypatch):
    monkeypatch.setenv("SCM_JAX_WEIGHTS", "")
    (only,) = catalogue.roots()
    assert only == folders[1].parent
    with pytest.raises(FileNotFoundError, match=r"\$SCM_JAX_WEIGHTS/net, a variable"):
        find_weights("net")


def test_an_unknown_name_lists_the_known():
    with pytest.raises(ValueError, match="did you mean 'sd-vae-ft-mse'"):
        find_weights("sd-vae-ft-mae")


def test_the_hash_of_a_file_is_that_of_its_bytes(tmp_path):
    (tmp_path / "file").write_bytes(b"weights")
    expected = hashlib.sha256(b"weights").hexdigest()
    assert atomic.file_sha256(tmp_path / "file") == expected


def test_the_hash_of_tensors_sees_names_shapes_and_values():
    a, b = np.arange(4.0), np.ones(4)
    swapped, reshaped = {"a": b, "b": a}, {"a": a.reshape(2, 2), "b": b}
    all_tensors = ({"a": a, "b": b}, swapped, reshaped, {"a": a, "c": b})
    hashes = {tensors_sha256(tensors) for tensors in all_tensors}
    assert len(hashes) == 4
    assert tensors_sha256({"b": b, "a": a}) in hashes
