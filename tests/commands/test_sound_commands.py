"""Sound at the command line: WAV files, and what the sound demo shows."""

import json

import jax
import numpy as np
import pytest
import scipy.io.wavfile

from scm_jax.commands import demo_sound, shipped_models
from scm_jax.datasets import spoken_digits
from scm_jax.files import shipped
from scm_jax.runs import evaluate, packed, sample
from scm_jax.runs.setup import experiment
from scm_jax.sweeps.plan.sweep_file import load_module
from tests.commands.in_process import scm
from tests.runs.untrained import write_run

pytestmark = pytest.mark.filterwarnings("ignore:the load_module.*:DeprecationWarning")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A student with random weights."""
    path = tmp_path_factory.mktemp("runs") / "student"
    file = shipped.folder("experiments") / "spoken_digits.py"
    config = load_module(str(file)).get_config("sct,quick")
    config.init.run = ""
    return write_run(path, config)


def test_samples_are_written_as_sound(run, tmp_path):
    out = tmp_path / "digits.wav"
    scm("sample", f"--run={run}", "--num=2", "--class=7", f"--out={out}")
    rate, levels = scipy.io.wavfile.read(out)
    assert rate == 8000 and len(levels) == 2 * 3968 + 2000
    drawn = sample.load_run(run).sample(2, label=7)
    np.testing.assert_allclose(levels[:3968] / 32767, drawn.sound[0], atol=1e-4)


@pytest.mark.parametrize(
    "option", ["front_end=log_mel_64", "front_end=stft", "front_end=waveform"]
)
def test_other_front_ends_are_trained_on(option):
    file = shipped.folder("experiments") / "spoken_digits.py"
    config = load_module(str(file)).get_config(f"teacher,{option}")
    built = experiment.build(config)
    shape = built.dataset.info.sample_shape
    seen = spoken_digits.open_front_end(config.dataset.front_end)
    assert shape == seen.front_end.shape
    assert jax.eval_shape(built.network.init, jax.random.key(0))


def test_a_prompt_of_digits_is_spoken(tmp_path):
    file = shipped.folder("experiments") / "spoken_digits.py"
    config = load_module(str(file)).get_config("teacher,say=numbers,quick")
    run, out = write_run(tmp_path / "run", config), tmp_path / "digits.wav"
    scm("sample", f"--run={run}", "--num=1", "--prompt=three one four", f"--out={out}")
    rate, levels = scipy.io.wavfile.read(out)
    assert rate == 8000 and len(levels) == 16_256
    assert "three one four" in out.with_suffix(".jsonl").read_text()


def test_the_demo_lets_one_listen(run, tmp_path):
    student = sample.load_generate(run)
    loaded = {"teacher": student, "scd": student}
    for variant in shipped_models.VARIANTS:
        (tmp_path / variant).symlink_to(run)
    real = demo_sound.real_clips(40)
    assert real["digit_accuracy"] > 0.9
    text = demo_sound.realtime_text(student, 2)
    assert "times faster than real time" in text
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(demo_sound.TEACHER, "steps", 2)
        rows = [{"clips": "real", **real}]
        shipped_models.write_report(demo_sound.DEMO, tmp_path, loaded, rows, text)
    page = (tmp_path / "report.html").read_text()
    assert page.count("<audio controls") == 40
    assert (tmp_path / "digits" / "009.wav").is_file()


def test_a_demo_measures_tells_and_writes_its_page(tmp_path, capsys, monkeypatch):
    """The order of a demo, with the shipped models and few samples."""
    monkeypatch.setattr(shipped_models, "SPEED_BATCH", 2)
    monkeypatch.setitem(shipped_models.TEACHER, "steps", 2)
    shown = demo_sound.DEMO._replace(
        measure=lambda workdir, num: [{"clips": workdir.name, "num_samples": num}],
        columns=("clips", "num_samples"),
        draw=lambda workdir, loaded: {f"drawn by {sorted(loaded)}": "<br>"},
    )
    assert shipped_models.run(shown, tmp_path) == "done"
    said = capsys.readouterr().out
    assert tmp_path.name in said and "1000" in said and "digit_accuracy:" in said
    assert "times faster than the teacher's 2 Heun steps" in said
    page = (tmp_path / "report.html").read_text()
    assert "drawn by [" in page and "faster than real time" in page
    rows = json.loads((tmp_path / "results.json").read_text())
    assert rows == [{"clips": tmp_path.name, "num_samples": 1000}]


def test_say_numbers_has_one_front_end():
    module = load_module(str(shipped.folder("experiments") / "spoken_digits.py"))
    with pytest.raises(ValueError, match="say=numbers is for front_end=log_mel"):
        module.get_config("teacher,say=numbers,front_end=stft")


def test_the_shipped_student_says_the_digits_that_it_is_asked_for(tmp_path):
    files = shipped.folder("data") / "spoken_digits"
    packed.unpack(files / "scd", tmp_path / "scd")
    for name in shipped_models.VARIANTS:
        assert (files / name / packed.WEIGHTS).stat().st_size < 4e6
    config = tmp_path / "scd" / "config.json"
    fewer = json.loads(config.read_text())
    fewer["dataset"]["num_items"] = 1000  # all would take 20 s to speak
    config.write_text(json.dumps(fewer))
    (row,) = evaluate.evaluate_run(
        tmp_path / "scd", steps=(2,), evaluators=("spoken_digits",), num_samples=60
    )
    assert row["digit_accuracy"] > 0.9
