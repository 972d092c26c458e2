"""Samples that are clips: contact sheets, and files that give the frames back."""

import base64
import re

import av
import numpy as np
import PIL.Image
import PIL.ImageSequence
import pytest

from scm_jax.runs.directory import media
from scm_jax.runs.directory.reading import Samples

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 5, 16, 16, 1)).astype(np.uint8)


def clips():
    x = PIXELS.astype(np.float32)
    return Samples(x, PIXELS, facts={"seed": 0}, rate=10.0)


def frames_of(image):
    return [frame.convert("L") for frame in PIL.ImageSequence.Iterator(image)]


def test_a_contact_sheet_has_a_row_for_each_clip():
    sheet = np.asarray(clips().grid())
    step = 16 * 4 + 2  # small frames are enlarged to 64 pixels
    assert sheet.shape == (3 * step - 2, 5 * step - 2)
    tile = sheet[2 * step :: 4, 3 * step :: 4][:16, :16]
    np.testing.assert_array_equal(tile, PIXELS[2, 3, ..., 0])


@pytest.mark.parametrize("suffix", sorted(set(media.ANIMATIONS) - {".mp4"}))
def test_an_animation_gives_all_frames_back(suffix, tmp_path):
    path = tmp_path / f"clips{suffix}"
    clips().save(path, columns=3)
    with PIL.Image.open(path) as image:
        assert image.n_frames == 5
        image.load()
        assert image.info["duration"] == pytest.approx(100, abs=1)
        for number, frame in enumerate(frames_of(image)):
            expected = media.image_grid(PIXELS[:, number], 3)
            np.testing.assert_array_equal(np.asarray(frame), np.asarray(expected))


def test_an_mp4_has_all_frames_enlarged_and_even(tmp_path):
    """Sides of 3 clips in a row are even, and those of clips of 15 rows are odd."""
    odd = Samples(PIXELS, PIXELS[:, :, :15], rate=12.5)
    for samples, columns, size in ((clips(), 3, (388, 128)), (odd, 1, (128, 364))):
        samples.save(tmp_path / "clips.mp4", columns=columns)
        with av.open(tmp_path / "clips.mp4") as file:
            assert float(file.streams.video[0].average_rate) == samples.rate
            frames = [frame.to_ndarray(format="gray") for frame in file.decode(video=0)]
        assert len(frames) == 5 and frames[0].shape == size[::-1]
        for number, frame in enumerate(frames):
            sheet = media.image_grid(samples.pixels[:, number], columns, 8)
            error = frame[: sheet.height, : sheet.width] - np.asarray(sheet, float)
            assert np.abs(error).mean() < 4  # levels of 255; of noise, the worst case


def test_a_notebook_shows_the_clips_move(tmp_path):
    (data,) = re.findall('base64,([^"]+)', clips()._repr_html_())
    path = tmp_path / "shown.webp"
    path.write_bytes(base64.b64decode(data))
    with PIL.Image.open(path) as image:
        assert image.n_frames == 5


def test_clips_without_a_rate_are_a_contact_sheet(tmp_path):
    still = Samples(PIXELS, PIXELS)
    assert "data:image/png" in still._repr_html_()
    with pytest.raises(ValueError, match=r"are no clips with a frame rate"):
        still.save(tmp_path / "a.webp")


@pytest.mark.parametrize("suffix", [".gif", ".mp4", ".npy", ".png"])
def test_frames_are_read_from_any_file(suffix, tmp_path):
    """A clip of one level a frame, which no codec changes much."""
    levels = np.arange(40, 240, 40, dtype=np.uint8)[:, None, None, None]
    frames = np.broadcast_to(levels, (5, 16, 16, 1))
    path = tmp_path / f"clip{suffix}"
    if suffix == ".npy":
        np.save(path, frames)
    elif suffix == ".png":
        frames = frames[:1]
        PIL.Image.fromarray(frames[0, ..., 0]).save(path)
    else:
        path.write_bytes(media.animation(frames[None], 8.0, suffix, scale=1))
    for channels in (1, 3):
        read = media.read_frames(path, channels)
        assert read.dtype == np.uint8 and len(read) == len(frames)
        assert suffix == ".npy" or read.shape[-1] == channels
        centre = read[:, read.shape[1] // 2, read.shape[2] // 2, 0].astype(int)
        np.testing.assert_allclose(centre, frames[:, 8, 8, 0], atol=3)
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match=r"text.png is no image or clip"):
        media.read_frames(tmp_path / "text.png", 1)


def test_images_do_not_move(tmp_path):
    images = Samples(np.zeros((2, 4, 4, 1)), np.zeros((2, 4, 4, 1), np.uint8))
    with pytest.raises(ValueError, match=r"shape \(4, 4, 1\) are no clips"):
        images.save(tmp_path / "a.gif")
    with pytest.raises(
        ValueError, match=r"legal are .png, .npy, .wav, .gif, .webp, .apng"
    ):
        clips().save(tmp_path / "a.avi")
