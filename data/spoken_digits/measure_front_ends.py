"""Measure the moments of every bin, and what a front end loses, on real clips.

Run: python data/spoken_digits/measure_front_ends.py --output=front_ends.json
Expect: the table of README.md beside this file; about one minute on one core.

Mean and standard deviation over 10,000 training clips of another seed than the data
set's. The round trip is that of 1,000 held-out clips: relative error of the magnitudes
(spectral convergence), and time of the way back.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

from scm_jax.datasets.front_ends import (
    ComplexStft,
    FrontEnd,
    LogMel,
    Pieces,
    stft,
    whiten,
)
from scm_jax.datasets.sound_clips import fitted
from scm_jax.datasets.spoken_digits import RATE, SpeechSource, say_digit
from scm_jax.datasets.spoken_numbers import SAMPLES, NumberSource

SEED = 1  # the data set's is 0
FRONT_ENDS: dict[str, FrontEnd] = {
    "log_mel": LogMel(RATE, 3_968),
    "log_mel_64": LogMel(RATE, 4_032, fft=512, hop=64, bands=64),
    "stft": ComplexStft(RATE, 4_032),
    "waveform": Pieces(RATE, 4_032),
}
SEQUENCE = LogMel(RATE, SAMPLES)  # of ``spoken_numbers``


def words(split: str, number: int) -> list[np.ndarray]:
    """Spoken digits, each of its own length."""
    digits, speakers = SpeechSource(split=split, seed=SEED).said(np.arange(number))
    return list(map(say_digit, digits, speakers))


def round_trip(front_end: FrontEnd, sound: np.ndarray) -> dict[str, float]:
    """What is lost on the way to values and back, and milliseconds a clip."""
    values = front_end.values(sound)
    started = time.process_time()
    back = front_end.sound(values)
    seconds = time.process_time() - started
    before, after = (np.abs(stft(s, 256, 64)) for s in (sound, back))
    lost = np.linalg.norm(after - before, axis=(1, 2))
    convergence = lost / np.linalg.norm(before, axis=(1, 2))
    return {
        "spectral_convergence": round(float(convergence.mean()), 4),
        "largest_error": float(np.abs(back - sound).max()),
        "ms_a_clip": round(1e3 * seconds / len(sound), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--output", type=Path, help="where to write the front ends")
    parser.add_argument("--num_items", type=int, default=10_000)
    arguments = parser.parse_args()
    train, test = words("train", arguments.num_items), words("test", 1_000)
    lengths = np.array([len(word) for word in train]) / RATE
    print(
        f"seconds, quantiles 0.01 0.5 0.99: {np.quantile(lengths, (0.01, 0.5, 0.99))}"
    )
    found = {}
    for name, front_end in FRONT_ENDS.items():
        clips, held_out = (
            np.stack([fitted(word, front_end.samples, RATE) for word in part])
            for part in (train, test)
        )
        blocks = np.array_split(clips, max(1, len(clips) // 1_000))
        found[name] = whiten(front_end, blocks).to_manifest()
        fits = np.mean([len(word) <= front_end.samples for word in train])
        trip = round_trip(front_end, held_out)
        print(json.dumps({name: front_end.shape, "fits": float(fits), **trip}))
    source, number = NumberSource(seed=SEED), arguments.num_items // 4
    clips = [source.sound(rows) for rows in np.array_split(np.arange(number), 10)]
    found["log_mel_4"] = whiten(SEQUENCE, clips).to_manifest()
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
