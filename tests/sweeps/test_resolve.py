"""Sweep files: from entries to runs, ids, budgets, teachers, and errors that help."""

import dataclasses
import json
import os
import textwrap

import pytest

from scm_jax import config as config_lib
from scm_jax.runs.directory import run_configs
from scm_jax.runs.estimate import describe, work
from scm_jax.runs.setup import experiment as experiment_lib
from scm_jax.sweeps.plan.planned import read_run, write_run
from scm_jax.sweeps.plan.resolve import resolve
from scm_jax.sweeps.plan.sweep_file import load_module, load_sweep

HEAD = """
from scm_jax.sweeps import *
BASE = "experiments/mixture.py:scd,quick"
METRICS = ("consistency_rmse",)
"""


@pytest.fixture
def planned(tmp_path):
    """``planned(body, arg, root)``: the runs of a sweep file with this text."""

    def make(body, arg="", root=tmp_path / "runs"):
        path = tmp_path / "tiny.py"
        path.write_text(HEAD + textwrap.dedent(body))
        return resolve(load_sweep(f"{path}:{arg}" if arg else str(path)), root)

    return make


def test_a_file_that_changes_within_a_second_is_read_again(tmp_path):
    path = tmp_path / "tiny.py"
    for width in (16, 32):
        path.write_text(f"WIDTH = {width}")
        os.utime(path, (1e9, 1e9))
        assert load_module(str(path)).WIDTH == width


def listed(*entries):
    """The text of a sweep with these entries."""
    return f"def sweep(arg=''):\n    return [{', '.join(entries)}]\n"


GRID = """
def sweep(arg=""):
    yield from cross(grid({"network.width": (16, 32)}), seeds(2))
"""


def test_entries_become_complete_configs(planned):
    found = planned(GRID)
    assert [r.overrides for r in found] == [
        {"network.width": w, "seed": s} for w in (16, 32) for s in (0, 1)
    ]
    assert [r.config["network"]["width"] for r in found] == [16, 16, 32, 32]
    run = found[2]
    accounts = describe.describe(config_lib.from_dict(dict(run.config)))
    assert run.parameters == accounts["parameters"]
    assert run.images == accounts["images"]
    assert run.train_flops == 2 * accounts["total_train_macs"]
    assert found[0].metrics == ("consistency_rmse",)
    assert found[0].sweep == "tiny"


def test_the_id_is_that_of_the_config_alone(planned, tmp_path):
    first = [r.id for r in planned(GRID)]
    assert len(set(first)) == 4
    assert first == [r.id for r in planned(GRID, root=tmp_path / "elsewhere")]
    changed = GRID.replace("seeds(2)", 'seeds(2), [{"tags": "t", "resources": "big"}]')
    assert first == [r.id for r in planned(changed)]
    longer = GRID.replace("seeds(2)", 'seeds(2), [{"train.batch_size": 64}]')
    assert not set(first) & {r.id for r in planned(longer)}
    for run in planned(GRID):
        assert run.id.rpartition("-")[2] == run_configs.config_hash(run.config)


def test_equal_entries_are_one_run_with_the_tags_of_both(planned):
    (run,) = planned(listed('{"seed": 1, "tags": "a"}', '{"seed": 1, "tags": ("b",)}'))
    assert run.tags == ("a", "b")


def test_entries_that_differ_in_what_changes_no_result_are_refused(planned):
    body = listed('{"seed": 1}', '{"seed": 1, "eval.steps": (1, 2, 3)}')
    with pytest.raises(ValueError, match=r"entry 1: duplicate id .* eval\.steps"):
        planned(body)


def test_a_budget_is_a_whole_number_of_steps(planned):
    (run,) = planned("""
        def sweep(arg=""):
            yield {"train.flops": 1e10, "optimizer.decay_images": of_duration(0.5),
                   "objective.tangent_warmup_images": of_duration(0.25)}
    """)
    batch = run.config["train"]["batch_size"]
    assert run.images % batch == 0
    assert abs(run.train_flops - 1e10) <= run.train_flops / (run.images / batch)
    assert run.config["optimizer"]["decay_images"] == 0.5 * run.images
    warmup = run.config["objective"]["tangent_warmup_images"]
    assert warmup == round(run.images / 4)
    assert type(warmup) is int
    assert run.overrides["train.duration_images"] == run.images


