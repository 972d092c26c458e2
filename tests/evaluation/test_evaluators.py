"""Evaluators with a generator and a student whose quality is known."""

import dataclasses
import json

import numpy as np
import pytest

from scm_jax import evaluation, trigflow
from scm_jax.evaluation import EVALUATORS, PretrainedQuality, SampleQuality, Subject
from scm_jax.evaluation.sample_quality import labels_in_proportion
from scm_jax.evaluation.validation import exact_consistency
from scm_jax.trigflow.exact import Gaussian

SIGMA_DATA, NUM = 0.5, 400
GAUSSIAN = Gaussian(mean=(0.25, -0.15), std=0.3)


def to_x(pixels):
    return (pixels.astype(np.float32) - 78) / 192


def to_pixels(x):
    return np.rint(np.clip(x * 192 + 78, 0, 255)).astype(np.uint8)


@dataclasses.dataclass
class Resampler:
    """Returns real images of the requested labels; records what it was asked for."""

    pixels: np.ndarray
    labels: np.ndarray
    calls: list = dataclasses.field(default_factory=list)

    def __call__(self, num, steps, seed, labels):
        self.calls.append((num, steps, seed, labels))
        rng = np.random.default_rng(seed)
        if labels is None:
            return to_x(self.pixels[rng.integers(0, len(self.pixels), num)])
        rows = [rng.choice(np.flatnonzero(self.labels == label)) for label in labels]
        return to_x(self.pixels[rows])


@pytest.fixture(scope="module")
def few(digits):
    """As many digits as the claims need."""
    return tuple(values[:NUM] for values in digits)


@pytest.fixture(scope="module")
def digits_subject(few):
    pixels, labels = few
    return Subject(
        sigma_data=SIGMA_DATA,
        generate=Resampler(pixels, labels),
        reference=lambda: (to_x(pixels), labels),
        to_pixels=to_pixels,
    )


@pytest.fixture(scope="module")
def subject(digits_subject):
    """A subject that has everything any evaluator may ask for."""
    return dataclasses.replace(
        digits_subject,
        f=exact_map,
        closed_form=GAUSSIAN,
        flow_map=lambda x_t, t, s, label: GAUSSIAN.flow(x_t, t, s, SIGMA_DATA),
        map_residuals=lambda x0, z, t, s, label: {"eulerian": z[:, 0] ** 2 * s.sin},
        batch=lambda num, seed: (np.full((num, 2), seed, np.float32), None),
        validation_error=lambda x0, z, time, label: (z[:, 0] ** 2, z[:, 1] ** 2),
        teacher_paths=lambda num, steps, seed: (
            np.linspace(1.5, 0, steps + 1),
            np.ones((steps + 1, num, 2), np.float32),
            None,
        ),
    )


def exact_map(x_t, t, label):
    time = trigflow.time_from_t(t)
    return exact_consistency(GAUSSIAN, x_t, time, SIGMA_DATA)


# --- Contract -------------------------------------------------------------------------


# Not those of pretrained networks, which need weights (test_pretrained.py has a small
# one), nor those for other images than digits, which have tests of their own.
OFFLINE = [
    name
    for name, it in EVALUATORS.items()
    if not isinstance(it, PretrainedQuality)
    and not name.startswith(("shapes", "captions", "moving_digits", "spoken", "emoji"))
]
assert len(OFFLINE) > 3


@pytest.mark.parametrize("name", OFFLINE)
def test_every_evaluator_returns_numbers_that_repeat(name, subject):
    evaluator = evaluation.build(name)
    assert evaluator == EVALUATORS[name]
    assert dataclasses.is_dataclass(evaluator) and hash(evaluator) is not None
    metrics = evaluator(subject)
    for key, value in metrics.items():
        assert type(value) in (int, float, list), key
        assert np.isfinite(value).all(), key
    assert json.loads(json.dumps(metrics)) == evaluator(subject)


@pytest.mark.parametrize("name", EVALUATORS)
def test_every_evaluator_says_what_is_missing(name):
    with pytest.raises(ValueError, match=r"needs Subject\.\w+"):
        evaluation.build(name)(Subject(sigma_data=SIGMA_DATA))


