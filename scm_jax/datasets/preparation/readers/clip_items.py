"""Clips of videos: every file gives as many as fit into it, one after the other.

Files are read by PyAV (extra ``video``), which has the codecs of FFmpeg in its wheel.
Frames are taken by their timestamps, never by what a header promises.
"""

from __future__ import annotations

import dataclasses
import functools
import io
from collections.abc import Iterator
from typing import Any

import numpy as np

from scm_jax.datasets.preparation.readers.decode import to_channels
from scm_jax.datasets.preparation.readers.file_items import FileItems
from scm_jax.datasets.preparation.readers.items import ItemError, Options, damaged
from scm_jax.files.optional import require

UNEVEN = 0.01  # of the time between frames, by which timestamps may differ from even


def _av() -> Any:
    return require("av", "reading videos", "scm_jax[video]")


def frame_times(content: bytes, where: str) -> np.ndarray:
    """When each frame is shown, seconds, sorted ``(n,)``; decodes nothing.

    Raises:
      ItemError: damaged, without a video, or a frame without a time.
    """
    av = _av()
    what = f"{where}: the video cannot be read, it is damaged or cut off"
    errors = (av.error.FFmpegError, ValueError, EOFError)
    with damaged(what, errors, ItemError), av.open(io.BytesIO(content)) as file:
        if not file.streams.video:
            raise ItemError(f"{where}: has no video stream")
        stream = file.streams.video[0]
        packets = [p for p in file.demux(stream) if p.size]
        if any(p.pts is None for p in packets):
            raise ItemError(f"{where}: has frames without a timestamp")
        return np.sort(np.array([float(p.pts * p.time_base) for p in packets]))


def even_rate(times: np.ndarray) -> float:
    """Frames per second; 0 where the times are not even.

    Example:
      >>> even_rate(np.arange(5) / 24), even_rate(np.array([0.0, 0.1, 0.3]))
      (24.0, 0.0)
    """
    if len(times) < 2 or times[-1] <= times[0]:
        return 0.0
    rate = (len(times) - 1) / (times[-1] - times[0])
    if np.abs(np.diff(times) * rate - 1).max() > UNEVEN:
        return 0.0
    return round(float(rate), 2)


class Frames:
    """The frames of one video, decoded in the order in which they are shown.

    Each frame is decoded once where clips are taken from the first to the last, and
    only those of one clip are kept.
    """

    def __init__(self, content: bytes, where: str, options: Options):
        self.content, self.where, self.options = content, where, options
        times = frame_times(content, where)
        self.expected, self.chosen = len(times), np.arange(len(times))
        if options.frame_rate:
            self.chosen = nearest_frames(times, options.frame_rate)
        self.next, self.decoder = 0, self._decode()

    def clip(self, first: int) -> np.ndarray:
        """The clip that begins at a frame: uint8 ``(frames, h, w, channels)``.

        Raises:
          ItemError: it does not decode, or has no such frames.
        """
        wanted = self.chosen[first : first + span(self.options) : self.options.stride]
        if len(wanted) and wanted[0] < self.next:
            self.next, self.decoder = 0, self._decode()
        frame: Any = None
        found: dict[int, np.ndarray] = {}
        for index in sorted({int(k) for k in wanted}):
            while self.next <= index:
                frame = next(self.decoder, None)
                if frame is None:
                    raise ItemError(
                        f"{self.where}: {self.next} frames decode, and the file has "
                        f"{self.expected}: it is damaged or cut off"
                    )
                self.next += 1
            pixels = frame.to_ndarray(format="rgb24")
            found[index] = to_channels(pixels, self.options.channels)
        if len(wanted) < self.options.frames:
            raise ItemError(f"{self.where}: has {len(wanted)} frames from {first} on")
        return np.stack([found[int(k)] for k in wanted])

    def _decode(self) -> Iterator[Any]:
        av = _av()
        what = f"{self.where}: the video does not decode, it is damaged or cut off"
        with damaged(what, (av.error.FFmpegError, ValueError), ItemError):
            with av.open(io.BytesIO(self.content)) as file:
                # Else FFmpeg conceals damage with what it has from other frames.
                file.streams.video[0].codec_context.options = {"err_detect": "explode"}
                yield from file.decode(video=0)


