"""Sound as arrays that a network learns, and back to sound.

Sound is ``(n, samples)`` float32 in [-1, 1]. A front end turns it into values
``(n, frames, bins, c)``, or ``(n, frames, c)`` for pieces of the waveform, and values
into sound again. Its settings and the moments of every bin stand in the manifest of a
prepared dataset, and the way back is built from there.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import numpy as np

from scm_jax.types import lookup

SIGMA_DATA = 0.5  # of every bin of whitened values
FLOOR = 1e-3  # added to a magnitude before its logarithm
_MOMENTUM = 0.99  # of the fast Griffin-Lim algorithm
_AT_ONCE = 32  # clips
_GIVEN = ("rate", "samples")  # of every front end


def stft(sound: np.ndarray, fft: int, hop: int) -> np.ndarray:
    """Short-time Fourier transform ``(n, 1 + samples // hop, 1 + fft // 2)``.

    Periodic Hann window of ``fft`` samples; frame ``k`` is centred on sample ``k hop``,
    and there is silence before and after.
    """
    padded = np.pad(sound, ((0, 0), (fft // 2, fft // 2)))
    frames = np.lib.stride_tricks.sliding_window_view(padded, fft, axis=1)[:, ::hop]
    return np.fft.rfft(frames * _window(fft))


def inverse_stft(transform: np.ndarray, fft: int, hop: int, samples: int) -> np.ndarray:
    """The sound whose ``stft`` is nearest, by least squares; exact for a true one."""
    frames = np.fft.irfft(transform, fft) * _window(fft)
    size = hop * (frames.shape[1] - 1) + fft
    total = np.zeros((len(frames), size), frames.dtype)
    weight = np.zeros(size, frames.dtype)
    for k in range(frames.shape[1]):
        total[:, k * hop : k * hop + fft] += frames[:, k]
        weight[k * hop : k * hop + fft] += _window(fft) ** 2
    inside = slice(fft // 2, fft // 2 + samples)
    return total[:, inside] / np.maximum(weight[inside], 1e-12)


@functools.cache
def _window(fft: int) -> np.ndarray:
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(fft) / fft)).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class FrontEnd:
    """Clips of ``samples`` samples at ``rate`` per second, and how they are seen."""

    rate: int
    samples: int
    kind: ClassVar[str]

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if field.type == "int" and getattr(self, field.name) < 1:
                raise ValueError(
                    f"front end {self.kind!r}: {field.name} = "
                    f"{getattr(self, field.name)} must be at least 1"
                )
        step = getattr(self, "hop", 0) or getattr(self, "piece", 0)
        if self.samples % step:
            raise ValueError(
                f"front end {self.kind!r}: samples = {self.samples} is not a multiple "
                f"of {step}"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the values of one clip."""
        return self.values(np.zeros((1, self.samples), np.float32)).shape[1:]

    def settings(self) -> dict[str, Any]:
        """Plain data from which ``from_settings`` builds the same again."""
        return {"kind": self.kind, **dataclasses.asdict(self)}

    def values(self, sound: np.ndarray) -> np.ndarray:
        """``(n, samples)`` -> ``(n, *shape)`` float32."""
        return _few_at_once(self._values, sound)

    def sound(self, values: np.ndarray) -> np.ndarray:
        """``(n, *shape)`` -> ``(n, samples)`` float32."""
        return _few_at_once(self._sound, values)

    def _values(self, sound: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def _sound(self, values: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def image(self, values: np.ndarray) -> np.ndarray:
        """A spectrogram ``(n, bins, frames, 1)`` uint8, low frequencies at the bottom.

        Black is a magnitude of zero, white that of a sine of amplitude 1.
        """
        fft, hop = 256, max(1, self.samples // 64)
        magnitude = np.abs(stft(self.sound(values), fft, hop))
        return _shown(np.log(magnitude[..., ::2] + FLOOR), fft)


def _few_at_once(
    work: Callable[[np.ndarray], np.ndarray], clips: np.ndarray
) -> np.ndarray:
    """``work(clips)``: few clips stay in the processor's cache.

    Griffin-Lim took 4.7 in place of 8.0 ms a clip of half a second.
    """
    parts = np.array_split(clips, -(-len(clips) // _AT_ONCE) or 1)
    return np.concatenate([work(part) for part in parts])


def _shown(log_magnitude: np.ndarray, fft: int) -> np.ndarray:
    low, high = np.log(FLOOR), np.log(fft / 4)
    levels = 255 * np.clip((log_magnitude - low) / (high - low), 0, 1)
    return levels.round().astype(np.uint8).swapaxes(1, 2)[:, ::-1, :, None]


@dataclasses.dataclass(frozen=True)
class LogMel(FrontEnd):
    """``log(m + FLOOR)`` of magnitudes in triangular bands, ``(n, frames, bands, 1)``.

    The bands are even on the mel scale ``2595 log10(1 + f / 700)``. The phase is lost:
    the way back takes the pseudo-inverse of the bands and ``iterations`` steps of the
    fast Griffin-Lim algorithm (Perraudin et al., WASPAA 2013).
    """

    fft: int = 256
    hop: int = 128
    bands: int = 32
    low: float = 50.0
    high: float = 4000.0
    iterations: int = 32
    kind = "log_mel"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.low < self.high <= self.rate / 2:
            raise ValueError(
                f"front end 'log_mel': bands from {self.low} to {self.high} Hz do not "
                f"fit into 0 to {self.rate / 2} Hz, half the rate"
            )
        empty = np.flatnonzero(self.filters.sum(1) == 0)
        if len(empty):
            raise ValueError(
                f"front end 'log_mel': band {empty[0]} of {self.bands} lies between "
                f"two frequencies of fft = {self.fft}: fewer bands, or a larger fft"
            )

    @functools.cached_property
    def filters(self) -> np.ndarray:
        """``(bands, 1 + fft // 2)``; each band rises to 1 in its middle."""
        low, high = (2595 * np.log10(1 + f / 700) for f in (self.low, self.high))
        edges = 700 * (10 ** (np.linspace(low, high, self.bands + 2) / 2595) - 1)
        f = np.arange(1 + self.fft // 2) * (self.rate / self.fft)
        left, middle, right = (edges[i : i + self.bands, None] for i in range(3))
        rising, falling = (f - left) / (middle - left), (right - f) / (right - middle)
        return np.maximum(0, np.minimum(rising, falling)).astype(np.float32)

    def _values(self, sound: np.ndarray) -> np.ndarray:
        magnitude = np.abs(stft(sound, self.fft, self.hop))
        return np.log(magnitude @ self.filters.T + np.float32(FLOOR))[..., None]

    def _sound(self, values: np.ndarray) -> np.ndarray:
        # Samples of a bad network may lie far above any sound.
        levels = np.minimum(values[..., 0].astype(np.float32), np.log(self.fft))
        bands = np.maximum(np.exp(levels) - FLOOR, 0)
        magnitude = np.maximum(bands @ np.linalg.pinv(self.filters).T, 0)
        rng = np.random.default_rng(0)
        turn = 2 * np.pi * rng.random(magnitude.shape[1:], np.float32)
        phase = np.broadcast_to(np.exp(1j * turn), magnitude.shape)
        before: Any = 0
        for _ in range(self.iterations):
            sound = inverse_stft(magnitude * phase, self.fft, self.hop, self.samples)
            now = stft(sound, self.fft, self.hop)
            phase = now - (_MOMENTUM / (1 + _MOMENTUM)) * before
            phase = phase / np.maximum(np.abs(phase), 1e-12)
            before = now
        sound = inverse_stft(magnitude * phase, self.fft, self.hop, self.samples)
        return sound.astype(np.float32)

    def image(self, values: np.ndarray) -> np.ndarray:
        return _shown(values[..., 0], self.fft)


def spectrograms(sound: np.ndarray, rate: int) -> np.ndarray:
    """``LogMel`` of the first half second as ``(n, 32, 32, 1)`` uint8.

    Frozen networks read these, whatever front end made the sound.
    """
    front_end = LogMel(rate, 3_968)
    missing = max(0, front_end.samples - sound.shape[1])
    sound = np.pad(sound, ((0, 0), (0, missing)))[:, : front_end.samples]
    return front_end.image(front_end.values(sound))


@dataclasses.dataclass(frozen=True)
class ComplexStft(FrontEnd):
    """``|c|^exponent e^(i phase)`` as ``(n, frames, 1 + fft // 2, 2)``: exact.

    The exponent makes loud and soft parts more alike.
    """

    fft: int = 126
    hop: int = 64
    exponent: float = 0.5
    kind = "complex_stft"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.exponent <= 0 or self.hop > self.fft * 3 // 4:
            raise ValueError(
                f"front end 'complex_stft': exponent = {self.exponent} must be above "
                f"0, and hop = {self.hop} at most three quarters of fft = {self.fft}"
            )

    def _values(self, sound: np.ndarray) -> np.ndarray:
        c = self._powered(stft(sound, self.fft, self.hop), self.exponent)
        return np.stack([c.real, c.imag], axis=-1).astype(np.float32)

    def _sound(self, values: np.ndarray) -> np.ndarray:
        c = self._powered(values[..., 0] + 1j * values[..., 1], 1 / self.exponent)
        return inverse_stft(c, self.fft, self.hop, self.samples).astype(np.float32)

    def image(self, values: np.ndarray) -> np.ndarray:
        magnitude = np.hypot(values[..., 0], values[..., 1]) ** (1 / self.exponent)
        return _shown(np.log(magnitude + FLOOR), self.fft)

    def _powered(self, c: np.ndarray, exponent: float) -> np.ndarray:
        size = np.abs(c)
        return c * np.maximum(size, 1e-12) ** (exponent - 1)


@dataclasses.dataclass(frozen=True)
class Pieces(FrontEnd):
    """Pieces of the waveform, ``(n, samples // piece, piece)``: exact."""

    piece: int = 64
    kind = "waveform"

    def _values(self, sound: np.ndarray) -> np.ndarray:
        return sound.reshape(len(sound), -1, self.piece).astype(np.float32)

    def _sound(self, values: np.ndarray) -> np.ndarray:
        return values.reshape(len(values), -1).astype(np.float32)


FRONT_ENDS: dict[str, type[FrontEnd]] = {
    kind.kind: kind for kind in (LogMel, ComplexStft, Pieces)
}


def from_settings(found: Mapping[str, Any]) -> FrontEnd:
    """The front end of some ``FrontEnd.settings``."""
    kind = lookup(FRONT_ENDS, found["kind"], "front end")
    return kind(**{k: v for k, v in found.items() if k != "kind"})


def choose(text: str, rate: int, seconds: float) -> FrontEnd:
    """The front end of a text such as ``log_mel,bands=64``, for clips of a length.

    Settings that are not given are those of 8 kHz: ``fft`` and ``hop`` are multiplied
    by the power of two that is nearest to ``rate / 8000``, and ``high`` is half the
    rate. Clips have the multiple of 16 frames that is nearest to ``seconds``, so that
    networks can halve them.

    Example:
      >>> choose("complex_stft,exponent=0.3", 16_000, 1.0)
      ComplexStft(rate=16000, samples=16256, fft=254, hop=128, exponent=0.3)
    """
    name, *pairs = text.split(",")
    kind = lookup(FRONT_ENDS, name, "--front_end")
    own = {f.name: f for f in dataclasses.fields(kind) if f.name not in _GIVEN}
    chosen: dict[str, Any] = {key: field.default for key, field in own.items()}
    scale = 2.0 ** max(0, round(math.log2(rate / 8000)))
    if kind is not Pieces:
        chosen["hop"] = int(chosen["hop"] * scale)
        chosen["fft"] = 2 * chosen["hop"] - 2 * (kind is ComplexStft)
    if kind is LogMel:
        chosen["high"] = rate / 2
    for pair in pairs:
        key, _, value = pair.partition("=")
        whole = lookup(own, key, f"--front_end={name},KEY=VALUE").type == "int"
        try:
            chosen[key] = int(value) if whole else float(value)
        except ValueError:
            what = "whole " if whole else ""
            raise ValueError(f"--front_end: {pair!r} needs a {what}number") from None
    step = chosen.get("hop") or chosen.get("piece") or 1
    frames = 16 * max(1, round(seconds * rate / (16 * step)))
    return kind(rate, step * (frames - (kind is not Pieces)), **chosen)


@dataclasses.dataclass(frozen=True, eq=False)
class Whitened:
    """A front end whose bins have mean 0 and standard deviation ``SIGMA_DATA``.

    ``x = SIGMA_DATA (values - mean) / std``, with a mean and a standard deviation for
    every bin and channel, the axes behind the frames.
    """

    front_end: FrontEnd
    mean: np.ndarray
    std: np.ndarray

    def to_x(self, sound: np.ndarray) -> np.ndarray:
        """Sound ``(n, samples)``, float32 or int16, to what a network sees."""
        if sound.dtype == np.int16:
            sound = sound.astype(np.float32) / np.float32(32768)
        return self.whiten(self.front_end.values(sound)).astype(np.float32)

    def whiten(self, values: Any) -> Any:
        """``(n, *shape)`` values to ``x``; traceable."""
        scale = SIGMA_DATA / self.std
        return (values - self.mean[None, None]) * scale[None, None]

    def to_values(self, x: np.ndarray) -> np.ndarray:
        """The inverse of the whitening alone."""
        return np.asarray(x, np.float32) * (self.std / SIGMA_DATA) + self.mean

    def to_sound(self, x: np.ndarray) -> np.ndarray:
        """The inverse of ``to_x``, as far as the front end has one, within [-1, 1]."""
        return np.clip(self.front_end.sound(self.to_values(x)), -1, 1)

    def to_pixels(self, x: np.ndarray) -> np.ndarray:
        """Spectrograms to look at, see ``FrontEnd.image``."""
        return self.front_end.image(self.to_values(x))

    def to_manifest(self) -> dict[str, Any]:
        """Plain data from which ``from_manifest`` builds the same again."""
        moments = {"mean": self.mean.tolist(), "std": self.std.tolist()}
        return {**self.front_end.settings(), **moments}

    @classmethod
    def from_manifest(cls, found: Mapping[str, Any]) -> Whitened:
        """What ``to_manifest`` wrote."""
        settings = {k: v for k, v in found.items() if k not in ("mean", "std")}
        mean, std = (np.asarray(found[k], np.float32) for k in ("mean", "std"))
        return cls(from_settings(settings), mean, std)


def whiten(front_end: FrontEnd, sounds: Iterable[np.ndarray]) -> Whitened:
    """Measures the moments of every bin over batches of sound; see ``whitened``."""
    count, total, squares = 0, 0.0, 0.0
    for sound in sounds:
        values = front_end.values(sound).astype(np.float64)
        count += values.shape[0] * values.shape[1]
        total, squares = total + values.sum((0, 1)), squares + (values**2).sum((0, 1))
    if not count:
        raise ValueError("no sound to measure the moments of")
    mean = np.asarray(total) / count
    std = np.sqrt(np.maximum(np.asarray(squares) / count - mean**2, 0))
    return whitened(front_end, mean, std)


def whitened(front_end: FrontEnd, mean: Any, std: Any) -> Whitened:
    """A front end with the moments of its bins as they were measured.

    A bin that never changes, such as the imaginary part at frequency 0, gets the
    standard deviation 1.
    """
    mean, std = np.asarray(mean, np.float32), np.asarray(std, np.float32)
    std = np.where(std < 1e-6, np.float32(1), std)
    if isinstance(front_end, Pieces):  # no bin: the place in a piece means nothing
        mean, std = np.full_like(mean, mean.mean()), np.full_like(std, std.mean())
    return Whitened(front_end, mean, std)