TEACHERS = """
def sweep(arg=""):
    for width in (16, 32):
        yield {"base": ":teacher,quick", "label": f"t{width}", "network.width": width}
    yield {"network.width": 16, "teacher.source": "run",
           "teacher.run": run_dir("t32"), "init.run": run_dir("t16")}
"""


def test_a_student_names_its_teacher_and_waits_for_it(planned, tmp_path):
    small, large, student = planned(TEACHERS)
    root = tmp_path / "runs"
    assert student.config["teacher"]["run"] == str(root / large.id)
    assert student.config["init"]["run"] == str(root / small.id)
    assert set(student.depends_on) == {small.id, large.id}
    assert student.teacher_id == large.id
    # The teacher's network is counted, not the student's twice.
    config, *teachers = (
        config_lib.from_dict(dict(run.config)) for run in (student, large, small)
    )
    built = [experiment_lib.build_abstract(config, teacher) for teacher in teachers]
    counted = [work.train_macs(each, 16) for each in built]
    assert counted[0] > counted[1]
    assert student.train_flops == 2 * counted[0] * student.images


def test_a_students_id_holds_its_teacher_but_not_the_place(planned, tmp_path):
    _, large, here = planned(TEACHERS)
    *_, there = planned(TEACHERS, root=tmp_path / "other")
    assert here.id == there.id
    *_, other = planned(TEACHERS.replace('run_dir("t32")', 'run_dir("t16")'))
    assert here.id != other.id
    # A teacher that exists is known by its config as well.
    directory = write_run(tmp_path / "moved", large)
    *_, named = planned(TEACHERS.replace('run_dir("t32")', repr(str(directory))))
    assert named.id == here.id
    assert large.id not in named.depends_on


def test_what_is_written_is_read_back(planned, tmp_path):
    run = planned(TEACHERS)[-1]
    directory = write_run(tmp_path / "runs", run)
    plain = json.loads(json.dumps(run.config))
    assert read_run(directory) == dataclasses.replace(run, config=plain)
    facts = json.loads((directory / "run.json").read_text())
    (directory / "run.json").write_text(json.dumps({**facts, "of_later": 1}))
    assert read_run(directory).id == run.id


ERRORS = [
    ('{"network.widht": 3}', r"entry 0.*'network.widht'.*did you mean 'network.width'"),
    ('{"widht": 3}', "not one of"),
    ('{"network.width": "wide"}', "network.width = 'wide'"),
    ('{"objective.name": "sct"}', "objective.name"),
    ('{"network.num_layers": -3}', "num_layers"),
    ('{"label": 3}', "label = 3: must be text"),
    ('{"tags": (1,)}', "tags"),
    ('{"train.flops": -1.0}', "above 0"),
    ('{"train.flops": 1.0}', "less than one step"),
    ('{"train.flops": 1e9, "train.duration_images": 64}', "exclude"),
    ('{"depends_on": "t"}', "label of an earlier entry = 't'"),
    ('{"init.run": run_dir("t")}', "label of an earlier entry = 't'"),
    ('{"init.run": "runs/no_such_teacher"}', "there is no such run"),
    ('{"base": "experiments/none.py"}', "no experiment file experiments/none.py"),
    ('{"base": ":student"}', "experiment variant = 'student'"),
    ("3", "not a dict"),
    ('{"label": "t"}, {"label": "t", "seed": 1}', "'t' appears in two"),
]


@pytest.mark.parametrize(("entry", "message"), ERRORS)
def test_errors_name_the_file_the_entry_and_the_cause(planned, entry, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        planned(listed(entry))
    assert "tiny.py" in str(caught.value)


def test_a_start_of_other_shapes_is_refused(planned):
    body = TEACHERS.replace('run_dir("t16")', 'run_dir("t32")')
    with pytest.raises(ValueError, match="init.run: its network has other shapes"):
        planned(body)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "defines no sweep"),
        ("def sweep(arg):\n    return []", "yields no entry"),
        ("\ndef sweep(arg):\n    raise KeyError('size')", r"wrong\.py, line 4 .*size"),
        ("def sweep(arg):\n    return {'seed': 1}", "not a dict of dotted keys"),
    ],
)
def test_files_that_are_not_sweep_files(tmp_path, text, message):
    path = tmp_path / "wrong.py"
    path.write_text(f"BASE = 'x'\n{text}\n")
    with pytest.raises(ValueError, match=message):
        load_sweep(str(path))


def test_a_sweep_file_that_is_not_there_is_named():
    with pytest.raises(FileNotFoundError, match=r"no file none\.py"):
        load_sweep("none.py")
