"""Reference statistics: every format, from files that the tests write; bad files."""

import json
import os
import pickle

import numpy as np
import pytest

from scm_jax.evaluation.metrics import frechet
from scm_jax.evaluation.references import statistics
from scm_jax.evaluation.references.statistics import (
    Reference,
    read_reference,
    write_reference,
)
from scm_jax.files.state_dict import UnsafePickleError

SMALL = {"fid": 6, "sfid": 5, "fd_dinov2": 4}
FLAT = Reference(np.zeros(2), np.eye(2))


@pytest.fixture
def small(monkeypatch):
    """Feature spaces whose statistics are quick to write."""
    monkeypatch.setattr(statistics, "DIMENSIONS", SMALL)


def features(dim, n=40):
    return np.random.default_rng(dim).normal(1.0, 2.0, (n, dim))


def moments(metric):
    """Mean and covariance of the features of a space, by numpy."""
    x = features(SMALL[metric])
    return x.mean(0), np.cov(x, rowvar=False)


def pixels(n=3):
    return np.random.default_rng(0).integers(0, 256, (n, 4, 4, 3), dtype=np.uint8)


def write_adm(path):
    mu, sigma = moments("fid")
    mu_s, sigma_s = moments("sfid")
    np.savez(path, mu=mu, sigma=sigma, mu_s=mu_s, sigma_s=sigma_s, arr_0=pixels())


def write_mu_sigma(path):
    mu, sigma = moments("fid")
    np.savez(path, mu=mu, sigma=sigma)


def write_edm2(path):
    stats = {"num_images": 40}
    for metric in ("fid", "fd_dinov2"):
        mu, sigma = moments(metric)
        stats[metric] = {"mu": mu, "sigma": sigma}
    path.write_bytes(pickle.dumps(stats))


def write_kid(path):
    np.savez(path, feats=features(SMALL["fid"]).astype(np.float32))


def write_meanflow(path):
    mu, sigma = moments("fid")
    np.savez(path, ref_mu=mu, ref_sigma=sigma)


FILES = {
    "VIRTUAL_imagenet64_labeled.npz": (write_adm, "adm", ["fid", "sfid"], None),
    "cifar10-32x32.npz": (write_mu_sigma, "edm", ["fid"], None),
    "img512.pkl": (write_edm2, "edm2", ["fid", "fd_dinov2"], 40),
    "ffhq_clean_trainval70k_1024.npz": (write_mu_sigma, "clean_fid", ["fid"], None),
    "ffhq_clean_trainval70k_1024_kid.npz": (write_kid, "clean_fid", ["fid"], 40),
    "imagenet_256_fid_stats.npz": (write_meanflow, "meanflow", ["fid"], None),
}


@pytest.mark.parametrize("name", list(FILES))
def test_every_format_is_read_and_converted(small, tmp_path, name):
    """Statistics, count, features and images; and where they came from."""
    write, form, metrics, count = FILES[name]
    source, target = tmp_path / name, tmp_path / "converted.npz"
    write(source)
    statistics.convert_reference(source, target)
    for metric in metrics:
        found, after = read_reference(source, metric), read_reference(target, metric)
        mean, covariance = moments(metric)
        np.testing.assert_allclose(found.mean, mean, rtol=1e-6)
        np.testing.assert_allclose(found.covariance, covariance, atol=1e-6)
        assert found.mean.dtype == found.covariance.dtype == np.float64
        for field in ("mean", "covariance", "features"):
            np.testing.assert_array_equal(getattr(after, field), getattr(found, field))
        assert found.count == after.count == count
        origin = {"name": name, "format": form, "sha256": found.sha256}
        assert after.protocol["converted_from"] == origin
    with np.load(target) as stored:
        told = json.loads(stored["protocol"].tobytes())
        assert list(told["spaces"]) == metrics
        assert ("images" in stored.files) == (form == "adm")
        if form == "adm":
            np.testing.assert_array_equal(stored["images"], pixels())


def test_clean_fid_says_its_resize_rule_and_keeps_features(small, tmp_path):
    name = "ffhq_legacy_pytorch_trainval70k_1024_kid.npz"
    write_kid(tmp_path / name)
    found = read_reference(tmp_path / name)
    assert found.protocol == {
        "dataset": "ffhq",
        "resize": "legacy_pytorch",
        "split": "trainval70k",
        "resolution": "1024",
    }
    expected = features(SMALL["fid"]).astype(np.float32)
    np.testing.assert_array_equal(found.features, expected)


