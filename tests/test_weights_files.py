"""Published weights: where they are looked for, and what is said if they are absent."""

import hashlib

import pytest

from scm_jax import weights_files

NAME = "sd-vae-ft-mse"
FILE = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("SCM_JAX_WEIGHTS", str(tmp_path))
    return tmp_path


def test_weights_are_found_by_name_and_by_path(root):
    file = root / NAME / FILE
    file.parent.mkdir()
    file.write_bytes(b"weights")
    assert weights_files.find_weights(NAME) == file
    other = root / "elsewhere.pt"
    other.write_bytes(b"other")
    assert weights_files.find_weights(NAME, other) == other
    assert weights_files.sha256(file) == hashlib.sha256(b"weights").hexdigest()


@pytest.mark.parametrize("path", ["", "there.safetensors"])
def test_absent_weights_say_where_they_come_from_and_go(path, root):
    with pytest.raises(FileNotFoundError) as caught:
        weights_files.find_weights(NAME, path)
    message = str(caught.value)
    assert f"at {path or root / NAME / FILE}. " in message
    assert "https://huggingface.co/stabilityai/sd-vae-ft-mse" in message
    assert f"Put it at {root / NAME / FILE}" in message


def test_without_the_variable_weights_are_in_the_cache(monkeypatch):
    monkeypatch.setenv("SCM_JAX_WEIGHTS", "")
    monkeypatch.setenv("HOME", "/home/somebody")
    expected = f"/home/somebody/.cache/scm_jax/weights/{NAME}/{FILE}"
    assert str(weights_files.expected_path(NAME)) == expected


def test_an_unknown_name_lists_the_known():
    with pytest.raises(ValueError, match="did you mean 'sd-vae-ft-mse'"):
        weights_files.find_weights("sd-vae-ft-mae")
