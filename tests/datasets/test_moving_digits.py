"""Clips of digits: paths, labels, splits."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from scm_jax.datasets import make_dataset
from scm_jax.datasets import moving_digits as clips
from scm_jax.datasets.moving_digits import ClipSource

DIGITS = load_digits()
NUM = 40


def centroid(image):
    """Mean position ``(..., 2)`` of the light in ``(..., h, w)``, from the corner."""
    light = np.asarray(image, float)
    total = light.sum((-2, -1))
    rows, columns = (np.arange(n) + 0.5 for n in light.shape[-2:])
    down = (light.sum(-1) * rows).sum(-1) / total
    return np.stack([down, (light.sum(-2) * columns).sum(-1) / total], -1)


def reflected(start, velocity, frames, room):
    """By the definition: step by step, turning at the walls."""
    path, place, v = [], np.array(start), np.array(velocity)
    for _ in range(frames):
        path.append(place.copy())
        place += v
        for axis in (0, 1):
            if not 0 <= place[axis] <= room:
                wall = 0 if place[axis] < 0 else room
                place[axis], v[axis] = 2 * wall - place[axis], -v[axis]
    return np.array(path)


@pytest.mark.parametrize(("side", "frames"), [(16, 12), (32, 5)])
def test_the_digit_of_the_label_follows_its_path(side, frames):
    source = ClipSource(side=side, frames=frames)
    fields, motion = source.gather(np.arange(NUM)), source.motion(np.arange(NUM))
    assert fields["clip"].shape == (NUM, frames, side, side, 1)
    np.testing.assert_array_equal(fields["label"], DIGITS.target[motion.image[:, 0]])
    speed = np.linalg.norm(motion.velocity, axis=-1) * 16 / side
    assert 0.75 <= speed.min() < 0.9 and 1.8 < speed.max() <= 2
    for i in range(NUM):
        path = reflected(motion.start[i, 0], motion.velocity[i, 0], frames, side / 2)
        inside = centroid(DIGITS.images[motion.image[i, 0]]) * side / 16
        seen = centroid(fields["clip"][i, ..., 0])
        # Half of a border pixel of light is cut off where a digit touches a wall.
        np.testing.assert_allclose(seen, path + inside, atol=0.3)
        assert np.median(np.abs(seen - path - inside)) < 0.05


def test_two_digits_are_seen_one_before_the_other():
    source = ClipSource(num_digits=2)
    fields, motion = source.gather(np.arange(NUM)), source.motion(np.arange(NUM))
    both = []
    for d in (0, 1):
        alone = clips.Motion(*(a[:, d : d + 1] for a in motion))
        both.append(clips.draw(alone, source.frames, source.side))
    np.testing.assert_array_equal(fields["clip"], np.maximum(*both))
    pairs = [(a, b) for a in range(10) for b in range(a + 1)]
    shown = DIGITS.target[motion.image]
    for label, digits in zip(fields["label"], shown, strict=True):
        assert pairs[label] == (max(digits), min(digits))


def test_an_item_depends_on_split_seed_and_number_alone():
    some, train = np.array([7, 3, 5]), ClipSource()
    clip = train.gather(some)["clip"]
    longer = ClipSource(num_items=10).gather(np.arange(10))["clip"]
    np.testing.assert_array_equal(clip, longer[some])
    test = ClipSource(split="test")
    for other in (test, ClipSource(seed=1)):
        assert (other.gather(some)["clip"] != clip).any((1, 2, 3, 4)).all()
    many = np.arange(2000)
    shown = [set(source.motion(many).image.ravel()) for source in (train, test)]
    assert not shown[0] & shown[1]
    assert len(shown[0]) > 1000 and len(shown[1]) > 330


def test_batches_have_the_declared_scale_and_come_back_as_pixels():
    dataset = make_dataset("moving_digits", num_items=600)
    x, label = dataset.arrays()
    assert x.shape == (600, *dataset.info.sample_shape) and label.max() == 9
    assert abs(x.mean()) < 0.02 and x.std() == pytest.approx(0.5, rel=0.03)
    stored = ClipSource(num_items=600).gather(np.arange(600))["clip"]
    np.testing.assert_array_equal(dataset.info.to_pixels(x), stored)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"side": 20}, r"dataset\.side = 20 is not one of"),
        ({"num_digits": 3}, r"dataset\.num_digits = 3 is not one of"),
        ({"frames": 0}, r"dataset\.frames = 0 must be at least 1"),
        ({"split": "validation"}, "split of dataset 'moving_digits'"),
    ],
)
def test_settings_that_do_not_fit_are_errors(settings, message):
    with pytest.raises(ValueError, match=message):
        make_dataset("moving_digits", **{"split": "train", **settings})
