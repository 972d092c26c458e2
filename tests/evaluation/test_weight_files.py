"""Where weight files are looked for."""

import pathlib

import pytest

from scm_jax.evaluation.weight_files import find_weights

FILES = {"first.pth": "https://example.org/first.pth", "second.npz": "likewise"}


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """The two folders, both empty: of the variable and of the user."""
    monkeypatch.setenv("SCM_JAX_WEIGHTS", str(tmp_path / "variable"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folders = tmp_path / "variable/net", tmp_path / "home/.cache/scm_jax/weights/net"
    for folder in folders:
        folder.mkdir(parents=True)
    return folders


def test_the_variable_comes_before_the_cache(folders):
    for folder in reversed(folders):
        (folder / "second.npz").touch()
        assert find_weights("net", FILES) == folder / "second.npz"


def test_the_first_of_the_accepted_names_is_taken(folders):
    for name in FILES:
        (folders[1] / name).touch()
    assert find_weights("net", FILES) == folders[1] / "first.pth"


def test_an_explicit_path_is_taken_whatever_its_name(folders, tmp_path):
    (folders[0] / "first.pth").touch()
    path = tmp_path / "other"
    path.touch()
    assert find_weights("net", FILES, str(path)) == pathlib.Path(path)


@pytest.mark.parametrize("path", [None, "gone.pth"])
def test_a_missing_file_says_what_to_get_and_where_to_put_it(folders, path):
    with pytest.raises(FileNotFoundError) as caught:
        find_weights("net", FILES, path)
    message = str(caught.value)
    assert (path or "no weights of net") in message
    assert "first.pth: https://example.org/first.pth" in message
    assert all(str(folder) in message for folder in folders)
