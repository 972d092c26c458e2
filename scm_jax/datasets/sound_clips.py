"""Recordings of any rate and length -> clips of one: the rules, step by step."""

from __future__ import annotations

import functools
import math

import numpy as np

SILENCE = 10 ** (-40 / 20)  # of the peak: quieter ends are trimmed
_MARGIN = 0.008  # seconds that are left around what is heard
_FADE = 0.005  # seconds in which a clip that is cut dies away


def resampled(sound: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
    """Mono sound at another rate, by a polyphase filter; float32.

    Example:
      >>> resampled(np.ones(441, np.float32), 22_050, 8_000).shape
      (160,)
    """
    import scipy.signal

    if rate == new_rate:
        return sound.astype(np.float32)
    common = math.gcd(rate, new_rate)
    up, down = new_rate // common, rate // common
    found = scipy.signal.resample_poly(sound, up, down, window=_filter(max(up, down)))
    return found.astype(np.float32)


@functools.cache
def _filter(factor: int) -> np.ndarray:
    """What ``resample_poly`` designs by default, anew for each call."""
    import scipy.signal

    taps = 20 * factor + 1
    return scipy.signal.firwin(taps, 1 / factor, window=("kaiser", 5.0))


def trimmed(sound: np.ndarray, rate: int) -> np.ndarray:
    """Sound without its silent ends: what is 40 dB below the peak, to 8 ms of it.

    Example:
      >>> sound = np.zeros(1000, np.float32)
      >>> sound[400:600] = 1.0
      >>> len(trimmed(sound, 1000))
      216
    """
    loud = np.flatnonzero(np.abs(sound) > SILENCE * np.abs(sound).max(initial=0))
    if not len(loud):
        return sound[:0]
    margin = round(_MARGIN * rate)
    return sound[max(0, loud[0] - margin) : loud[-1] + 1 + margin]


def fitted(sound: np.ndarray, samples: int, rate: int) -> np.ndarray:
    """Sound of that length: silence after a shorter one; a longer one fades out.

    Example:
      >>> fitted(np.ones(3, np.float32), 5, 8000).tolist()
      [1.0, 1.0, 1.0, 0.0, 0.0]
    """
    if len(sound) <= samples:
        return np.pad(sound, (0, samples - len(sound)))
    fade = min(samples, round(_FADE * rate))
    cut = sound[:samples].copy()
    cut[samples - fade :] *= np.linspace(1, 0, fade, dtype=sound.dtype)
    return cut


def scaled(sound: np.ndarray, peak: float) -> np.ndarray:
    """Sound whose loudest sample is ``peak``; silence stays silence."""
    return sound * (peak / max(float(np.abs(sound).max(initial=0)), 1e-9))
