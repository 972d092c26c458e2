"""Prompts at the command line, a small run as files, and what the text demo shows."""

import functools
import json

import numpy as np
import PIL.Image
import pytest

from scm_jax.commands import demo_text, shipped_models
from scm_jax.files import shipped
from scm_jax.runs import evaluate, packed, sample
from scm_jax.runs.directory.layout import RunDir
from tests.commands.in_process import scm

pytestmark = pytest.mark.filterwarnings("ignore:the load_module.*:DeprecationWarning")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A few steps of a student on captioned shapes."""
    path = tmp_path_factory.mktemp("runs") / "teacher"
    config = "experiments/captions.py:sct,model=dit,quick"
    # Muon takes twice as long to compile.
    changes = ["--config.init.run=", "--config.optimizer.name=adam"]
    scm("train", f"--config={config}", *changes, f"--workdir={path}")
    return path


def test_a_run_keeps_its_vocabulary_and_answers_prompts(run, tmp_path, caplog):
    words = json.loads(RunDir(run).text_path.read_text())["words"]
    assert "star" in words and "upper" in words
    out = tmp_path / "stars.png"
    prompt = "--prompt=a big red unicorn, upper left"
    scm("sample", f"--run={run}", "--num=3", prompt, f"--out={out}")
    assert "read letter by letter: unicorn" in caplog.text
    lines = out.with_suffix(".jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["sample"] for row in rows] == [0, 1, 2]
    assert rows[0]["prompt"] == "a big red unicorn, upper left"
    assert rows[0]["steps"] == 2 and rows[0]["run"] == str(run)
    with PIL.Image.open(out) as image:
        assert image.size[1] > 128
    long = "--prompt=" + "a red star and " * 6
    said = scm("sample", f"--run={run}", long, f"--out={out}", check=1)
    assert "the context holds 16" in said.stderr
    scm("sample", f"--run={run}", long, "--too_long=cut", f"--out={out}")
    assert "was cut to 16 tokens" in caplog.text
    said = scm("sample", f"--run={run}", "--class=3", f"--out={out}", check=1)
    assert "the data has no classes" in said.stderr


def test_samples_of_prompts_in_a_notebook(run):
    loaded = sample.load_run(run)
    samples = loaded.sample(4, prompt=["a red star", "a blue moon, top"], seed=1)
    assert samples.texts == ("a red star", "a blue moon, top") * 2
    assert "a red star" in samples._repr_html_()
    other = loaded.sample(4, prompt="a blue moon, top", seed=1)
    np.testing.assert_array_equal(samples.x[1], other.x[1])
    assert np.abs(samples.x[0] - other.x[0]).max() > 0
    assert loaded.sample(2).texts[0].startswith("a ")  # examples of the data


def test_a_packed_run_is_the_run_in_16_bits(run, tmp_path):
    packed.pack(run, tmp_path / "files")
    files = {path.name for path in (tmp_path / "files").iterdir()}
    assert files == {"config.json", "text.json", "weights.npz"}
    packed.unpack(tmp_path / "files", tmp_path / "again")
    one, two = (sample.load_generate(path) for path in (run, tmp_path / "again"))
    x, y = (it.generate(2, prompts="a red star") for it in (one, two))
    np.testing.assert_allclose(x, y, atol=5e-3)
    assert np.abs(x - y).max() > 0
    with np.load(tmp_path / "files/weights.npz") as stored:
        weights = dict(stored)
    weights.pop("position")
    np.savez(tmp_path / "files/weights.npz", **weights)
    with pytest.raises(ValueError, match="missing: position"):
        packed.unpack(tmp_path / "files", tmp_path / "third")


def test_the_demo_shows_prompts_and_says_how_fast(run, tmp_path, monkeypatch):
    student = sample.load_generate(run)
    loaded = {"teacher": student, "scd": student}
    monkeypatch.setitem(shipped_models.TEACHER, "steps", 3)
    text = shipped_models.speedup_text(loaded, 2)
    assert "times faster than the teacher's 3 Heun steps" in text
    for variant in shipped_models.VARIANTS:
        (tmp_path / variant).symlink_to(run)
    rows = [dict.fromkeys(demo_text.SHOWN, 0.5) | {"method": "scd", "steps": 2}]
    demo = demo_text.DEMO._replace(draw=functools.partial(demo_text.draw, num=2))
    shipped_models.write_report(demo, tmp_path, loaded, rows, text)
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png") == 5 and "agreement seen" in page
    assert (tmp_path / "prompts.jsonl").read_text().count("\n") == 6


def test_the_shipped_student_draws_what_it_is_asked_for(tmp_path):
    """In two steps, three times as often right as by chance."""
    files = shipped.folder("data") / "captioned_shapes"
    packed.unpack(files / "scd", tmp_path / "scd")
    for name in ("teacher", "scd"):
        assert (files / name / packed.WEIGHTS).stat().st_size < 4e6
    (row,) = evaluate.evaluate_run(
        tmp_path / "scd", steps=(2,), evaluators=("captions",), num_samples=60
    )
    assert row["agreement_seen"] > 0.7 and row["agreement_held_out"] > 0.7
    assert row["color_seen"] > 0.9 and row["place_seen"] > 0.7
