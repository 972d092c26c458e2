"""Preparing: atomic, repeatable, by path, and clear when something is missing."""

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import scm_jax
from scm_jax.datasets import make_dataset, pipeline, storage
from tests.commands.in_process import scm
from tests.datasets.builders import write_builder
from tests.hang import HANG

ENV = os.environ | {"PYTHONPATH": str(Path(scm_jax.__path__[0]).parent)}


@pytest.fixture
def root(tmp_path):
    return tmp_path / "root"


@pytest.fixture
def builder(tmp_path):
    """A folder with a user's own builder."""
    x = [np.full(3, index, np.float32) for index in range(4)]
    return write_builder(tmp_path, "vectors", x=x)


def files(folder: Path) -> dict[str, int]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in paths}


def test_preparing_twice_does_it_once(builder, root, monkeypatch):
    folder = storage.prepare(builder, root)
    assert folder == root / "vectors/1.0.0"
    before = files(root)
    monkeypatch.setattr(storage, "_generate", None)
    assert storage.prepare(str(builder), root) == folder
    assert files(root) == before
    assert os.listdir(root) == ["vectors"]


@pytest.mark.parametrize("form", [lambda p: p, str, lambda p: next(p.glob("*.py"))])
def test_a_users_builder_works_by_path(builder, root, form):
    folder = storage.prepare(form(builder), root)
    source = pipeline.read_prepared(folder, "train[1:]")
    assert sorted(source.fields["x"][:, 0].tolist())[-1] == 3
    assert source.fields["x"].shape == (3, 3)


def test_another_process_may_finish_first(builder, root, monkeypatch):
    generate = storage._generate

    def generate_late(builder_class, folder):
        generate(builder_class, folder)
        monkeypatch.setattr(storage, "_generate", generate)
        storage.prepare(builder, root)

    monkeypatch.setattr(storage, "_generate", generate_late)
    folder = storage.prepare(builder, root)
    assert len(pipeline.read_prepared(folder)) == 4
    assert os.listdir(root) == ["vectors"]


def test_two_processes_at_once(tmp_path):
    code = (
        f"from scm_jax import datasets as d; print(d.prepare('digits', '{tmp_path}'))"
    )
    run = functools.partial(subprocess.Popen, [sys.executable, "-c", code], env=ENV)
    processes = [run(stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=HANG)[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert said == [str(tmp_path / "digits/1.0.0")] * 2
    assert make_dataset("digits", root=tmp_path).info.num_items == 1797
    assert os.listdir(tmp_path) == ["digits"]


def test_a_failure_leaves_nothing_behind(builder, root):
    (file,) = builder.glob("*.py")
    failing = "for index in range(4):\n            raise OSError('disk full')"
    file.write_text(file.read_text().replace("for index in range(4):", failing))
    with pytest.raises(OSError, match="disk full"):
        storage.prepare(builder, root)
    assert os.listdir(root) == []


def test_foreign_files_are_not_overwritten(builder, root):
    mine = root / "vectors/1.0.0/mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("keep")
    with pytest.raises(FileExistsError, match=r"1\.0\.0 already exists"):
        storage.prepare(builder, root)
    assert mine.read_text() == "keep"


def test_missing_data_name_the_command_that_prepares_them(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        make_dataset("digits", root=tmp_path)
    run = f"python -m scm_jax data prepare --dataset=digits --root={tmp_path}"
    assert f"`{run}`" in str(error.value)
    scm(*run.split()[3:])
    assert make_dataset("digits", root=tmp_path).info.num_items == 1797


def test_data_prepared_on_demand_in_the_default_root(tmp_path, monkeypatch):
    monkeypatch.setenv("SCM_JAX_DATA", str(tmp_path / "here"))
    assert make_dataset("digits", prepare=True).info.num_items == 1797
    assert (tmp_path / "here/digits/1.0.0/dataset_info.json").is_file()
    monkeypatch.setenv("SCM_JAX_DATA", "")
    assert storage.default_root() == Path.home() / ".cache/scm_jax/datasets"


def test_prepared_data_are_read_without_the_builder(digits_root, monkeypatch, tmp_path):
    monkeypatch.setattr(storage, "builders_folder", lambda: tmp_path / "gone")
    dataset = make_dataset("digits", root=digits_root, prepare=True)
    assert dataset.info.num_items == 1797


def test_unknown_builder_lists_those_there_are(tmp_path):
    message = r"found 0; builders here: \[.*'digits'"
    with pytest.raises(FileNotFoundError, match=message):
        storage.prepare("digit", tmp_path)


def test_newest_version_is_by_number(digits_root, tmp_path):
    for version in ("1.9.0", "1.10.0"):
        shutil.copytree(digits_root / "digits/1.0.0", tmp_path / f"digits/{version}")
    (tmp_path / "digits/2.0.0").mkdir()  # not prepared
    assert storage.prepared_folder("digits", tmp_path).name == "1.10.0"


def test_unknown_split_is_an_error(digits_root):
    with pytest.raises(ValueError, match="nope"):
        make_dataset("digits", "nope", root=digits_root)
    with pytest.raises(ValueError, match="has no items"):
        make_dataset("digits", "train[:0]", root=digits_root)


def test_import_needs_no_data_library():
    code = (
        "import sys, scm_jax.datasets\n"
        "heavy = ('tensorflow', 'torch', 'tensorflow_datasets', 'grain', 'sklearn')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    run = [sys.executable, "-c", code]
    assert subprocess.check_output(run, env=ENV, text=True).strip() == "[]"
