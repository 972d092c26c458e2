"""Reference statistics: every format, from files that the tests write; bad files."""

import json
import os
import pickle

import numpy as np
import pytest

from scm_jax.evaluation.metrics import frechet
from scm_jax.evaluation.references import formats, statistics
from scm_jax.evaluation.references.statistics import (
    Space,
    read_reference,
    write_reference,
)
from scm_jax.files.state_dict import UnsafePickleError

SMALL = {"fid": 6, "sfid": 5, "fd_dinov2": 4}


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


def write_edm2(path, protocol=pickle.DEFAULT_PROTOCOL):
    stats = {"num_images": 40}
    for metric in ("fid", "fd_dinov2"):
        mu, sigma = moments(metric)
        stats[metric] = {"mu": mu, "sigma": sigma}
    path.write_bytes(pickle.dumps(stats, protocol))


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


def spaces(path):
    with formats.open_file(path) as file:
        return list(file.spaces)


@pytest.mark.parametrize("name", list(FILES))
def test_every_format_is_read(small, tmp_path, name):
    write, form, metrics, count = FILES[name]
    write(tmp_path / name)
    assert spaces(tmp_path / name) == metrics
    for metric in metrics:
        found = read_reference(tmp_path / name, metric)
        mean, covariance = moments(metric)
        np.testing.assert_allclose(found.mean, mean, rtol=1e-6)
        np.testing.assert_allclose(found.covariance, covariance, atol=1e-6)
        assert found.mean.dtype == found.covariance.dtype == np.float64
        assert (found.format, found.count) == (form, count)


@pytest.mark.parametrize("protocol", [2, 3, 5])
def test_pickles_of_all_ages_are_read(small, tmp_path, protocol):
    write_edm2(tmp_path / "a.pkl", protocol)
    found = read_reference(tmp_path / "a.pkl", "fd_dinov2")
    np.testing.assert_array_equal(found.covariance, moments("fd_dinov2")[1])


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


def test_images_are_read_on_request(small, tmp_path):
    write_adm(tmp_path / "a.npz")
    assert read_reference(tmp_path / "a.npz").images is None
    found = read_reference(tmp_path / "a.npz", "sfid", with_images=True)
    np.testing.assert_array_equal(found.images, pixels())


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
    space = statistics.space_of(stats, x.astype(np.float32), MADE)
    write_reference(
        file,
        {"digits": space, "other": Space(np.zeros(2), np.eye(2))},
        dataset="digits",
        images=pixels(),
        notes={"split": "train"},
    )
    found = read_reference(file, "digits", with_images=True)
    np.testing.assert_array_equal(found.mean, stats.mean)
    np.testing.assert_array_equal(found.covariance, stats.covariance)
    np.testing.assert_array_equal(found.features, x.astype(np.float32))
    np.testing.assert_array_equal(found.images, pixels())
    assert (found.format, found.count) == ("scm_jax", 40)
    assert found.protocol == {"dataset": "digits", "split": "train", **MADE}
    other = read_reference(file, "other")
    assert (other.count, other.features) == (None, None)
    assert other.protocol == {"dataset": "digits", "split": "train"}


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    file = tmp_path / "a.npz"
    write_reference(file, {"x": Space(np.zeros(2), np.eye(2))}, dataset="old")
    before = file.read_bytes()

    def no_space(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr(np.lib.format, "write_array", no_space)
    with pytest.raises(OSError, match="no space"):
        write_reference(file, {"x": Space(np.ones(2), np.eye(2))}, dataset="new")
    assert file.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.npz"]


@pytest.mark.parametrize("name", list(FILES))
def test_every_format_is_converted(small, tmp_path, name):
    """Statistics, count, features and images; and where they came from."""
    write, form, metrics, count = FILES[name]
    source, target = tmp_path / name, tmp_path / "converted.npz"
    write(source)
    statistics.convert_reference(source, target)
    assert spaces(target) == metrics
    for metric in metrics:
        before = read_reference(source, metric, with_images=True)
        after = read_reference(target, metric, with_images=True)
        for field in ("mean", "covariance", "features", "images"):
            np.testing.assert_array_equal(getattr(after, field), getattr(before, field))
        assert (after.format, after.count) == ("scm_jax", count)
        origin = {"name": name, "format": form, "sha256": before.sha256}
        assert after.protocol["converted_from"] == origin


# Bad files.


class Malicious:
    """Runs a command when ``pickle.load`` reads it."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_a_malicious_pickle_is_refused_and_runs_nothing(tmp_path):
    trace = tmp_path / "trace"
    stats = {"fid": {"mu": np.zeros(4), "sigma": Malicious(f"touch {trace}")}}
    file = tmp_path / "a.pkl"
    file.write_bytes(pickle.dumps(stats))
    with pytest.raises(UnsafePickleError, match=r"a\.pkl.*system"):
        read_reference(file)
    assert not trace.exists()
    pickle.loads(file.read_bytes())  # it would have
    assert trace.exists()


@pytest.mark.parametrize(
    ["metric", "expected"],
    [
        ["fid", r"'mu' has shape \(6,\), expected \(2048,\)"],
        ["sfid", r"'mu_s' has shape \(5,\), expected \(2023,\)"],
    ],
)
def test_statistics_of_another_dimension_are_refused(tmp_path, metric, expected):
    write_adm(tmp_path / "a.npz")
    with pytest.raises(ValueError, match=r"a\.npz: entry " + expected):
        read_reference(tmp_path / "a.npz", metric)


def test_dinov2_statistics_of_another_dimension_are_refused(tmp_path):
    write_edm2(tmp_path / "a.pkl")
    match = r"a\.pkl: entry 'fd_dinov2\.mu' has shape \(4,\), expected \(1024,\)"
    with pytest.raises(ValueError, match=match):
        read_reference(tmp_path / "a.pkl", "fd_dinov2")


def skewed():
    sigma = moments("fid")[1]
    sigma[0, 1] += 1e-3
    return sigma


def negative():
    return np.diag([1.0, 1, 1, 1, 1, -0.1])


def infinite():
    sigma = moments("fid")[1]
    sigma[2, 2] = np.inf
    return sigma


@pytest.mark.parametrize(
    ["change", "message"],
    [
        [{"sigma": skewed()}, "'sigma' is no covariance: .* difference of 0.001"],
        [{"sigma": negative()}, "'sigma' is no covariance: .* variance -0.1"],
        [{"sigma": infinite()}, r"'sigma' \(float64\) holds values that are not fin"],
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
        ["a.pkl", {"x": Space(np.zeros(2), np.eye(2))}, "expected the suffix .npz"],
        ["a.npz", {"x.y": Space(np.zeros(2), np.eye(2))}, "no dot; got 'x.y'"],
        ["a.npz", {"fid": Space(np.zeros(2), np.eye(2))}, r"expected \(2048,\)"],
        ["a.npz", {"x": Space(np.zeros(2), -np.eye(2))}, "'x.covariance' is no cov"],
    ],
)
def test_what_could_not_be_read_is_not_written(tmp_path, file, spaces, message):
    with pytest.raises(ValueError, match=message):
        write_reference(tmp_path / file, spaces, dataset="d")
    assert not list(tmp_path.iterdir())


def test_the_protocol_is_json_that_others_can_read(tmp_path):
    write_reference(
        tmp_path / "a.npz", {"x": Space(np.zeros(2), np.eye(2), 7)}, dataset="d"
    )
    with np.load(tmp_path / "a.npz") as stored:
        protocol = json.loads(stored["protocol"].tobytes())
    assert protocol == {"dataset": "d", "spaces": {"x": {"count": 7}}}