def test_build_changes_settings_and_refuses_unknown_ones():
    assert evaluation.build("digits", steps=4, seed=7) == SampleQuality(steps=4, seed=7)
    positive = ("steps", "num_seeds", "num_neighbours", "floor_splits")
    for name, settings, message in (
        ("digit", {}, "did you mean 'digits'"),
        ("fad", {}, "mixture_consistency"),
        ("digits", {"num_seed": 2}, "did you mean 'num_seeds'"),
        ("digits", {"features": "inception"}, "digits_classifier"),
        *(("digits", {setting: 0}, f"{setting} = 0") for setting in positive),
        ("mixture_consistency", {"num_times": 0}, "num_times = 0"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluation.build(name, **settings)


# --- Sample quality -------------------------------------------------------------------


def test_copies_of_the_data_are_perfect(digits_subject, few):
    pixels, labels = few
    order = np.argsort(labels, kind="stable")
    copy = dataclasses.replace(
        digits_subject, generate=lambda num, steps, seed, labels: to_x(pixels[order])
    )
    metrics = EVALUATORS["digits"](copy)
    assert metrics["frechet_distance"] < 1e-9
    assert metrics["precision"] == metrics["recall"] == 1
    # The classifier errs on one or two of the real images.
    assert metrics["class_accuracy"] > 0.99
    assert metrics["frechet_floor"] > 0.1


def test_real_images_score_like_real_data(digits_subject):
    metrics = EVALUATORS["digits"](digits_subject)
    assert metrics["frechet_distance"] < metrics["frechet_floor"]
    assert metrics["precision"] == 1
    assert metrics["recall"] > 0.8
    assert metrics["class_accuracy"] > 0.99
    assert metrics["num_samples"] == NUM


def test_noise_is_seen_through_quantization(digits_subject):
    noise = np.random.default_rng(0).normal(0, 0.4, (NUM, 8, 8, 1))
    noisy = dataclasses.replace(
        digits_subject,
        generate=lambda *call: digits_subject.generate(*call) + np.float32(noise),
    )
    metrics = EVALUATORS["digits"](noisy)
    assert metrics["frechet_distance"] > 3 * metrics["frechet_floor"]
    assert metrics["precision"] < 0.5


def test_samples_of_the_wrong_class_cost_accuracy_only(digits_subject):
    generate = digits_subject.generate
    shifted = dataclasses.replace(
        digits_subject,
        generate=lambda num, steps, seed, labels: generate(
            num, steps, seed, np.where(np.arange(num) % 4 == 0, labels[::-1], labels)
        ),
    )
    metrics = EVALUATORS["digits"](shifted)
    assert metrics["class_accuracy"] == pytest.approx(0.75, abs=0.03)
    assert metrics["frechet_distance"] < metrics["frechet_floor"]


def test_generator_is_asked_for_the_data_s_own_labels(digits_subject, few):
    generate = Resampler(*few)
    EVALUATORS["digits"](dataclasses.replace(digits_subject, generate=generate))
    ((num, steps, seed, labels),) = generate.calls
    assert (num, steps, seed) == (NUM, 2, 0)
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(np.bincount(labels), np.bincount(few[1]))


def test_unlabelled_data_has_no_class_accuracy(digits_subject):
    x, _ = digits_subject.reference()
    generate = Resampler(digits_subject.generate.pixels, None)
    unlabelled = dataclasses.replace(
        digits_subject, generate=generate, reference=lambda: (x, None)
    )
    metrics = EVALUATORS["digits"](unlabelled)
    assert "class_accuracy" not in metrics
    assert generate.calls[0][3] is None
    assert metrics["frechet_distance"] < 2 * metrics["frechet_floor"]


def test_several_seeds_give_mean_and_spread_never_the_best(digits_subject):
    settings = {"num_samples": 100, "floor_splits": 2}
    single = [
        evaluation.build("digits", seed=seed, **settings)(digits_subject)
        for seed in (5, 6, 7)
    ]
    both = evaluation.build("digits", seed=5, num_seeds=3, **settings)
    metrics = both(digits_subject)
    for name in ("frechet_distance", "precision", "recall", "class_accuracy"):
        expected = np.mean([row[name] for row in single])
        assert metrics[name] == pytest.approx(expected, rel=1e-12)
    spread = np.std([row["frechet_distance"] for row in single], ddof=1)
    assert metrics["frechet_distance_std"] == pytest.approx(spread, rel=1e-9)
    assert metrics["num_seeds"] == 3 and metrics["num_samples"] == 100
    assert "frechet_distance_std" not in single[0]
    assert metrics["frechet_floor"] == single[0]["frechet_floor"]


def test_raw_samples_have_the_closed_form_distance():
    real = np.random.default_rng(0).normal(0.2, 0.5, (500, 1)).astype(np.float32)
    flat = Subject(
        sigma_data=0.5,
        generate=lambda num, steps, seed, labels: 2 * real + 1,
        reference=lambda: (real, None),
    )
    expected = (real.astype(np.float64).mean() + 1) ** 2 + real.var(ddof=1, dtype=float)
    metrics = evaluation.build("raw_samples")(flat)
    assert metrics["frechet_distance"] == pytest.approx(expected, rel=1e-6)


def test_bad_samples_are_refused(digits_subject):
    def nan_at_nine(num, *_):
        samples = np.zeros((num, 8, 8, 1), np.float32)
        samples[9, 3, 3] = np.nan
        return samples

    for generate, message in (
        (nan_at_nine, "1 of 400 samples are not finite .* the first is sample 9"),
        (lambda n, *_: np.zeros((n, 64)), r"\(400, 64\): expected \(400, 8, 8, 1\)"),
        (lambda n, *_: np.zeros((n - 1, 8, 8, 1)), r"\(399, 8, 8, 1\)"),
    ):
        bad = dataclasses.replace(digits_subject, generate=generate)
        with pytest.raises(ValueError, match=message):
            EVALUATORS["digits"](bad)


def test_labels_keep_their_proportions():
    labels = np.array([2, 0, 2, 1, 2, 0, 2, 2])
    np.testing.assert_array_equal(labels_in_proportion(labels, 8), np.sort(labels))
    for num in (1, 3, 8, 20, 101):
        counts = np.bincount(labels_in_proportion(labels, num), minlength=3)
        assert counts.sum() == num
        np.testing.assert_allclose(counts, np.array([2, 1, 5]) * num / 8, atol=1)
