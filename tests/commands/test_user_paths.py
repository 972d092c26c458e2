"""Paths and numbers that users give: what cannot be used is told in a sentence."""

import errno
import logging
import pwd
import types

import jax
import numpy as np
import pytest

from scm_jax.commands import cli, compile_cache
from scm_jax.config import base_config
from scm_jax.datasets import storage
from scm_jax.files import catalogue, user_paths
from scm_jax.runs import sample
from scm_jax.runs.directory import reading
from scm_jax.runs.setup import experiment
from tests.commands.in_process import scm


@pytest.fixture
def no_home(monkeypatch):
    """A user id that no table knows, as containers have it."""

    def unknown(uid):
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "XDG_CACHE_HOME", "SCM_JAX_DATA", "SCM_JAX_WEIGHTS"):
        monkeypatch.delenv(name, raising=False)


def test_without_a_home_the_cache_is_off(no_home, caplog, monkeypatch):
    options = {"jax_enable_compilation_cache": True, "jax_compilation_cache_dir": None}
    monkeypatch.setattr(jax, "config", types.SimpleNamespace(**options))
    with caplog.at_level(logging.WARNING):
        assert compile_cache.enable() is None
    assert len(caplog.messages) == 1 and "home directory" in caplog.messages[0]


def test_without_a_home_data_need_a_folder(no_home, tmp_path):
    with pytest.raises(ValueError, match="SCM_JAX_DATA"):
        storage.default_root()
    assert storage.data_root(tmp_path) == tmp_path
    assert catalogue.roots() == []
    with pytest.raises(ValueError, match=r"~/x: .*absolute path"):
        user_paths.expand("~/x")


@pytest.mark.parametrize(
    "error, text",
    [
        (OSError(errno.EACCES, "Denied", "/runs"), "cannot use /runs: Denied"),
        (OSError(errno.ENOSPC, "No space left"), "No space left"),
        (FileNotFoundError("no run at /srv"), "no run at /srv"),
    ],
)
def test_an_error_of_the_system_is_a_sentence(monkeypatch, error, text):
    def fail():
        raise error

    monkeypatch.setitem(cli._COMMANDS, "x", (fail, ""))
    assert scm("x", check=1).stderr == f"scm x: {text}\n"


def test_targets_are_tried_before_the_work(tmp_path, monkeypatch):
    def load(*_):
        raise AssertionError("the work began")

    monkeypatch.setattr(sample, "load_generate", load)
    (tmp_path / "file").touch()
    for out, words in (
        (tmp_path / "file" / "a.png", "cannot use"),
        (tmp_path / "a.jpg", "legal are .png, .npy, .wav, .gif, .webp, .apng"),
    ):
        said = scm("sample", f"--run={tmp_path}", f"--out={out}", check=1).stderr
        assert words in said


@pytest.mark.parametrize(
    "flag", ["--steps=0", "--seed=-1", "--seed=4294967296", "--num=1.5", "--num=0"]
)
def test_numbers_of_flags_are_in_their_range(flag):
    assert flag in scm("sample", "--run=x", flag, check=2).stderr


def test_a_file_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file/a"):
        user_paths.writable(tmp_path / "file" / "a")
    with pytest.raises(IsADirectoryError):
        user_paths.writable(tmp_path)
    assert user_paths.writable(tmp_path / "new" / "a").parent.is_dir()
    assert not (tmp_path / "new" / "a").exists()


def test_a_full_disk_names_the_file(tmp_path, monkeypatch):
    def full(*_):
        raise OSError("100 requested and 7 written")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError, match=r"cannot write .*a\.npy: 100 requested"):
        reading.Samples(np.zeros((1, 2))).save(tmp_path / "a.npy")


def test_no_steps_are_no_default():
    config = base_config("mlp", "diffusion", "mixture")
    built = experiment.build(config)
    generate = sample.Generator(built, built.init_params()["net"])
    with pytest.raises(ValueError, match="steps"):
        generate(1, steps=0)


def test_names_of_directories_may_have_commas(tmp_path, monkeypatch):
    for name in ("a", "betas=[0.9,0.99]", "b,c", "b"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    read = cli._Directories().parse
    assert read("a,betas=[0.9,0.99],b,c") == ["a", "betas=[0.9,0.99]", "b,c"]
    assert read("b,a,nowhere") == ["b", "a", "nowhere"]
    assert read("") == read([]) == []


def test_a_tilde_that_the_shell_left_is_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cli._Paths().parse("~/run") == str(tmp_path / "run")
    assert cli._Paths().parse("run/~") == "run/~"
