"""Metrics over a pretrained network, with a small network in its place."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scm_jax.evaluation import Subject, pretrained_quality
from scm_jax.evaluation.features.extraction import FeatureNet
from scm_jax.evaluation.metrics import frechet
from scm_jax.evaluation.pretrained_quality import PretrainedQuality
from scm_jax.evaluation.protocol import Protocol, measured_differently
from scm_jax.evaluation.references import accumulate
from scm_jax.evaluation.references.statistics import read_reference

SHAPE = (4, 4, 3)


def apply(params, images):
    """Mean colours and contrasts; the class is the brightest colour."""
    x = images.astype(jnp.float32) / 255
    mean = x.mean((1, 2))
    corner = x[:, :2, :2].reshape(len(x), -1)
    return {
        "features": mean @ params,
        "spatial": corner.reshape(len(x), 2, 2, 3),
        "logits": 30.0 * mean,
    }


def tiny_net(weights=None):
    mix = np.array([[1.0, 0.5], [0.0, 1.0], [-1.0, 0.3]], np.float32)
    return FeatureNet("tiny", "ab" * 32, "none", apply, mix, batch_size=64)


@pytest.fixture(autouse=True)
def small_network(monkeypatch):
    pretrained_quality.load_net.cache_clear()
    monkeypatch.setitem(pretrained_quality.FEATURE_NETS, "tiny", tiny_net)
    spaces = {"features": "fd_tiny", "spatial": "sfd_tiny"}
    monkeypatch.setitem(accumulate.SPACES, "tiny", spaces)
    yield
    pretrained_quality.load_net.cache_clear()


def colours(num, seed, shift=0):
    """uint8 images around a grey level."""
    rng = np.random.default_rng(seed)
    return np.clip(rng.normal(120 + shift, 30, (num, *SHAPE)), 0, 255).astype(np.uint8)


def in_batches(images, size=37):
    return (images[i : i + size] for i in range(0, len(images), size))


def between(images):
    """The images as ``measure_reference`` asks for them."""
    return lambda first, end: in_batches(images[first:end])


@pytest.fixture
def reference(tmp_path):
    images = colours(300, 1)
    path = tmp_path / "reference.npz"
    net = tiny_net()
    accumulate.measure_reference(net, between(images), 300, path, "colours")
    return path, images


@pytest.fixture
def subject(reference):
    return Subject(
        sigma_data=0.5,
        pixels=lambda num, steps, seed, part: itertools.islice(
            in_batches(colours(num, 10 + seed, shift=9)), part[0], None, part[1]
        ),
        quantization=lambda: "127.5x+128, truncated",
        sampling={"sampler": "heun", "times": (), "guidance": 1.0, "ema": "0.05"},
        reference_file=lambda net: reference[0],
    )


def features_of(images):
    return np.asarray(apply(tiny_net().params, jnp.asarray(images))["features"])


def test_a_reference_is_that_of_all_images_at_once(reference):
    path, images = reference
    found = read_reference(path, "fd_tiny")
    stats = frechet.feature_stats(features_of(images))
    np.testing.assert_allclose(found.mean, stats.mean, rtol=1e-6)
    np.testing.assert_allclose(found.covariance, stats.covariance, rtol=1e-4)
    assert found.count == 300 and found.features.shape == (300, 2)
    assert found.protocol["extractor_sha256"] == "ab" * 32
    assert read_reference(path, "sfd_tiny").mean.shape == (12,)


def test_distance_is_that_of_samples_and_reference_in_one_piece(subject, reference):
    row = PretrainedQuality("tiny", ("fid",), num_samples=200)(subject)
    sets = reference[1], colours(200, 10, shift=9)
    expected = frechet.feature_distance(*map(features_of, sets))
    assert row["fd_tiny"] == pytest.approx(expected, rel=1e-4)
    assert expected > 1e-3


@pytest.mark.parametrize("num", [120, 60], ids=["all have some", "one has none"])
def test_processes_share_the_samples(subject, monkeypatch, num):
    evaluator = PretrainedQuality("tiny", ("fid", "sfid"), num_samples=num)
    alone = evaluator(subject)
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    sent = {}

    def run_process(index, gather):
        monkeypatch.setattr(jax, "process_index", lambda: index)
        monkeypatch.setattr(accumulate, "all_gather", gather)
        return evaluator(subject)

    for index in range(3):  # to see what each sends; alone its samples are too few
        sent[index] = []
        with pytest.raises(ValueError, match=f"samples came, not {num}"):
            run_process(index, lambda bits, i=index: sent[i].append(bits) or bits[None])
    together = [np.stack(parts) for parts in zip(*sent.values(), strict=True)]
    assert len(together) == 2
    for index in range(3):
        row = run_process(index, lambda bits, answers=iter(together): next(answers))
        assert row["fd_tiny"] == pytest.approx(alone["fd_tiny"], rel=1e-9)
        assert row["sfid_tiny"] == pytest.approx(alone["sfid_tiny"], rel=1e-9)


def test_all_processes_get_the_same_union_to_the_last_bit(monkeypatch):
    data = np.random.default_rng(0).standard_normal((64, 5)) * 1e-3 + 7.1
    parts = [frechet.feature_stats(x) for x in np.split(data, [40, 41, 41])]
    alone = accumulate.all_processes(parts[0])
    np.testing.assert_array_equal(alone.scatter, parts[0].scatter)
    assert accumulate.all_processes(frechet.empty_stats(3)).count == 0
    sent = []
    monkeypatch.setattr(
        accumulate, "all_gather", lambda bits: sent.append(bits) or bits[None]
    )
    for part in parts:
        accumulate.all_processes(part)
    assert {bits.dtype for bits in sent} == {np.dtype(np.uint32)}
    monkeypatch.setattr(accumulate, "all_gather", lambda bits: np.stack(sent))
    merged = functools.reduce(frechet.merge_stats, parts)
    result = accumulate.all_processes(parts[2])
    assert result.count == 64
    np.testing.assert_array_equal(result.mean, merged.mean)
    np.testing.assert_array_equal(result.scatter, merged.scatter)


def test_features_themselves_each_process_draws_alone(subject, monkeypatch):
    evaluator = PretrainedQuality("tiny", ("fid", "kid"), num_samples=60)
    alone = evaluator(subject)
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    assert evaluator(subject) == alone


def test_of_many_images_features_are_kept_evenly(tmp_path, monkeypatch):
    monkeypatch.setattr(accumulate, "KEPT_FEATURES", 4)
    monkeypatch.setattr(accumulate, "BLOCK", 50)
    images, path = colours(200, 3), tmp_path / "r.npz"
    accumulate.measure_reference(tiny_net(), between(images), 200, path, "colours")
    kept = read_reference(path, "fd_tiny").features
    np.testing.assert_allclose(kept, features_of(images)[::50], rtol=1e-6)


def test_seeds_give_mean_spread_and_values_and_no_best(subject):
    build = functools.partial(PretrainedQuality, "tiny", num_samples=100)
    row = build(num_seeds=3, seed=4)(subject)
    single = [build(seed=seed)(subject)["fd_tiny"] for seed in (4, 5, 6)]
    assert row["fd_tiny_values"] == single
    assert row["fd_tiny"] == pytest.approx(np.mean(single), rel=1e-12)
    assert row["fd_tiny_std"] == pytest.approx(np.std(single, ddof=1), rel=1e-12)
    assert not [key for key in row if "best" in key or "min" in key]


def test_all_metrics_have_the_name_of_their_network(subject):
    metrics = ("fid", "sfid", "kid", "prdc", "is")
    row = PretrainedQuality("tiny", metrics, num_samples=120)(subject)
    names = {"fd_tiny", "sfid_tiny", "kid_tiny", "precision_tiny", "recall_tiny"}
    names |= {"inception_score_tiny", "coverage_tiny"}
    assert names <= set(row)
    assert 1 <= row["inception_score_tiny"] <= 3


def test_the_protocol_travels_with_the_number(subject, reference):
    row = PretrainedQuality("tiny", num_samples=50, num_seeds=2, steps=4)(subject)
    protocol = Protocol(**row["protocol"])
    assert protocol.reference_sha256 == read_reference(reference[0], "fd_tiny").sha256
    assert (protocol.extractor, protocol.resize) == ("tiny", "none")
    assert (protocol.num_samples, protocol.seeds, protocol.steps) == (50, (0, 1), 4)
    assert (protocol.reference_count, protocol.ema) == (300, "0.05")
    more = PretrainedQuality("tiny", num_samples=60)(subject)
    other = Protocol(**more["protocol"])
    assert measured_differently(protocol, other)["num_samples"] == (50, 60)


def test_a_reference_of_other_weights_is_refused(subject, monkeypatch):
    def other(weights=None):
        return dataclasses.replace(tiny_net(), weights_sha256="cd" * 32)

    monkeypatch.setitem(pretrained_quality.FEATURE_NETS, "tiny", other)
    with pytest.raises(ValueError, match=r"extractor_sha256 abab.*would have cdcd"):
        PretrainedQuality("tiny", num_samples=50)(subject)


def test_images_that_are_missing_are_noticed(tmp_path):
    images = between(colours(100, 1))
    with pytest.raises(ValueError, match="100 images came .* 0 to 119: expected 120"):
        accumulate.measure_reference(tiny_net(), images, 120, tmp_path / "r.npz", "x")
    assert not list(tmp_path.glob("*.npz"))


def test_a_measurement_in_parts_goes_on_and_is_shared(tmp_path, monkeypatch):
    """Bit by bit the same for one process, for two, and after a kill."""
    monkeypatch.setattr(accumulate, "PART_IMAGES", 40)
    images, asked = colours(200, 2), []

    def source(first, end):
        asked.append(first)
        if first == 120 and "broken" in state:
            raise KeyboardInterrupt
        return in_batches(images[first:end])

    def measure(name, **process):
        path = tmp_path / name
        done = accumulate.measure_reference(
            tiny_net(), source, 200, path, "colours", **process
        )
        return path.read_bytes() if done else None

    state = set()
    whole = measure("whole.npz")
    assert asked == [0, 40, 80, 120, 160]
    assert measure("two.npz", process_index=1, process_count=2) is None
    assert measure("two.npz", process_index=0, process_count=2) == whole
    state.add("broken")
    with pytest.raises(KeyboardInterrupt):
        measure("killed.npz")
    state.clear(), asked.clear()
    assert measure("killed.npz") == whole
    assert asked == [120, 160]
    names = {file.name for file in tmp_path.iterdir()}
    assert names == {"whole.npz", "two.npz", "killed.npz"}


def test_settings_are_checked():
    for settings, message in (
        ({"network": "vgg"}, "evaluator setting network = 'vgg'"),
        ({"metrics": ("lpips",)}, "evaluator setting metrics = 'lpips'"),
        ({"num_samples": 1}, "num_samples = 1: must be at least 2"),
    ):
        with pytest.raises(ValueError, match=message):
            PretrainedQuality(**{"network": "tiny", **settings})
