"""The law of bouncing: true clips, and clips that break it."""

import dataclasses

import numpy as np
import pytest

from scm_jax.datasets import make_dataset
from scm_jax.datasets.moving_digits import ClipSource, Motion, draw
from scm_jax.evaluation import EVALUATORS, Subject, build
from scm_jax.evaluation.metrics import clip_motion
from scm_jax.types import Cond

NUM = 150
SOURCE = ClipSource()
CLIPS = SOURCE.gather(np.arange(NUM))["clip"]
REAL = ClipSource(split="test").gather(np.arange(NUM))["clip"]


def walk():
    """The true steps' length in random directions."""
    rng, motion = np.random.default_rng(0), SOURCE.motion(np.arange(NUM))
    place, frames = motion.start, []
    for _ in range(SOURCE.frames):
        still = Motion(motion.image, place, np.zeros_like(place))
        frames.append(draw(still, 1, SOURCE.side)[:, 0])
        place = np.clip(place + rng.normal(size=place.shape), 0, SOURCE.room)
    return np.stack(frames, axis=1)


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
    shuffled = np.stack([clip[rng.permutation(8)] for clip in CLIPS])
    assert clip_motion.compare(shuffled, REAL)["residual"] > 1.2
    assert 0.4 < clip_motion.compare(walk(), REAL)["residual"] < 1
    frozen = clip_motion.compare(np.repeat(CLIPS[:, :1], 8, axis=1), REAL)
    assert frozen["residual"] < 1e-6
    assert frozen["speed_distance"] == pytest.approx(frozen["speed_real"])


def test_faint_pixels_and_empty_frames_have_no_place():
    pixels = np.zeros((1, 2, 16, 16, 1), np.uint8)
    pixels[0, 0, 3, 5] = 200
    pixels[0, 0, 12] = 30  # below the threshold
    found = clip_motion.centroids(pixels)
    np.testing.assert_allclose(found[0], [[3.5, 5.5], [8, 8]])


def test_a_run_is_asked_for_the_labels_of_real_clips():
    """A sampler that copies has the numbers of real clips, one that freezes has not."""
    x, label = make_dataset("moving_digits", "test", num_items=80).arrays()
    asked = []

    def generate(num, steps, seed, labels):
        asked.append(labels)
        return x[:num]

    subject = Subject(
        sigma_data=0.5,
        generate=generate,
        to_pixels=make_dataset("moving_digits").info.to_pixels,
        batch=lambda num, seed: (
            x[-num:],
            Cond(t=x[:num, 0, 0, 0, 0], label=label[-num:]),
        ),
    )
    evaluator = build("clip_motion", num_samples=40)
    found = evaluator(subject)
    assert found == evaluator(subject)
    np.testing.assert_array_equal(asked[0], label[-40:])
    assert found["residual"] == pytest.approx(found["residual_real"], abs=0.02)
    still = dataclasses.replace(subject, generate=lambda n, *_: x[:n, :1].repeat(8, 1))
    assert evaluator(still)["speed"] < 1e-6
    flat = dataclasses.replace(subject, batch=lambda n, _: (x[:n, 0], Cond(t=x[:n])))
    with pytest.raises(ValueError, match=r"\(16, 16, 1\) are no clips"):
        EVALUATORS["clip_motion"](flat)
