"""FID by the commands that a user types, with a file of drawn weights.

From images on disk over their statistics to a row of results. One product replaces the
convolutions (test_inception.py has them), and the squared distance of means that of two
Gaussians, which takes half a minute in 2048 dimensions.
"""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from scm_jax.analysis.plots import quality
from scm_jax.config import base_config
from scm_jax.evaluation import pretrained_quality
from scm_jax.evaluation.features import inception, inception_weights
from scm_jax.evaluation.metrics import frechet
from scm_jax.evaluation.references import statistics
from scm_jax.files.state_dict import write_state_dict
from scm_jax.runs import train
from scm_jax.runs.sample import load_generate
from tests.commands.in_process import scm
from tests.evaluation import inception_tensors
from tests.runs.untrained import write_run

NUM_IMAGES, NUM_SAMPLES, BATCH = 8, 4, 4
NAME = "inception-2015-12-05"


def product(params, images):
    x = images.astype(np.float32).reshape(len(images), -1)
    kernel = params["fc"]["kernel"]
    return {"features": x[:, : kernel.shape[1]] @ kernel.T, "spatial": x[:, :2023]}


def small_network(path=None):
    loaded = inception_weights.load(path)
    return dataclasses.replace(loaded, apply=product, batch_size=BATCH)


def distance_of_means(mean_a, cov_a, mean_b, cov_b):
    return float(((mean_a - mean_b) ** 2).sum())


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    """A machine with weights, a few images, and a run on them."""
    folder = tmp_path_factory.mktemp("machine")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCM_JAX_WEIGHTS", str(folder / "weights"))
        patch.setenv("SCM_JAX_DATA", str(folder / "data"))
        patch.setenv("HOME", str(folder / "home"))
        patch.setitem(pretrained_quality.FEATURE_NETS, "inception", small_network)
        patch.setattr(frechet, "gaussian_frechet", distance_of_means)
        patch.setattr(inception, "STAGES", {"Mixed_5b": inception.Conv("", 8)})
        pretrained_quality.load_net.cache_clear()
        for write in (write_weights, write_images, make_run):
            write(folder)
        yield folder
        pretrained_quality.load_net.cache_clear()


def write_weights(folder):
    shapes = inception_weights.tensor_shapes()
    tensors = inception_tensors.tensors({name: shapes[name] for name in sorted(shapes)})
    place = folder / "weights/inception"
    place.mkdir(parents=True)
    write_state_dict(place / f"{NAME}.safetensors", tensors)


def write_images(folder):
    rng = np.random.default_rng(0)
    (folder / "raw").mkdir()
    for index in range(NUM_IMAGES):
        image = Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8))
        image.save(folder / f"raw/{index}.png")
    scm("data", "prepare", "--name=dots", f"--source={folder / 'raw'}")


def make_run(folder):
    """Untrained: its numbers say nothing of consistency models."""
    c = base_config("mlp", "diffusion", "images")
    c.dataset.prepared = "dots"
    c.network.update({"width": 8, "depth": 1})
    c.sampling.batch_size = BATCH
    write_run(folder / "run", c)


@pytest.fixture(scope="module")
def stats(machine):
    return scm("data", "stats", "--dataset=dots").stdout.strip()


def evaluate(machine, *flags, check=0):
    flags = (f"--run={machine / 'run'}", "--metrics=fid", "--steps=1", *flags)
    return scm("evaluate", f"--num_samples={NUM_SAMPLES}", *flags, check=check)


@pytest.fixture(scope="module")
def row(machine, stats):
    """The run's row, against the data's own statistics, measured for the first time."""
    return json.loads(evaluate(machine).stdout)


def test_statistics_are_those_of_all_images(machine, stats):
    found = statistics.read_reference(stats, "fid")
    folder = machine / "data/stats"
    assert [str(path) for path in folder.iterdir()] == [stats]
    assert found.count == NUM_IMAGES and found.features.shape == (NUM_IMAGES, 2048)
    np.testing.assert_allclose(found.mean, found.features.mean(0), rtol=1e-5, atol=1e-6)
    assert statistics.read_reference(stats, "sfid").mean.shape == (2023,)


