"""A run knows its teacher by what it is, not by where it lies."""

import json
import logging
import os
import shutil

import pytest

from scm_jax.runs.directory import layout, linked_runs
from scm_jax.runs.directory.run_configs import config_hash


def make_run(path, width=8, links=(), **files):
    """A run directory as far as its identity goes."""
    config = {"network": {"width": width}, "teacher": {"run": ""}, "init": {"run": ""}}
    for key in links:
        section, _, name = key.partition(".")
        config[section][name] = str(links[key])
    directory = layout.RunDir(path)
    directory.write_config(config)
    for name, content in files.items():
        (directory.path / f"{name}.json").write_text(json.dumps(content))
    return directory


def with_teacher(path, teacher):
    return make_run(path, 16, {"teacher.run": teacher})


def make_pair(place, width=8):
    """A teacher of some width, and its student."""
    make_run(place / "teacher", width)
    return with_teacher(place / "scd", place / "teacher")


class TestIdentity:
    def test_it_is_the_hash_of_the_config(self, tmp_path):
        widths = {"a": 8, "b": 8, "c": 9}
        runs = [make_run(tmp_path / name, widths[name]) for name in widths]
        first, same, other = (linked_runs.identity(run.path) for run in runs)
        assert config_hash(runs[0].read_config()) == first == same != other

    def test_the_id_of_a_sweep_tells_also_when_the_run_is_gone(self, tmp_path):
        run = make_run(tmp_path / "renamed", run={"id": "teacher-0123456789"})
        assert linked_runs.identity(run.path) == "0123456789"
        assert linked_runs.identity(tmp_path / "gone-0123456789") == "0123456789"
        assert linked_runs.identity(tmp_path / "gone") is None

    def test_a_students_identity_has_its_teachers_and_not_its_place(self, tmp_path):
        widths = {"a": 8, "b": 8, "c": 9}
        pairs = [make_pair(tmp_path / place, widths[place]) for place in widths]
        found = [linked_runs.identity(student.path) for student in pairs]
        assert found[0] == found[1] != found[2]

    def test_other_weights_are_another_run(self, tmp_path):
        runs = [make_run(tmp_path / s, imported={"sha256": s}) for s in ("one", "two")]
        assert len({linked_runs.identity(run.path) for run in runs}) == 2


class TestResume:
    @pytest.fixture
    def student(self, tmp_path):
        return make_pair(tmp_path / "a")

    def resume(self, student, teacher):
        config = student.read_config()
        config["teacher"]["run"] = str(teacher)
        student.write_config(config)

    def test_a_copy_is_the_same_run_and_its_place_is_written_down(
        self, student, tmp_path
    ):
        shutil.copytree(tmp_path / "a" / "teacher", tmp_path / "copy")
        self.resume(student, tmp_path / "copy")
        assert student.read_config()["teacher"]["run"] == str(tmp_path / "copy")
        shutil.rmtree(tmp_path / "copy")
        self.resume(student, tmp_path / "a" / "teacher")  # and back

    def test_a_link_or_a_relative_path_is_the_same_run(
        self, student, tmp_path, monkeypatch
    ):
        os.symlink(tmp_path / "a", tmp_path / "link")
        self.resume(student, tmp_path / "link" / "teacher")
        assert "link" in student.read_config()["teacher"]["run"]
        monkeypatch.chdir(tmp_path)
        self.resume(student, "a/teacher")
        assert student.read_config()["teacher"]["run"] == "a/teacher"

    def test_another_run_is_refused_with_both(self, student, tmp_path):
        other = make_run(tmp_path / "other", 9)
        with pytest.raises(ValueError, match=r"teacher\.run: .*/teacher \(run") as e:
            self.resume(student, other.path)
        assert f"(run {linked_runs.identity(other.path)}) here" in str(e.value)

    def test_another_run_in_the_same_place_is_refused(self, student, tmp_path):
        shutil.rmtree(tmp_path / "a" / "teacher")
        make_run(tmp_path / "a" / "teacher", 9)
        with pytest.raises(ValueError, match="belongs to another config"):
            self.resume(student, tmp_path / "a" / "teacher")

    def test_a_teacher_that_was_dropped_is_a_difference(self, student):
        with pytest.raises(ValueError, match=r"teacher\.run: .* there, \(none\) here"):
            self.resume(student, "")

    def test_without_a_record_a_run_that_is_gone_may_be_any(self, student, tmp_path):
        (student.path / linked_runs.LINKS_FILE).unlink()
        shutil.move(tmp_path / "a" / "teacher", tmp_path / "moved")
        with pytest.raises(ValueError, match="is gone and was not recorded"):
            self.resume(student, tmp_path / "moved")


class TestFindMoved:
    def found(self, student):
        return linked_runs.find_moved(student, layout.RunDir(student).read_config())

    def test_nothing_moved(self, tmp_path):
        make_pair(tmp_path)
        assert self.found(tmp_path / "scd") == {}

    @pytest.mark.parametrize("teacher", ["teacher", "teachers/teacher"])
    def test_both_were_moved(self, tmp_path, teacher, caplog):
        make_run(tmp_path / "a" / teacher)
        with_teacher(tmp_path / "a" / "scd", tmp_path / "a" / teacher)
        shutil.move(tmp_path / "a", tmp_path / "b")
        with caplog.at_level(logging.WARNING):
            found = self.found(tmp_path / "b" / "scd")
        assert found == {"teacher.run": str(tmp_path / "b" / teacher)}
        assert "is gone; using" in caplog.text

    def test_only_the_same_run_will_do(self, tmp_path):
        make_pair(tmp_path / "a")
        shutil.move(tmp_path / "a" / "scd", tmp_path / "b" / "scd")
        shutil.rmtree(tmp_path / "a")
        make_run(tmp_path / "b" / "teacher", 9)
        assert self.found(tmp_path / "b" / "scd") == {}

    def test_runs_of_a_sweep_are_known_by_their_name(self, tmp_path):
        name = "teacher-0123456789"
        with_teacher(tmp_path / "b" / "scd", tmp_path / "a" / name)
        make_run(tmp_path / "b" / name, run={"id": name})
        assert self.found(tmp_path / "b" / "scd") == {
            "teacher.run": str(tmp_path / "b" / name)
        }
