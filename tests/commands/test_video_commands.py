"""Clips at the command line: lengths, first frames, and what the video demo shows."""

import numpy as np
import PIL.Image
import pytest

from scm_jax.commands import demo_video, shipped_models
from scm_jax.datasets.moving_digits import ClipSource
from scm_jax.files import shipped
from scm_jax.runs import conditions, evaluate, packed, sample
from scm_jax.sweeps.plan.sweep_file import load_module
from scm_jax.types import DatasetInfo
from tests.commands.in_process import scm
from tests.runs.untrained import write_run

pytestmark = pytest.mark.filterwarnings("ignore:the load_module.*:DeprecationWarning")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A student that is told first frames, with random weights."""
    path = tmp_path_factory.mktemp("runs") / "student"
    file = shipped.folder("experiments") / "moving_digits.py"
    config = load_module(str(file)).get_config("sct,quick")
    config.init.run = ""
    return write_run(path, config)


@pytest.fixture(scope="module")
def first():
    return ClipSource("test").gather(np.arange(1))["clip"][0, :2]


def test_known_frames_stay_and_the_others_depend_on_them(run, first, tmp_path):
    loaded = sample.load_run(run)
    free, told = loaded.sample(3, seed=1), loaded.sample(3, seed=1, first=first)
    assert told.pixels.shape == free.pixels.shape == (3, 8, 16, 16, 1)
    np.testing.assert_array_equal(told.pixels[:, :2], np.stack([first] * 3))
    assert np.abs(told.x[:, 2:] - free.x[:, 2:]).max() > 0
    # A clip goes on where another ended; each clip has its own.
    after = loaded.sample(3, seed=1, first=told.pixels[:, -2:])
    np.testing.assert_array_equal(after.pixels[:, :2], told.pixels[:, -2:])
    out = tmp_path / "next.webp"
    PIL.Image.fromarray(first[0, ..., 0]).save(tmp_path / "first.png")
    how = [f"--first={tmp_path / 'first.png'}", "--num=2", f"--out={out}"]
    scm("sample", f"--run={run}", *how)
    with PIL.Image.open(out) as image:
        shown = np.asarray(image.convert("L"))
    np.testing.assert_array_equal(shown[:64:4, :64:4], first[0, ..., 0])


def test_clips_of_another_length(run, tmp_path):
    out = tmp_path / "long.npy"
    scm("sample", f"--run={run}", "--num=2", "--frames=12", f"--out={out}")
    assert np.load(out).shape == (2, 12, 16, 16, 1)
    said = scm("sample", f"--run={run}", "--frames=7", f"--out={out}", check=1)
    assert "does not divide every axis" in said.stderr


def test_first_frames_that_do_not_fit(run, first):
    loaded = sample.load_run(run)
    for frames in (first[:, :8], first.astype(np.float32), np.stack([first] * 2)):
        with pytest.raises(ValueError, match=r"expected uint8 \(k, 16, 16, 1\)"):
            loaded.sample(3, first=frames)
    with pytest.raises(ValueError, match=r"with k below 8"):
        loaded.sample(3, first=np.tile(first, (4, 1, 1, 1)))


def test_a_run_that_was_not_told_frames_takes_none(first):
    info = DatasetInfo("images", (8, 8, 1), 0, 0.5, 0)
    with pytest.raises(ValueError, match=r"trained without network.use_frames = True"):
        conditions.first_frames(info, {"t"}, 3, first)


def test_the_demo_shows_clips_that_move(run, tmp_path):
    student = sample.load_generate(run)
    loaded = {"teacher": student, "scd": student}
    for variant in shipped_models.VARIANTS:
        (tmp_path / variant).symlink_to(run)
    rows = [*demo_video.broken_clips(40)]
    assert [row["clips"] for row in rows] == [
        *("true", "frozen", "shuffled", "random walk")
    ]
    by = {row["clips"]: row for row in rows}
    assert by["true"]["residual"] < 0.1 < 0.4 < by["random walk"]["residual"]
    assert by["shuffled"]["residual"] > 1 and by["frozen"]["speed"] < 1e-6
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(demo_video.TEACHER, "steps", 2)
        shipped_models.write_report(demo_video.DEMO, tmp_path, loaded, rows, "fast")
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/webp") == 5 and page.count("data:image/png") == 2
    with PIL.Image.open(tmp_path / "clips.webp") as image:
        assert image.n_frames == 8


def test_a_row_of_continued_clips(run):
    (row,) = evaluate.evaluate_run(
        run, steps=(2,), evaluators=("moving_digits_continued",), num_samples=10
    )
    assert np.isfinite(row["path_error"]) and row["num_samples"] == 10
    assert row["first"] == 2


def test_the_shipped_student_draws_the_digits_that_it_is_asked_for(tmp_path):
    """In two steps, on paths nearer to the law than a random walk's."""
    files = shipped.folder("data") / "moving_digits"
    packed.unpack(files / "scd", tmp_path / "scd")
    for name in shipped_models.VARIANTS:
        assert (files / name / packed.WEIGHTS).stat().st_size < 4e6
    (row,) = evaluate.evaluate_run(
        tmp_path / "scd", steps=(2,), evaluators=("moving_digits",), num_samples=60
    )
    assert row["frame_agreement"] > 0.8 and row["residual"] < 0.6
