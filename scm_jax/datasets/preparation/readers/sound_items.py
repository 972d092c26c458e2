"""Sounds: every file gives one clip, its beginning.

Files are read by soundfile (extra ``audio``), which has libsndfile in its wheel.
"""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import numpy as np

from scm_jax.datasets.front_ends import FrontEnd
from scm_jax.datasets.preparation.readers.file_items import FileItems
from scm_jax.datasets.preparation.readers.items import ItemError
from scm_jax.datasets.sound_clips import fitted, resampled, trimmed
from scm_jax.files.optional import require

SILENT = 1e-4  # a clip whose peak is below has nothing to learn: -80 dB
FULL_SCALE = 32767 / 32768
CLIPPED = 0.001  # share of samples at full scale above which a file counts as clipped


@dataclasses.dataclass(frozen=True, eq=False)
class SoundItems:
    """Clips of the sounds in ``files``; see ``Items``.

    A file is mixed to one channel, brought to the rate of the front end, trimmed, and
    cut to the length of a clip; silence follows a shorter one.
    """

    files: FileItems
    front_end: FrontEnd

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.files.class_names

    @property
    def origin(self) -> dict[str, Any]:
        return {**self.files.origin, "front_end": self.front_end.settings()}

    @property
    def notes(self) -> tuple[str, ...]:
        seconds = self.front_end.samples / self.front_end.rate
        values = "x".join(map(str, self.front_end.shape))
        clip = f"clips of {seconds:.3g} s at {self.front_end.rate} Hz are {values}"
        return (*self.files.notes, f"{clip} by {self.front_end.kind}")

    def __len__(self) -> int:
        return len(self.files)

    def name(self, index: int) -> str:
        return self.files.name(index)

    def read(self, index: int) -> dict[str, Any]:
        where, trim = self.name(index), self.files.options.trim
        sound, rate = decode_sound(self.files.content(index), where)
        clip, noted = make_clip(sound, rate, self.front_end, trim, where)
        return {"sound": clip, "noted": noted, **self.files.said(index)}


def decode_sound(content: bytes, where: str) -> tuple[np.ndarray, int]:
    """Samples float32 ``(n, channels)`` and their rate.

    Raises:
      ItemError: not a sound, damaged, cut off, empty, or not finite.
    """
    soundfile = require("soundfile", "reading sounds", "scm_jax[audio]")
    try:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            expected, rate = file.frames, file.samplerate
            sound = file.read(dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, ValueError, TypeError) as error:
        why = getattr(error, "error_string", error)  # without the name of a buffer
        raise ItemError(
            f"{where}: the sound does not decode, it is damaged or no sound: {why}"
        ) from error
    if len(sound) < expected or not _is_whole(content):
        raise ItemError(f"{where}: is cut off: {len(sound):,} samples are there")
    if not len(sound):
        raise ItemError(f"{where}: is empty, it has no samples")
    if not np.isfinite(sound).all():
        raise ItemError(f"{where}: has samples that are not finite (NaN or infinity)")
    return sound, rate


def _is_whole(content: bytes) -> bool:
    """Whether a WAV or Ogg file has its end; libsndfile reads what there is."""
    if content[:4] == b"RIFF":
        size = int.from_bytes(content[4:8], "little")
        return size <= len(content) or size >= 0xFFFFFFF0  # that of a stream
    if content[:4] != b"OggS":
        return True
    page = content[content.rfind(b"OggS") :]
    if len(page) < 27 or not page[5] & 4:  # not the last one of its stream
        return False
    return len(page) >= 27 + page[26] + sum(page[27 : 27 + page[26]])


def make_clip(
    sound: np.ndarray, rate: int, front_end: FrontEnd, trim: bool, where: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """A clip int16 ``(samples,)`` of sound ``(n, channels)``, and what was done to it.

    Raises:
      ItemError: of a lower rate than the front end's, or silent.
    """
    noted = []
    if (np.abs(sound) >= FULL_SCALE).mean() > CLIPPED:
        noted.append(f"clipped: more than {CLIPPED:.1%} of the samples at full scale")
    if sound.shape[1] > 1:
        noted.append("several channels, mixed to one by their mean")
    if rate < front_end.rate:
        raise ItemError(
            f"{where}: has {rate} Hz, less than --sample_rate={front_end.rate}: it has "
            f"nothing above {rate / 2:g} Hz, and networks would learn that. Use a rate "
            "that all files have, or --skip_bad=N"
        )
    if rate > front_end.rate:
        noted.append(f"resampled from {rate} Hz")
    mono = resampled(sound.mean(axis=1), rate, front_end.rate)
    mono = trimmed(mono, front_end.rate) if trim else mono
    if len(mono) != front_end.samples:
        longer = len(mono) > front_end.samples
        noted.append("longer than a clip, cut" if longer else "shorter, silence added")
    clip = fitted(mono, front_end.samples, front_end.rate)
    if (peak := float(np.abs(clip).max())) < SILENT:
        raise ItemError(
            f"{where}: is silent: the peak of its clip is {peak:.1g}, and must be "
            f"{SILENT:g} of full scale. Remove it, or use --skip_bad=N"
        )
    levels = np.clip(np.round(clip * 32768), -32768, 32767)
    return levels.astype(np.int16), tuple(noted)
