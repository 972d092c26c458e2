"""Pitch and length of sound, and what the evaluator of speech makes of broken clips."""

import numpy as np
import pytest

from scm_jax.datasets import front_ends, spoken_digits, spoken_numbers
from scm_jax.evaluation import build, speech_quality
from scm_jax.evaluation.metrics import voice
from scm_jax.evaluation.speech_quality import Heard
from scm_jax.evaluation.subject import Subject
from scm_jax.types import Cond

RATE = 8_000


def buzz(frequency, seconds=0.5):
    """Five harmonics, without the lowest: the pitch is heard all the same."""
    t = np.arange(round(seconds * RATE)) / RATE
    return sum(np.sin(2 * np.pi * k * frequency * t) for k in range(2, 7)) / 10


@pytest.mark.parametrize("frequency", [80.0, 125.0, 210.0, 350.0])
def test_pitch_of_a_missing_fundamental(frequency):
    (found,) = voice.pitch(buzz(frequency)[None], RATE)
    assert found == pytest.approx(frequency, rel=0.03)


def test_noise_and_silence_have_no_pitch():
    rng = np.random.default_rng(0)
    sound = np.stack([rng.normal(size=4000), np.zeros(4000)])
    assert np.isnan(voice.pitch(sound, RATE)).all()
    assert voice.duration(sound, RATE)[1] == 0


def test_distances_are_in_semitones_and_seconds():
    low, high = (np.stack([buzz(f) for f in fs]) for fs in ((100, 200), (200, 400)))
    found = voice.compare(np.pad(low, ((0, 0), (0, 800))), high[:, :2000], RATE)
    assert found["pitch_distance"] == pytest.approx(12, abs=0.3)
    assert found["duration_distance"] == pytest.approx(0.25, abs=0.01)
    assert found["voiced"] == found["voiced_real"] == 1


@pytest.fixture(scope="module")
def real():
    source = spoken_digits.SpeechSource(split="test", num_items=120)
    fields = source.gather(np.arange(120))
    seen = spoken_digits.open_front_end("log_mel")
    x = (fields["values"] - seen.mean) * (0.5 / seen.std)
    return x.astype(np.float32), fields["label"], seen


def heard(seen, x):
    sound = seen.to_sound(x)
    return Heard(sound, front_ends.spectrograms(sound, RATE), seen.to_pixels(x))


def test_other_digits_silence_and_high_voices_are_found(real):
    x, label, seen = real
    true = heard(seen, x)
    same = speech_quality.measure(true, true, label, RATE)
    assert same["digit_accuracy"] > 0.9 and same["digit_accuracy_before"] > 0.9
    assert same["pitch_distance"] == same["duration_distance"] == 0
    assert same["frechet_distance"] == pytest.approx(0, abs=1e-6)
    other = speech_quality.measure(true, true, (label + 1) % 10, RATE)
    assert other["digit_accuracy"] < 0.1
    quiet = heard(seen, np.zeros_like(x))
    broken = speech_quality.measure(quiet, true, label, RATE)
    assert broken["digit_accuracy"] < 0.3
    assert broken["frechet_distance"] > 10 * same["frechet_floor"]


@pytest.mark.parametrize("copied", [False, True])
def test_the_evaluator_reads_a_subject_and_finds_copies(copied, real):
    x, label, seen = real
    train = slice(0 if copied else 60, None)

    def generate(num, steps, seed, labels):
        assert labels.tolist() == label[:num].tolist()
        return x[:num]

    subject = Subject(
        sigma_data=0.5,
        generate=generate,
        reference=lambda: (x[train], label[train]),
        to_pixels=seen.to_pixels,
        batch=lambda num, seed: (x[:num], Cond(t=np.zeros(num), label=label[:num])),
        to_sound=seen.to_sound,
        sample_rate=RATE,
        spectrograms=lambda sound: front_ends.spectrograms(sound, RATE),
    )
    found = build("spoken_digits", num_samples=60)(subject)
    assert found["digit_accuracy"] == found["digit_accuracy_real"]
    assert found["nearest"] == found["nearest_real"]
    assert found["nearest"] < 0.01 if copied else found["nearest"] > 0.1
    with pytest.raises(ValueError, match=r"needs Subject.to_sound"):
        build("spoken_digits")(Subject(0.5))


def test_what_the_way_back_loses_is_heard(real):
    x, label, seen = real
    true = heard(seen, x)
    lost = Heard(0 * true.sound, np.zeros_like(true.images), true.before)
    found = speech_quality.measure(lost, true, label, RATE)
    assert found["digit_accuracy"] < 0.3 < 0.9 < found["digit_accuracy_before"]


def test_digits_are_heard_in_their_places():
    seen = spoken_digits.open_front_end(spoken_numbers.FRONT_END)
    offset = {"seen": 0, "held_out": 0}

    def generate(num, steps, seed, labels, *, prompts):
        kind = "held_out" if prompts.texts == held_out else "seen"
        source = spoken_numbers.NumberSource("test", num, kind)
        x = seen.to_x(source.sound(np.arange(num)))
        return np.roll(x, 32 * offset[kind], axis=1)

    subject = Subject(
        sigma_data=0.5,
        generate=generate,
        to_sound=seen.to_sound,
        sample_rate=RATE,
        sample_shape=seen.front_end.shape,
        spectrograms=lambda sound: front_ends.spectrograms(sound, RATE),
        questions=spoken_numbers.questions,
    )
    held_out = spoken_numbers.questions(30, "held_out").prompts.texts
    offset["held_out"] = 1  # a digit later
    found = build("spoken_numbers", num_samples=30)(subject)
    assert found["digits_seen"] > 0.9 and found["digits_seen_real"] > 0.9
    assert found["sequence_seen"] > 0.7 and found["sequence_seen_real"] > 0.7
    assert found["digits_held_out"] < 0.5 and found["sequence_held_out"] < 0.2