def test_a_row_has_the_number_and_how_it_came_to_be(machine, stats, row):
    loaded = load_generate(machine / "run")
    _, pixels = loaded.generate(NUM_SAMPLES, 1, 0, pixels=True)
    net = pretrained_quality.load_net("inception")
    features = net(pixels)["features"]
    mean = statistics.read_reference(stats, "fid").mean
    expected = ((features.mean(0) - mean) ** 2).sum()
    assert row["fid"] == pytest.approx(expected, rel=1e-4) and expected > 0
    assert row["measured_by"] == {"fid": "fid"}
    said = row["protocol"]["fid"]
    assert (said["extractor"], said["extractor_sha256"]) == (NAME, net.weights_sha256)
    assert said["reference_sha256"] == statistics.read_reference(stats).sha256
    assert (said["reference_count"], said["num_samples"]) == (NUM_IMAGES, NUM_SAMPLES)
    assert said["resize"] == "tf1_bilinear_299" and "127.5" in said["quantization"]


def test_parts_of_the_samples_are_their_batches_in_turn(machine):
    generate = load_generate(machine / "run").generate
    batches = [x for x, _ in generate.batches(NUM_SAMPLES + 6, 1, 3)]
    assert [len(x) for x in batches] == [BATCH, BATCH, 2]
    for index, expected in ((0, batches[::2]), (1, batches[1::2])):
        found = [x for x, _ in generate.batches(NUM_SAMPLES + 6, 1, 3, part=(index, 2))]
        np.testing.assert_array_equal(np.concatenate(found), np.concatenate(expected))
    assert not list(generate.batches(BATCH, 1, 3, part=(1, 2)))


def test_nothing_is_measured_twice(machine, stats, row, monkeypatch):
    def fails(*_):
        pytest.fail("measured again")

    monkeypatch.setattr(pretrained_quality, "collect", fails)
    assert scm("data", "stats", "--dataset=dots").stdout.strip() == stats
    assert json.loads(evaluate(machine).stdout) == row
    lines = (machine / "run/results.jsonl").read_text().splitlines()
    assert sum(json.loads(line)["key"] == row["key"] for line in lines) == 1


def test_a_published_file_as_reference(machine, stats, row, tmp_path):
    own = statistics.read_reference(stats, "fid")
    path = tmp_path / "edm.npz"
    np.savez(path, mu=own.mean, sigma=own.covariance)
    other = json.loads(evaluate(machine, f"--reference={path}").stdout)
    assert other["fid"] == pytest.approx(row["fid"], rel=1e-6)
    assert other["protocol"]["fid"]["reference"] == "edm.npz"
    assert other["protocol"]["fid"]["reference_count"] == 0
    # The same path with other content is another question.
    np.savez(path, mu=own.mean + 1, sigma=own.covariance)
    shifted = json.loads(evaluate(machine, f"--reference={path}").stdout)
    assert shifted["key"] != other["key"]
    assert shifted["fid"] != pytest.approx(other["fid"], rel=1e-4)
    # Two files: their numbers cannot be drawn together.
    with pytest.raises(ValueError, match="reference_sha256"):
        quality.plot_runs([machine / "run"], tmp_path / "picture.png")


def test_a_reference_of_other_weights_is_refused(machine, tmp_path):
    about = {"extractor": NAME, "extractor_sha256": "ab" * 32}
    path = tmp_path / "other.npz"
    space = statistics.Reference(np.zeros(2048), np.eye(2048), 5, None, about)
    statistics.write_reference(path, {"fid": space}, dataset="dots")
    said = evaluate(machine, f"--reference={path}", check=1).stderr
    assert "extractor_sha256 abab" in said and "scm data stats" in said


def test_without_weights_no_evaluation_and_no_training(machine, tmp_path, monkeypatch):
    monkeypatch.setenv("SCM_JAX_WEIGHTS", str(tmp_path))
    pretrained_quality.load_net.cache_clear()
    said = evaluate(machine, "--seed=1", check=1).stderr
    assert "pt_inception-2015-12-05-6726825d.pth: https://github.com/mseitzer" in said
    assert str(tmp_path / "inception") in said
    config = base_config("mlp", "diffusion", "noise_images")
    config.eval.evaluators = ("fid",)
    config.train.update({"batch_size": 4, "duration_images": 4})
    with pytest.raises(FileNotFoundError, match="pt_inception-2015-12-05"):
        train.train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
