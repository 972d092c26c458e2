"""Samples that are sound: WAV files that give them back, and players."""

import base64
import io
import re

import numpy as np
import pytest
import scipy.io.wavfile

from scm_jax.runs.directory import media, report
from scm_jax.runs.directory.reading import Samples

RATE = 8_000
SOUND = 0.5 * np.sin(np.arange(3 * 400).reshape(3, 400) / 7).astype(np.float32)


def clips(texts=()):
    pixels = np.zeros((3, 32, 32, 1), np.uint8)
    return Samples(np.zeros((3, 32, 32, 1)), pixels, texts, {}, RATE, SOUND)


def test_one_file_has_all_clips_with_gaps_and_a_folder_each_of_them(tmp_path):
    clips().save(tmp_path / "digits.wav")
    rate, levels = scipy.io.wavfile.read(tmp_path / "digits.wav")
    gap = round(media.GAP * RATE)
    assert rate == RATE and levels.dtype == np.int16
    assert len(levels) == 3 * 400 + 2 * gap
    assert not levels[400 : 400 + gap].any()
    for i in range(3):
        _, one = scipy.io.wavfile.read(tmp_path / "digits" / f"{i:03d}.wav")
        np.testing.assert_allclose(one / 32767, SOUND[i], atol=1e-4)
        start = i * (400 + gap)
        np.testing.assert_array_equal(levels[start : start + 400], one)


def test_what_is_too_loud_is_clipped_and_stereo_stays():
    loud = np.stack([np.full((10, 2), 1.5), np.full((10, 2), -1.5)])
    _, levels = scipy.io.wavfile.read(io.BytesIO(media.wav_bytes(loud, 100)))
    assert levels.shape == (45, 2)
    assert levels[0].tolist() == [32767] * 2 and levels[-1].tolist() == [-32767] * 2


def test_notebooks_and_reports_play_each_clip(tmp_path):
    texts = ("one", "two <b>", "three")
    page = clips(texts)._repr_html_()
    assert page.count("<audio controls") == page.count("data:image/png") == 3
    assert "two &lt;b&gt;" in page
    found = re.findall(r"data:audio/wav;base64,([^']*)'", page)
    _, levels = scipy.io.wavfile.read(io.BytesIO(base64.b64decode(found[1])))
    np.testing.assert_allclose(levels / 32767, SOUND[1], atol=1e-4)
    path = tmp_path / "report.html"
    report.write_report(path, title="Sound", grids={"clips": clips().html()})
    assert path.read_text().count("<audio controls") == 3


def test_images_are_no_sound(tmp_path):
    images = Samples(np.zeros((2, 4, 4, 1)), np.zeros((2, 4, 4, 1), np.uint8))
    with pytest.raises(ValueError, match=r"shape \(4, 4, 1\) are no sound"):
        images.save(tmp_path / "a.wav")
    assert not (tmp_path / "a.wav").exists()
