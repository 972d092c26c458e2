"""``scm demo --name=sound``: spoken digits in two steps, measured, to listen to.

It samples from the packed runs in ``data/spoken_digits``, where they are there.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from scm_jax.commands.shipped_models import (
    TEACHER,
    Demo,
    measured,
    read_configs,
    shortest,
)
from scm_jax.datasets import front_ends, spoken_digits
from scm_jax.evaluation import speech_quality
from scm_jax.runs import sample
from scm_jax.runs.directory.media import image_grid
from scm_jax.runs.directory.reading import Samples
from scm_jax.runs.sample import Loaded

NAME = "spoken_digits"
COLUMNS = ("clips", "steps", "guidance", "nfe", "num_samples")
SHOWN = (
    *("digit_accuracy_before", "digit_accuracy", "pitch_distance", "voiced"),
    *("duration_distance", "frechet_distance", "nearest"),
)


def measure(workdir: Path, num_samples: int) -> Iterator[dict[str, Any]]:
    """Rows of real clips, of the teacher, and of the student in 1 and 2 steps."""
    yield {"clips": "real", "num_samples": num_samples, **real_clips(num_samples)}
    for variant, steps in (("teacher", TEACHER["steps"]), ("scd", 1), ("scd", 2)):
        (row,) = measured(workdir, variant, num_samples, NAME, steps)
        yield {"clips": variant, **{k: row[k] for k in row if k in COLUMNS + SHOWN}}
    ends = {k: row[f"{k}_real"] for k in SHOWN if f"{k}_real" in row}
    name = "real, through the front end"
    yield {"clips": name, "num_samples": num_samples, **ends}


def real_clips(num: int) -> dict[str, Any]:
    """What is heard on real clips that no front end has changed."""
    source = spoken_digits.SpeechSource(split="test", num_items=2 * num)
    sound, (digits, _) = source.sound(np.arange(2 * num)), source.said(np.arange(num))
    rate = spoken_digits.RATE
    images = front_ends.spectrograms(sound, rate)
    made, real = (
        speech_quality.Heard(sound[part], images[part])
        for part in (slice(num), slice(num, None))
    )
    found = speech_quality.measure(made, real, digits, rate)
    return {k: v for k, v in found.items() if k in SHOWN}


def realtime_text(loaded: Loaded, batch: int) -> str:
    """Seconds of sound that two steps make in a second, the way back included."""
    info = loaded.generate.info
    to_sound, rate = info.to_sound, info.sample_rate
    assert to_sound is not None

    def work() -> np.ndarray:
        return to_sound(np.asarray(loaded.generate(batch, 2)))

    sound = batch * work().shape[1] / rate
    return f"{sound / shortest(work, 5):.0f} times faster than real time"


def draw(workdir: Path, loaded: Mapping[str, Loaded]) -> dict[str, str]:
    """Writes ``digits.wav`` and ``spectrograms.png``; players of all clips."""
    info = loaded["scd"].generate.info
    assert info.to_sound is not None and info.to_pixels is not None
    source = spoken_digits.SpeechSource(split="test", num_items=200)
    digits, _ = source.said(np.arange(200))
    some = np.array([np.flatnonzero(digits == k)[0] for k in range(10)])
    seen = spoken_digits.open_front_end(source.front_end)
    x = seen.to_x(source.sound(some))
    names = spoken_digits.WORDS
    real = Samples(x, seen.to_pixels(x), names, {}, info.sample_rate, seen.to_sound(x))
    shown = {"real, through the front end": real}
    drawn = sample.draw(loaded["teacher"], 10, **TEACHER)
    shown["teacher, 126 evaluations"] = drawn
    for steps, name in ((2, "two steps"), (1, "one step")):
        shown[name] = sample.draw(loaded["scd"], 10, steps)
    shown["two steps"].save(workdir / "digits.wav")
    pixels = np.concatenate([s.pixels for s in shown.values() if s.pixels is not None])
    image_grid(pixels, columns=10).save(workdir / "spectrograms.png")
    return {name: samples.html() for name, samples in shown.items()}


DEMO = Demo(
    name=NAME,
    configs=functools.partial(read_configs, "spoken_digits.py"),
    measure=measure,
    draw=draw,
    medium="sound",
    title="Sound in two steps: spoken digits",
    intro="A transformer on log-mel spectrograms",
    example=("Make clips", "--num=10 --out=digits.wav"),
    num_samples=1000,
    columns=(*COLUMNS, *SHOWN),
    legend=(
        "digit_accuracy: share of clips in which a frozen network hears the digit that "
        "was asked for, before and after the way back from a spectrogram to sound; "
        "pitch_distance: from real clips, semitones, over the clips that have a voice; "
        "duration_distance: from real clips, seconds; nearest: median distance to the "
        "nearest training clip; frechet_distance: larger for fewer clips "
        "(num_samples). Real clips: voices that no training clip has."
    ),
    noun="a clip",
    speed=realtime_text,
)