def test_the_hash_is_that_of_the_file(small, tmp_path):
    """Two files of the same statistics differ, as what made them may have."""
    write_meanflow(tmp_path / "a.npz")
    write_mu_sigma(tmp_path / "b.npz")
    hashes = {read_reference(tmp_path / f"{name}.npz").sha256 for name in "ab"}
    assert len(hashes) == 2
    (tmp_path / "c.npz").write_bytes((tmp_path / "a.npz").read_bytes())
    assert read_reference(tmp_path / "c.npz").sha256 in hashes


# Our own format.

MADE = {"extractor": "inception", "extractor_sha256": "ab", "resize": "tf1_bilinear"}


def test_own_files_come_back_whole(tmp_path):
    """Real sizes where there are any, and a space that no published file has."""
    x = features(8)
    stats = frechet.feature_stats(x)
    file = tmp_path / "digits.npz"
    rows = x.astype(np.float32)
    space = Reference(stats.mean, stats.covariance, stats.count, rows, MADE)
    spaces = {"digits": space, "other": FLAT}
    write_reference(file, spaces, dataset="digits", notes={"split": "train"})
    found = read_reference(file, "digits")
    np.testing.assert_array_equal(found.mean, stats.mean)
    np.testing.assert_array_equal(found.covariance, stats.covariance)
    np.testing.assert_array_equal(found.features, rows)
    assert found.count == 40
    assert found.protocol == {"dataset": "digits", "split": "train", **MADE}
    other = read_reference(file, "other")
    assert (other.count, other.features) == (None, None)
    assert other.protocol == {"dataset": "digits", "split": "train"}
    with np.load(file) as stored:
        told = json.loads(stored["protocol"].tobytes())["spaces"]
    assert told == {"digits": {"count": 40, **MADE}, "other": {"count": None}}


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    file = tmp_path / "a.npz"
    write_reference(file, {"x": FLAT}, dataset="old")
    before = file.read_bytes()

    def no_space(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr(np.lib.format, "write_array", no_space)
    with pytest.raises(OSError, match="no space"):
        write_reference(file, {"x": FLAT}, dataset="new")
    assert file.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.npz"]


# Bad files.


def test_a_malicious_pickle_is_refused_and_runs_nothing(tmp_path):
    trace = tmp_path / "trace"

    class Malicious:
        def __reduce__(self):
            return os.system, (f"touch {trace}",)

    stats = {"fid": {"mu": np.zeros(4), "sigma": Malicious()}}
    file = tmp_path / "a.pkl"
    file.write_bytes(pickle.dumps(stats))
    with pytest.raises(UnsafePickleError, match=r"a\.pkl.*system"):
        read_reference(file)
    assert not trace.exists()
    pickle.loads(file.read_bytes())  # it would have
    assert trace.exists()


@pytest.mark.parametrize(
    ["write", "metric", "expected"],
    [
        [write_adm, "fid", r"'mu' has shape \(6,\), expected \(2048,\)"],
        [write_adm, "sfid", r"'mu_s' has shape \(5,\), expected \(2023,\)"],
        [write_edm2, "fd_dinov2", r"2.mu' has shape \(4,\), expected \(1024,\)"],
    ],
)
def test_statistics_of_another_dimension_are_refused(tmp_path, write, metric, expected):
    file = tmp_path / {write_adm: "a.npz", write_edm2: "a.pkl"}[write]
    write(file)
    with pytest.raises(ValueError, match=rf"{file.name}: entry .*{expected}"):
        read_reference(file, metric)


SKEWED, INFINITE = np.eye(6), np.eye(6)
SKEWED[0, 1], INFINITE[2, 2] = 1e-3, np.inf
NEGATIVE = np.diag([1.0, 1, 1, 1, 1, -0.1])


@pytest.mark.parametrize(
    ["change", "message"],
    [
        [{"sigma": SKEWED}, "'sigma' is no covariance: .* difference of 0.001"],
        [{"sigma": NEGATIVE}, "'sigma' is no covariance: .* variance -0.1"],
        [{"sigma": INFINITE}, r"'sigma' \(float64\) holds values that are not fin"],
        [{"mu": np.full(6, np.nan)}, r"'mu' \(float64\) holds values that are not fin"],
        [{"mu": np.array(list("abcdef"))}, r"'mu' \(<U1\) holds values"],
        [{"sigma": np.eye(5)}, r"'sigma' has shape \(5, 5\), expected \(6, 6\)"],
        [{"mu": np.array([None] * 6)}, "'mu': Object arrays cannot be loaded"],
    ],
)
def test_bad_statistics_are_named(small, tmp_path, change, message):
    mu, sigma = moments("fid")
    np.savez(tmp_path / "a.npz", **{"mu": mu, "sigma": sigma, **change})
    with pytest.raises(ValueError, match=r"a\.npz: entry " + message):
        read_reference(tmp_path / "a.npz")


def test_rounding_is_no_asymmetry(small, tmp_path):
    """A covariance that was summed up in float32 is read, and is symmetric then."""
    mu, sigma = moments("fid")
    noise = np.random.default_rng(0).uniform(-1e-6, 1e-6, sigma.shape)
    np.savez(tmp_path / "a.npz", mu=mu, sigma=sigma + noise)
    found = read_reference(tmp_path / "a.npz").covariance
    np.testing.assert_array_equal(found, found.T)


@pytest.mark.parametrize(
    ["arrays", "message"],
    [
        [{"mu": np.zeros(6)}, r"a\.npz: no entry 'sigma'; it holds 'mu'"],
        [{"ref_mu": np.zeros(6)}, r"a\.npz: no entry 'ref_sigma'; it holds 'ref_mu'"],
        [{"x": np.zeros(6)}, r"a\.npz is no file of reference .*; it holds 'x'"],
        [{"arr_0": np.zeros(6)}, r"a\.npz is no file of reference .* 'arr_0'"],
        [{"protocol": np.zeros(6)}, r"a\.npz: entry 'protocol' is damaged"],
    ],
)
def test_missing_entries_are_named(small, tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        read_reference(tmp_path / "a.npz")


def test_a_space_that_is_not_there_is_named_with_those_that_are(small, tmp_path):
    write_edm2(tmp_path / "a.pkl")
    match = r"a\.pkl has no statistics for 'sfid'.* edm2 .*'fid', 'fd_dinov2'"
    with pytest.raises(ValueError, match=match):
        read_reference(tmp_path / "a.pkl", "sfid")


@pytest.mark.parametrize(
    ["content", "message"],
    [
        [{"num_images": 3}, "no file of reference statistics.* holds 'num_images'"],
        [["fid"], "expected a dict"],
        [{"num_images": "40", "fid": {}}, "'num_images' is '40', expected a number"],
        [{"fid": {"mu": np.zeros(6)}}, "no entry 'fid.sigma'; it holds 'fid.mu'"],
    ],
)
def test_other_pickles_are_refused(small, tmp_path, content, message):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=r"a\.pkl.*" + message):
        read_reference(tmp_path / "a.pkl")


@pytest.mark.parametrize("name", ["VIRTUAL_imagenet64_labeled.npz", "img512.pkl"])
@pytest.mark.parametrize("part", [0.0, 0.5, 0.99])
def test_a_cut_off_file_is_refused_by_name(small, tmp_path, name, part):
    file = tmp_path / name
    FILES[name][0](file)
    content = file.read_bytes()
    file.write_bytes(content[: int(part * len(content))])
    with pytest.raises(ValueError, match=name):
        read_reference(file)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.npz"):
        read_reference(tmp_path / "none.npz")


@pytest.mark.parametrize(
    ["file", "spaces", "message"],
    [
        ["a.npz", {}, "expected the suffix .npz and feature spaces"],
        ["a.pkl", {"x": FLAT}, "expected the suffix .npz"],
        ["a.npz", {"x.y": FLAT}, "no dot; got 'x.y'"],
        ["a.npz", {"fid": FLAT}, r"expected \(2048,\)"],
        ["a.npz", {"x": Reference(np.zeros(2), -np.eye(2))}, "'x.covariance' is no c"],
    ],
)
def test_what_could_not_be_read_is_not_written(tmp_path, file, spaces, message):
    with pytest.raises(ValueError, match=message):
        write_reference(tmp_path / file, spaces, dataset="d")
    assert not list(tmp_path.iterdir())
