"""Pitch and length of spoken clips, measured on the sound itself."""

from __future__ import annotations

import numpy as np
from scipy import stats

LOWEST, HIGHEST = 60.0, 400.0  # Hz, of a voice
_FRAME = 0.064  # seconds: four periods of the lowest pitch
_VOICED = 0.5  # least autocorrelation at the period, of 1 for a periodic sound
_OCTAVE_COST = 0.02
_SILENCE = 0.1  # quieter frames, by the loudest one of the clip, are left out


def pitch(sound: np.ndarray, rate: int) -> np.ndarray:
    """Median pitch of clips ``(n, samples)``, in Hz ``(n,)``; NaN without a voice.

    It is the period at which the autocorrelation of a frame of 64 ms, divided by that
    of its window (Boersma, IFA 1993), is largest.

    Example:
      >>> t = np.arange(4000) / 8000
      >>> pitch(np.sign(np.sin(2 * np.pi * 200 * t))[None], 8000)
      array([200.])
    """
    size, hop = round(_FRAME * rate), round(_FRAME * rate / 4)
    frames = np.lib.stride_tricks.sliding_window_view(sound, size, axis=1)[:, ::hop]
    window = np.hanning(size)
    first, last = int(rate / HIGHEST), int(rate / LOWEST) + 1
    centred = (frames - frames.mean(-1, keepdims=True)) * window
    similar = _autocorrelation(centred, last + 1)
    energy = similar[..., :1]
    similar = similar / np.maximum(energy, 1e-12)
    similar = similar / (_autocorrelation(window, last + 1) / (window @ window))
    # Multiples of a period are periods, too: a shorter one costs less.
    cost = _OCTAVE_COST * np.log2(np.arange(first, last + 1))
    lag = first + (similar[..., first : last + 1] - cost).argmax(-1)
    best = np.take_along_axis(similar, lag[..., None], -1)[..., 0]
    loud = energy[..., 0] > _SILENCE**2 * energy[..., 0].max(-1, keepdims=True)
    found = np.where(loud & (best > _VOICED), rate / lag, np.nan)
    voiced = np.isfinite(found).any(-1)
    result = np.full(len(found), np.nan)
    if voiced.any():
        result[voiced] = np.nanmedian(found[voiced], axis=-1)
    return result


def _autocorrelation(frames: np.ndarray, lags: int) -> np.ndarray:
    size = 2 * frames.shape[-1]
    return np.fft.irfft(np.abs(np.fft.rfft(frames, size)) ** 2)[..., :lags]


def duration(sound: np.ndarray, rate: int, silence: float = 0.02) -> np.ndarray:
    """Seconds from the first to the last sample above ``silence`` of the peak.

    Example:
      >>> duration(np.array([[0.0, 1.0, 0.0, 1.0, 0.0]]), 10).tolist()
      [0.3]
    """
    loud = np.abs(sound) > silence * np.abs(sound).max(-1, keepdims=True)
    first, last = loud.argmax(-1), loud.shape[-1] - 1 - loud[:, ::-1].argmax(-1)
    return np.where(loud.any(-1), (last - first + 1) / rate, 0.0)


def compare(sound: np.ndarray, real: np.ndarray, rate: int) -> dict[str, float]:
    """Wasserstein distances of pitch and length from those of real clips.

    ``pitch_distance`` is in semitones, over the clips that have a voice, whose share is
    ``voiced``; ``duration_distance`` is in seconds.
    """
    tones = [12 * np.log2(pitch(clips, rate)) for clips in (sound, real)]
    made, true = (tone[np.isfinite(tone)] for tone in tones)
    away = float("nan")
    if len(made) and len(true):
        away = float(stats.wasserstein_distance(made, true))
    lengths = (duration(clips, rate) for clips in (sound, real))
    return {
        "pitch_distance": away,
        "voiced": len(made) / len(sound),
        "voiced_real": len(true) / len(real),
        "duration_distance": float(stats.wasserstein_distance(*lengths)),
    }
