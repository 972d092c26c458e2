"""Captioned shapes on disk, encoded, and read back as latents with their captions."""

import jax
import numpy as np
import pytest

from scm_jax.datasets import latents, make_dataset, prepared_latents
from scm_jax.datasets.preparation import encode, prepare
from scm_jax.datasets.preparation.readers import sources
from scm_jax.datasets.shape_captions import captions
from scm_jax.datasets.shapes import CAPTIONED, ShapeSource
from scm_jax.runs import packed
from scm_jax.runs.sample import load_generate
from scm_jax.sweeps.plan.sweep_file import load_module
from tests.runs.untrained import write_run

NUM = 40
SOURCE = ShapeSource("train", NUM, **CAPTIONED)


def halves(images):
    """Means of 16x16 pixels as two channels, and a tenth of them as deviations."""
    means = images.reshape(len(images), 2, 16, 2, 16, 3).mean((2, 4))[..., :2] / 64
    return np.concatenate([means, means / 10], axis=-1)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("root")
    prepare.prepare(SOURCE, root / "shapes_images/1.0.0")
    items = sources.open_items(root / "shapes_images/1.0.0", kind="tfds", split="train")
    identity = {"pixel_range": "[-1, 1]", "name": "halves", "sha256": "0" * 64}
    encoder = encode.Encoder(halves, 8, identity)
    encode.encode_dataset(items, encoder, root / "shapes_latents/1.0.0")
    return root


def test_latents_keep_the_captions_and_are_drawn_anew(root):
    options = {"prepared": "shapes_latents", "captioned": True, "questions": "shapes"}
    dataset = make_dataset("latents", root=root, **options)
    info = dataset.info
    assert info.sample_shape == (2, 2, 2) and info.sigma_data == 0.5
    x, label = dataset.arrays()
    assert label is None and x.shape == (NUM, 2, 2, 2)
    # Whitened by the moments of what is drawn: the noise is a part of the variance.
    seen = SOURCE.gather(np.arange(NUM))["image"]
    raw = halves(seen)[..., :2]
    std = np.sqrt(raw.std((0, 1, 2)) ** 2 + (raw**2).mean((0, 1, 2)) / 100)
    expected = (raw - raw.mean((0, 1, 2))) / std * 0.5
    np.testing.assert_allclose(x, expected, atol=2e-3)
    first = next(dataset.iterator(NUM, 0))
    batch = jax.jit(dataset.to_batch)(first)
    items = first.items[:, 2]
    noise = np.asarray(batch.x - x[items]) / (raw[items] / 10 / std * 0.5)
    assert noise.std() == pytest.approx(1.0, abs=0.15)
    later = first.replace(items=first.items + np.array([[0, 1, 0]], np.uint32))
    again = jax.jit(dataset.to_batch)(later)
    assert np.abs(again.x - batch.x).mean() > 0.05
    words = dict(enumerate(info.text.words, 258))
    for row, item in enumerate(items):
        said = [c.replace(",", " ,").split() for c in captions_of(item)]
        found = [words[t] for t in np.asarray(batch.tokens[row]) if t]
        assert found in said
    assert (
        info.questions(4, "seen").prompts.fields["tokens"].max() < info.text.vocab_size
    )
    assert info.whitening().pixel_range == "[-1,1]"


def test_published_factors_give_units_of_their_models(root, monkeypatch):
    factors = {"sd": (4, 0.0, 0.18215), "tiny": (2, 0.25, 1.5)}
    monkeypatch.setattr(prepared_latents, "FACTORS", factors)
    options = {"root": root, "prepared": "shapes_latents"}
    dataset = make_dataset("latents", **options, whitening="tiny")
    assert dataset.info.sigma_data == 1.0 and dataset.info.text is None
    raw = halves(SOURCE.gather(np.arange(NUM))["image"])[..., :2]
    np.testing.assert_allclose(dataset.arrays()[0], (raw - 0.25) * 1.5, rtol=2e-3)
    back = latents.unwhiten(dataset.arrays()[0], dataset.info.whitening())
    np.testing.assert_allclose(back, raw, atol=2e-3)
    with pytest.raises(ValueError, match="'sd' is for latents of 4 channels; .* has 2"):
        make_dataset("latents", **options, whitening="sd")


def test_latents_of_one_axis_are_no_images(root):
    """As those of sound are, ``(n, c)``."""
    items = sources.open_items(root / "shapes_images/1.0.0", kind="tfds", split="train")
    identity = {"pixel_range": "[-1, 1]", "name": "rows", "sha256": "0" * 64}
    rows = encode.Encoder(lambda x: halves(x).reshape(len(x), 4, 4), 8, identity)
    encode.encode_dataset(items, rows, root / "rows/1.0.0")
    found = make_dataset("latents", root=root, prepared="rows", captioned=True)
    assert found.info.sample_shape == (4, 2) and found.info.to_pixels is None
    same = make_dataset("latents", root=root, prepared="shapes_latents").arrays()[0]
    np.testing.assert_array_equal(found.arrays()[0], same.reshape(-1, 4, 2))


def test_a_packed_run_samples_without_its_data(root, tmp_path, monkeypatch):
    module = load_module("experiments/captions.py")
    config = module.get_config("sct")
    changes = {"root": str(root), "prepared": "shapes_latents"}
    config.dataset.update(changes)
    config.network.update({"width": 16, "depth": 1, "num_heads": 1, "tower_depth": 1})
    config.init.run = ""
    packed.pack(write_run(tmp_path / "run", config), tmp_path / "files")
    about = tmp_path / "files/data/shapes_latents/1.0.0"
    names = {"manifest.json", "dataset_info.json", "features.json"}
    assert {path.name for path in about.iterdir()} == names
    for path in (tmp_path / "files").rglob("*.json"):
        assert str(root) not in path.read_text()
    monkeypatch.setenv("SCM_JAX_DATA", str(tmp_path / "nothing"))
    packed.unpack(tmp_path / "files", tmp_path / "again")
    x = load_generate(tmp_path / "again").generate(2, prompts="a red star")
    assert x.shape == (2, 2, 2, 2) and np.isfinite(x).all()


def captions_of(item):
    return captions(SOURCE.attributes(np.array([item])))


def test_what_does_not_fit_is_an_error(root):
    with pytest.raises(
        ValueError, match="holds images; latents were asked for: .*`data enc"
    ):
        make_dataset("latents", root=root, prepared="shapes_images")
    with pytest.raises(ValueError, match="'images' reads images"):
        make_dataset("images", root=root, prepared="shapes_latents")
    with pytest.raises(ValueError, match="dataset.questions = 'odd'"):
        make_dataset("latents", root=root, prepared="shapes_latents", questions="odd")