@dataclasses.dataclass(frozen=True, eq=False)
class ClipItems:
    """Clips of the files of ``videos``; see ``Items``.

    A clip has ``frames`` frames, every ``stride``-th of the file; the next one begins
    with the frame after its last. With ``frame_rate``, the frames of a file are first
    those that are nearest to the times ``0, 1/rate, 2/rate, ...``; without, all files
    must have one rate and even timestamps.
    """

    videos: FileItems
    file: np.ndarray  # (n,), the video of each clip
    start: np.ndarray  # (n,), its first frame, after the choice by ``frame_rate``
    origin: dict[str, Any]
    notes: tuple[str, ...]

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.videos.class_names

    def __len__(self) -> int:
        return len(self.file)

    def name(self, index: int) -> str:
        return f"{self.videos.name(self.file[index])}, frame {self.start[index]}"

    def read(self, index: int) -> dict[str, Any]:
        video = int(self.file[index])
        clip = _frames(self.videos, video).clip(int(self.start[index]))
        return {"clip": clip, **self.videos.said(video)}


@functools.lru_cache(maxsize=1)  # the clips of one video follow each other
def _frames(videos: FileItems, index: int) -> Frames:
    return Frames(videos.content(index), videos.name(index), videos.options)


def span(options: Options) -> int:
    """From the first frame of a clip to its last one, both included."""
    return (options.frames - 1) * options.stride + 1


def nearest_frames(times: np.ndarray, rate: float) -> np.ndarray:
    """The frames that are nearest to ``0, 1/rate, ...`` after the first, ``(m,)``.

    Example:
      >>> nearest_frames(np.arange(6) / 6, 3.0).tolist()
      [0, 2, 4]
    """
    times = times - times[0]
    last = times[-1] + np.diff(times)[-1] if len(times) > 1 else 0.0
    wanted = np.arange(max(1, int(np.floor(last * rate + 1e-6)))) / rate
    return np.abs(times[None] - wanted[:, None]).argmin(axis=1)


def cut(videos: FileItems) -> ClipItems:
    """The clips of all videos.

    Raises:
      ItemError: a file is damaged, has another frame rate than the others, or uneven
        timestamps, where no ``frame_rate`` is asked for.
      ValueError: no file is long enough for a clip.
    """
    file: list[int] = []
    start: list[int] = []
    options, short = videos.options, 0
    rate, first = options.frame_rate, ""
    for index in range(len(videos)):
        where = videos.name(index)
        times = frame_times(videos.content(index), where)
        if options.frame_rate:
            times = times[nearest_frames(times, rate)]
        starts = range(0, len(times) - span(options) + 1, span(options))
        short += not starts
        if starts and not options.frame_rate:
            rate, first = _same_rate(even_rate(times), where, rate, first)
        file += [index] * len(starts)
        start += starts
    if not file:
        raise ValueError(
            f"{videos.origin['path']}: none of {len(videos)} videos has the "
            f"{span(options)} frames of a clip (--frames={options.frames}, "
            f"--stride={options.stride})"
        )
    notes = (*videos.notes, f"{len(videos):,} videos")
    if short:
        notes += (
            f"{short:,} of them are shorter than a clip of {span(options)} frames",
        )
    origin = {**videos.origin, "frame_rate": rate / options.stride}
    return ClipItems(videos, np.array(file), np.array(start), origin, notes)


def _same_rate(own: float, where: str, rate: float, first: str) -> tuple[float, str]:
    """The rate of all videos so far, and the file that it is of."""
    if not own:
        raise ItemError(
            f"{where}: its frames are not evenly spaced in time; --frame_rate=RATE "
            "takes those that are nearest to even times"
        )
    if rate and own != rate:
        raise ItemError(
            f"{where}: has {own:g} frames per second, and {first} has {rate:g}; "
            "--frame_rate=RATE gives all videos one"
        )
    return own, first or where
