"""Clips of digits: the law of bouncing, the frozen network, and what breaks them."""

import dataclasses

import numpy as np
import pytest

from scm_jax.datasets import make_dataset
from scm_jax.datasets.moving_digits import ClipSource, wander
from scm_jax.evaluation import EVALUATORS, Subject, build
from scm_jax.evaluation.features import clips_reader
from scm_jax.evaluation.metrics import clip_motion
from scm_jax.types import Cond

NUM = 150
SOURCE = ClipSource()
CLIPS = SOURCE.gather(np.arange(NUM))["clip"]
REAL = ClipSource(split="test").gather(np.arange(NUM))["clip"]


def test_true_clips_obey_the_law_at_their_speed():
    motion = SOURCE.motion(np.arange(NUM))
    fit = clip_motion.fit_bounces(clip_motion.centroids(CLIPS), 8.0, 4.0)
    speed = np.linalg.norm(motion.velocity[:, 0], axis=-1)
    assert np.median(np.abs(fit.speed - speed)) < 0.03
    found = clip_motion.compare(CLIPS, REAL)
    assert found["residual"] == pytest.approx(0.065, abs=0.02)
    assert found["residual_real"] == pytest.approx(0.065, abs=0.02)
    assert found["speed_distance"] < 0.12


def test_broken_clips_break_the_law_or_have_another_speed():
    rng = np.random.default_rng(1)
    walk = wander(SOURCE, np.arange(NUM), np.random.default_rng(0))
    shuffled = np.stack([clip[rng.permutation(8)] for clip in CLIPS])
    assert clip_motion.compare(shuffled, REAL)["residual"] > 1.2
    assert 0.4 < clip_motion.compare(walk, REAL)["residual"] < 1
    frozen = clip_motion.compare(np.repeat(CLIPS[:, :1], 8, axis=1), REAL)
    assert frozen["residual"] < 1e-6
    assert frozen["speed_distance"] == pytest.approx(frozen["speed_real"])


def test_faint_pixels_and_empty_frames_have_no_place():
    pixels = np.zeros((1, 2, 16, 16, 1), np.uint8)
    pixels[0, 0, 3, 5] = 200
    pixels[0, 0, 12] = 30  # below the threshold
    found = clip_motion.centroids(pixels)
    np.testing.assert_allclose(found[0], [[3.5, 5.5], [8, 8]])


def test_the_frozen_network_reads_digits_of_held_out_handwriting():
    weights = clips_reader.load_weights()
    source = ClipSource("test", 100_000)  # no table has been measured on the last ones
    fields = source.gather(np.arange(99_600, 100_000))
    seen = clips_reader.read(weights, fields["clip"])
    frames = seen["frame_digit"].argmax(-1) == fields["label"][:, None]
    assert frames.mean() > 0.96 and frames.all(axis=1).mean() > 0.91
    assert (seen["digit"].argmax(-1) == fields["label"]).mean() > 0.96
    down, right = source.motion(np.arange(99_600, 100_000)).velocity[:, 0].T
    eighth = np.floor(8 * np.arctan2(down, right) / (2 * np.pi)) % 8
    assert (seen["direction"].argmax(-1) == eighth).mean() > 0.9
    with pytest.raises(ValueError, match=r"expected uint8 \(n, 8, 16, 16, 1\)"):
        clips_reader.read(weights, fields["clip"][:, :4])


def subject_of(generate, frames=8):
    data = make_dataset("moving_digits", "test", frames=frames, num_items=160)
    x, label = data.arrays()
    return (
        x,
        label,
        Subject(
            sigma_data=0.5,
            generate=lambda *asked, **first: generate(x, label, *asked, **first),
            to_pixels=make_dataset("moving_digits").info.to_pixels,
            batch=lambda num, seed: (
                x[-num:],
                Cond(t=x[:num, 0, 0, 0, 0], label=label[-num:]),
            ),
        ),
    )


def with_digits(x, label, labels):
    """Other clips of the same digits."""
    rows = [np.flatnonzero(label[:80] == k) for k in labels]
    return x[[found[i % len(found)] for i, found in enumerate(rows)]]


def test_a_run_is_asked_for_the_labels_of_real_clips():
    """A sampler that copies has the numbers of real clips, one that freezes has not."""
    asked = []

    def generate(x, label, num, steps, seed, labels):
        asked.append(labels)
        return with_digits(x, label, labels)

    x, label, subject = subject_of(generate)
    evaluator = build("moving_digits", num_samples=80)
    found = evaluator(subject)
    assert found == evaluator(subject)
    np.testing.assert_array_equal(asked[0], label[-80:])
    assert found["residual"] == pytest.approx(found["residual_real"], abs=0.02)
    assert found["frame_agreement"] > 0.95 and found["all_frames_agree"] > 0.85
    assert found["frechet_distance"] < 1.5 * found["frechet_floor"]
    still, other = (
        evaluator(dataclasses.replace(subject, generate=lambda n, *_, x=made: x))
        for made in (x[-80:, :1].repeat(8, 1), x[:80])
    )
    assert still["speed"] < 1e-6 and still["frame_agreement"] > 0.95
    assert still["frechet_distance"] > 3 * found["frechet_distance"]
    assert other["frame_agreement"] < 0.3
    assert other["frame_agreement_real"] == found["frame_agreement_real"]
    flat = dataclasses.replace(subject, batch=lambda n, _: (x[:n, 0], Cond(t=x[:n])))
    with pytest.raises(ValueError, match=r"\(16, 16, 1\) are no clips"):
        EVALUATORS["moving_digits"](flat)


def test_clips_continue_the_first_frames_of_real_ones():
    told = []

    def generate(x, label, num, steps, seed, labels, first):
        told.append(first)
        made = x[-num:].copy()
        made[:, 5:] = made[:, 4:5]  # the digit stops
        return made

    x, _, subject = subject_of(generate)
    found = build("moving_digits", num_samples=20, first=2)(subject)
    np.testing.assert_array_equal(told[0], subject.to_pixels(x[-20:, :2]))
    paths = clip_motion.centroids(subject.to_pixels(x[-20:]))
    away = paths[:, 5:] - paths[:, 4:5]
    expected = np.sqrt((away**2).sum() / (20 * 6))
    assert found["path_error"] == pytest.approx(expected, rel=1e-6)


def test_single_frames_are_measured_without_a_path():
    x, _, subject = subject_of(lambda x, label, *_: x[:80], frames=1)
    evaluator = build("moving_digits", num_samples=80)
    found = evaluator(subject)
    assert not {"residual", "speed"} & found.keys()
    assert found["frechet_distance"] < 1.5 * found["frechet_floor"]
    assert found["precision"] > 0.7 and found["recall"] > 0.7
    one = dataclasses.replace(subject, generate=lambda *_: x[:1].repeat(80, 0))
    same = evaluator(one)
    assert same["precision"] == 1 and same["recall"] < 0.1
    assert same["frechet_distance"] > 5 * found["frechet_distance"]
