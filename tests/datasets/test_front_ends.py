"""Front ends: exact ways back, what is lost where they are not, manifests, errors."""

import json

import numpy as np
import pytest
import scipy.signal

from scm_jax.datasets import front_ends, sound_clips
from scm_jax.datasets.front_ends import ComplexStft, LogMel, Pieces, Whitened

RATE = 8_000


def tones(samples, *frequencies):
    t = np.arange(samples) / RATE
    waves = [0.4 * np.sin(2 * np.pi * f * t) * np.hanning(samples) for f in frequencies]
    return np.array(waves, np.float32)


def test_the_transform_is_that_of_scipy():
    sound = np.random.default_rng(0).normal(size=(2, 1024)).astype(np.float32)
    window = scipy.signal.windows.hann(128, sym=False)
    reference = scipy.signal.ShortTimeFFT(window, 32, RATE)
    expected = reference.stft(sound, p0=0, p1=1 + 1024 // 32)
    # scipy counts the phase of a frame from its middle.
    turn = np.exp(-1j * np.pi * np.arange(65))[:, None]
    found = front_ends.stft(sound, 128, 32).swapaxes(1, 2)
    np.testing.assert_allclose(found, expected * turn, atol=2e-5)


@pytest.mark.parametrize(
    "front_end",
    [ComplexStft(RATE, 4032), ComplexStft(RATE, 1024, 256, 64), Pieces(RATE, 1024)],
)
def test_the_way_back_is_exact(front_end):
    shape = 3, front_end.samples
    sound = 0.2 * np.random.default_rng(0).normal(size=shape).astype(np.float32)
    values = front_end.values(sound)
    assert values.shape[1:] == front_end.shape and values.dtype == np.float32
    np.testing.assert_allclose(front_end.sound(values), sound, atol=1e-6)


def test_griffin_lim_finds_the_pitch_again():
    front_end = LogMel(RATE, 3968)
    assert front_end.shape == (32, 32, 1)
    back = front_end.sound(front_end.values(tones(3968, 440, 1000)))
    for sound, frequency in zip(back, (440, 1000), strict=True):
        spectrum = np.abs(np.fft.rfft(sound))
        assert abs(spectrum.argmax() * RATE / len(sound) - frequency) < 64
    # More steps bring the magnitudes nearer.
    errors = []
    for iterations in (1, 32):
        other = LogMel(RATE, 3968, iterations=iterations)
        values = other.values(tones(3968, 440, 1000))
        again = np.exp(other.values(other.sound(values)))
        errors.append(np.linalg.norm(again - np.exp(values)))
    assert errors[1] < 0.8 * errors[0]


def test_low_frequencies_are_at_the_bottom():
    for front_end in (LogMel(RATE, 3968), ComplexStft(RATE, 4032), Pieces(RATE, 4032)):
        images = front_end.image(front_end.values(tones(front_end.samples, 300, 3000)))
        assert images.dtype == np.uint8 and images.shape[-1] == 1
        low, high = images[..., 0].astype(int).sum(2).argmax(1)
        assert low > high, front_end.kind


def test_bins_are_whitened_and_the_manifest_builds_the_same_again():
    front_end = ComplexStft(RATE, 1024, 62, 32)
    rng = np.random.default_rng(0)
    sounds = [0.1 * rng.normal(size=(50, 1024)).astype(np.float32) for _ in range(3)]
    whitened = front_ends.whiten(front_end, sounds)
    x = whitened.to_x(np.concatenate(sounds))
    moving = np.ones((32, 2), bool)
    moving[[0, -1], 1] = False  # no imaginary part
    np.testing.assert_allclose(x.std((0, 1))[moving], 0.5, rtol=1e-3)
    np.testing.assert_allclose(x.mean((0, 1)), 0, atol=1e-3)
    again = Whitened.from_manifest(json.loads(json.dumps(whitened.to_manifest())))
    assert again.front_end == front_end
    np.testing.assert_array_equal(again.to_x(sounds[0]), whitened.to_x(sounds[0]))
    np.testing.assert_allclose(again.to_sound(x[:50]), sounds[0], atol=1e-5)
    levels = np.round(sounds[0] * 32768).astype(np.int16)
    np.testing.assert_allclose(again.to_sound(again.to_x(levels)), sounds[0], atol=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LogMel(RATE, 4000), "samples = 4000 is not a multiple of 128"),
        (lambda: LogMel(RATE, 3968, high=5000.0), "do not fit into 0 to 4000.0 Hz"),
        (lambda: LogMel(RATE, 3968, bands=200), "lies between two frequencies"),
        (lambda: LogMel(RATE, 3968, hop=0), "hop = 0 must be at least 1"),
        (lambda: ComplexStft(RATE, 4096, 64, 64), "at most three quarters of fft = 64"),
        (lambda: front_ends.whiten(Pieces(RATE, 64), []), "no sound to measure"),
        (
            lambda: Whitened.from_manifest({"kind": "mel", "mean": 0, "std": 1}),
            r"front end = 'mel' is not one of \['complex_stft', 'log_mel'",
        ),
    ],
)
def test_what_does_not_fit_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_recordings_become_clips():
    sound = tones(22_050, 300)[0]
    slow = sound_clips.resampled(sound, 22_050, RATE)
    assert len(slow) == RATE and abs(slow).max() == pytest.approx(0.4, rel=0.01)
    padded = np.pad(slow, (500, 700))
    kept = sound_clips.trimmed(padded, RATE)
    assert len(slow) * 0.9 < len(kept) <= len(slow) + 128
    assert len(sound_clips.trimmed(np.zeros(100, np.float32), RATE)) == 0
    cut = sound_clips.fitted(np.ones(1000, np.float32), 800, RATE)
    assert len(cut) == 800 and cut[700] == 1 and cut[-1] == 0
    assert abs(sound_clips.scaled(-slow, 0.5)).max() == pytest.approx(0.5)
