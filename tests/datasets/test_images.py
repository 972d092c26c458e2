"""Images and latents: late opening, exact scaling, and data that are not as declared.

Tiny datasets are prepared as a user would: by a builder of their own, given by path.
"""

import itertools
import logging
import re

import jax
import numpy as np
import pytest

from scm_jax.datasets import images, latents, make_dataset, pipeline, storage

# Name -> shape of a sample, classes, published training items.
PUBLISHED = {
    "cifar10": ((32, 32, 3), 0, 50_000),
    "imagenet64": ((64, 64, 3), 1000, 1_281_167),
    "imagenet512_latents": ((64, 64, 4), 1000, 1_281_167),
}
CARDS = {"imagenet512_latents": "imagenet512"}

BUILDER = """
import pathlib
import numpy as np
import tensorflow_datasets as tfds

ITEMS = dict(np.load(pathlib.Path(__file__).parent / "items.npz"))

class Builder(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = tfds.features.FeaturesDict({FEATURES})
        return self.dataset_info_from_configs(features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for index in range(NUM):
            yield index, {name: ITEMS[f"{name}_{index}"] for name in FIELDS}
"""


def prepare(tmp_path, name, shapes=None, **fields):
    """Prepares items, given as ``field=[value of item 0, ...]``; returns the root."""
    folder = tmp_path / "builder" / name
    folder.mkdir(parents=True)
    (folder / "README.md").write_text("A few items.")
    items = {f"{f}_{i}": v for f, vs in fields.items() for i, v in enumerate(vs)}
    np.savez(folder / "items.npz", **items)
    specs = [
        f"{f!r}: tfds.features.Tensor(shape={(shapes or {}).get(f, np.shape(v[0]))}, "
        f"dtype=np.{np.asarray(v[0]).dtype})"
        for f, v in fields.items()
    ]
    text = BUILDER.replace("FEATURES", ", ".join(specs))
    text = text.replace("FIELDS", repr(tuple(fields)))
    text = text.replace("NUM", str(len(next(iter(fields.values())))))
    (folder / f"{name}_dataset_builder.py").write_text(text)
    root = tmp_path / "root"
    assert storage.prepare(folder, root) == root / name / "1.0.0"
    return root


def pictures(num, shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (num, *shape), np.uint8)


def raw_latents(num, channels=4, dtype=np.float32):
    rng = np.random.default_rng(1)
    return (5 * rng.standard_normal((num, 64, 64, channels))).astype(dtype)


def take(dataset, num, *arguments):
    """The first batches as a training sees them."""
    to_batch = jax.jit(dataset.to_batch)
    raws = itertools.islice(dataset.iterator(*arguments), num)
    return [jax.tree.map(np.asarray, to_batch(raw)) for raw in raws]


# --- before the data are there --------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
def test_info_needs_no_data(tmp_path, name):
    dataset = make_dataset(name, root=tmp_path / "nowhere", prepare=True)
    shape = PUBLISHED[name][0]
    info = dataset.info
    assert (info.sample_shape, info.num_classes, info.num_items) == PUBLISHED[name]
    assert info.name == name and info.sigma_data == 0.5 and dataset.closed_form is None
    assert "0.5" in info.description
    pixels = info.to_pixels(np.zeros((2, *shape), np.float32))
    assert pixels.shape == (2, *shape[:2], 3) and pixels.dtype == np.uint8


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("use", [lambda d: d.iterator(4, seed=0), lambda d: d.arrays()])
def test_missing_data_name_the_folder_and_what_belongs_there(tmp_path, name, use):
    dataset = make_dataset(name, root=tmp_path, prepare=True)
    with pytest.raises(FileNotFoundError) as error:
        use(dataset)
    card = f"data/{CARDS.get(name, name)}/README.md"
    text = str(error.value)
    assert f"in {tmp_path}." in text and f"{name}/1.0.0" in text and card in text
    assert "label int64 in 0.." in text and "SCM_JAX_DATA" in text
    assert (storage.builders_folder().parent / card).is_file()


def test_cards_have_the_counts_and_constants():
    for name, (_, _, num_items) in PUBLISHED.items():
        folder = storage.builders_folder() / CARDS.get(name, name)
        card = (folder / "README.md").read_text()
        assert f"{num_items:,}" in card and "## Licence" in card
        assert f"ROOT/{name}/1.0.0" in card
    for recipe, whitening in latents.WHITENING.items():
        mean, std = (", ".join(map(str, v)) for v in whitening[:2])
        pixels = whitening.pixel_range.replace(",", ", ")
        assert f"`{recipe}` | {mean} | {std} | {pixels}" in card


# --- reading --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cifar10", "imagenet64"])
def test_images_are_read_back_exactly(tmp_path, name):
    stored = pictures(7, PUBLISHED[name][0])
    label = np.array([3, 1, 4, 1, 5, 9, 2])
    root = prepare(tmp_path, name, image=stored, label=label)
    options = {"conditional": True} if name == "cifar10" else {}
    dataset = make_dataset(name, root=root, **options)
    x, read = dataset.arrays()
    assert x.dtype == np.float32 and read.dtype == np.int32
    exact = stored.astype(np.float64) / 127.5 - 1
    np.testing.assert_allclose(x, exact, rtol=2e-7, atol=0)
    np.testing.assert_array_equal(read, label)
    np.testing.assert_array_equal(dataset.info.to_pixels(x), stored)
    # One epoch, also by two processes, has every item once and unchanged.
    whole = take(dataset, 1, 6, 0)[0]
    parts = [take(dataset, 1, 6, 0, i, 2)[0] for i in range(2)]
    np.testing.assert_array_equal(np.concatenate([p.x for p in parts]), whole.x)
    for image, of in zip(whole.x, whole.label, strict=True):
        found = [i for i in range(7) if (x[i] == image).all()]
        assert len(found) == 1 and read[found[0]] == of


def test_scaling_of_every_level():
    levels = np.arange(256, dtype=np.uint8)
    x = images.to_x(levels)
    exact = levels.astype(np.float64) / 127.5 - 1
    np.testing.assert_allclose(x, exact, rtol=2e-7, atol=0)
    np.testing.assert_array_equal(x, -x[::-1])
    assert x[0] == -1 and x[255] == 1
    np.testing.assert_array_equal(jax.jit(images.to_x)(levels), x)  # the same bits
    np.testing.assert_array_equal(
        images.to_pixels(x[:, None, None, None])[:, 0], levels[:, None, None]
    )
    outside = np.array([-1.2, 1.2]).reshape(2, 1, 1, 1)
    assert images.to_pixels(outside).ravel().tolist() == [0, 255]


def test_cifar10_is_unconditional_unless_asked(tmp_path):
    stored = pictures(3, (32, 32, 3))
    root = prepare(tmp_path, "cifar10", image=stored)  # no classes at all
    x, label = make_dataset("cifar10", root=root).arrays()
    assert len(x) == 3 and label is None
    conditional = make_dataset("cifar10", root=root, conditional=True)
    assert conditional.info.num_classes == 10
    with pytest.raises(ValueError, match=r"feature of .*'cifar10' = 'label'.*image"):
        conditional.arrays()


def test_flips_are_drawn_per_seed_epoch_and_item(tmp_path):
    stored = pictures(16, (32, 32, 3))
    root = prepare(tmp_path, "cifar10", image=stored, label=np.arange(16) % 10)
    plain = make_dataset("cifar10", root=root).arrays()[0]
    dataset = make_dataset("cifar10", root=root, flip=True)

    def flipped(*arguments):
        """Whether each item of the first four epochs is mirrored, ``(4, 16)``."""
        x = np.concatenate([batch.x for batch in take(dataset, 8, *arguments)])
        found = np.full((4, 16), -1)
        for n, image in enumerate(x):
            same = (plain == image).all((1, 2, 3))
            mirrored = (plain[:, :, ::-1] == image).all((1, 2, 3))
            assert same.sum() + mirrored.sum() == 1
            found[n // 16, np.flatnonzero(same | mirrored)] = mirrored.any()
        return found

    first = flipped(8, 0)
    assert set(np.unique(first)) == {0, 1} and 16 < first.sum() < 48
    assert len({tuple(epoch) for epoch in first}) == 4
    np.testing.assert_array_equal(flipped(8, 0), first)
    assert (flipped(8, 1) != first).any()
    np.testing.assert_array_equal(dataset.arrays()[0], plain)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("whitening", sorted(latents.WHITENING))
def test_latents_are_whitened_exactly(tmp_path, dtype, whitening):
    stored, label = raw_latents(5, dtype=dtype), np.array([0, 999, 5, 6, 7])
    root = prepare(tmp_path, "imagenet512_latents", latent=stored, label=label)
    dataset = make_dataset("imagenet512_latents", root=root, whitening=whitening)
    x, read = dataset.arrays()
    mean, std, _ = latents.WHITENING[whitening]
    expected = (stored.astype(np.float64) - mean) / std * 0.5
    np.testing.assert_allclose(x, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(read, label)
    back = latents.unwhiten(x, whitening)
    np.testing.assert_allclose(back, stored, rtol=1e-6, atol=1e-5)
    batch = take(dataset, 1, 5, 3)[0]
    order = [int(np.flatnonzero(label == of)[0]) for of in batch.label]
    np.testing.assert_array_equal(batch.x, x[order])


def test_whitening_constants_of_the_paper_are_the_default(tmp_path):
    """Data with the published moments get mean 0 and standard deviation 0.5."""
    rng = np.random.default_rng(0)
    unit = rng.standard_normal((2, 64, 64, 4))
    unit = (unit - unit.mean((0, 1, 2))) / unit.std((0, 1, 2))
    stored = unit * [5.27, 5.91, 4.21, 4.31] + [1.56, -0.695, 0.483, 0.729]
    root = prepare(
        tmp_path,
        "imagenet512_latents",
        latent=stored.astype(np.float32),
        label=np.array([1, 2]),
    )
    x, _ = make_dataset("imagenet512_latents", root=root).arrays()
    np.testing.assert_allclose(x.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(x.std((0, 1, 2)), 0.5, rtol=1e-5)


def test_posteriors_are_drawn_per_seed_epoch_and_item(tmp_path):
    mean = raw_latents(3)
    std = np.abs(raw_latents(3)[::-1]) * 0.1
    root = prepare(
        tmp_path,
        "imagenet512_latents",
        latent=np.concatenate([mean, std], axis=-1).astype(np.float32),
        label=np.array([0, 1, 2]),
    )
    dataset = make_dataset("imagenet512_latents", root=root)
    means, _ = dataset.arrays()
    np.testing.assert_array_equal(means, latents.whiten(mean, "sd_vae_ft_mse_pm1"))

    def draws(seed, num):
        """Standardized noise of each item in each epoch, ``(num, 3, 64, 64, 4)``."""
        noise = np.empty((num, 3, 64, 64, 4))
        for epoch, batch in enumerate(take(dataset, num, 3, seed)):
            raw = latents.unwhiten(batch.x, "sd_vae_ft_mse_pm1")
            noise[epoch, batch.label] = raw - mean[batch.label]
        return noise / std

    noise = draws(0, 2)
    flat = noise.reshape(6, -1)
    np.testing.assert_allclose(np.corrcoef(flat), np.eye(6), atol=0.05)
    assert flat.mean() == pytest.approx(0, abs=0.02)
    assert flat.std() == pytest.approx(1, rel=0.02)
    np.testing.assert_array_equal(draws(0, 2), noise)
    assert (draws(1, 1)[0] != noise[0]).mean() > 0.99


def test_latents_of_another_encoding_are_noticed(tmp_path, caplog):
    """Latents for EDM2 (pixels in [0, 1]) under the paper's constants."""
    mean, std, _ = latents.WHITENING["edm2"]
    unit = np.random.default_rng(0).standard_normal((64, 64, 64, 4))
    stored = (unit * std + mean).astype(np.float16)
    root = prepare(tmp_path, "imagenet512_latents", latent=stored, label=np.arange(64))
    for whitening, noticed in (("sd_vae_ft_mse_pm1", True), ("edm2", False)):
        caplog.clear()
        data = make_dataset("imagenet512_latents", root=root, whitening=whitening)
        data.opened  # noqa: B018
        assert ("pixels in another range" in caplog.text) == noticed


def test_subsets_are_read_with_a_warning(tmp_path, caplog):
    root = prepare(tmp_path, "cifar10", image=pictures(6, (32, 32, 3)))
    whole = make_dataset("cifar10", root=root)
    assert whole.info.num_items == 50_000
    assert len(whole.arrays()[0]) == whole.opened.info.num_items == 6
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "6 items" in record.getMessage() and "50,000" in record.getMessage()
    caplog.clear()
    # A slice was asked for: nothing to warn of.
    assert len(make_dataset("cifar10", "train[:4]", root=root).arrays()[0]) == 4
    assert not caplog.records


# --- data that are not as declared ----------------------------------------------------


def test_values_that_are_not_finite_name_the_item(tmp_path):
    stored = raw_latents(4, dtype=np.float16)
    stored[2, 5, 6, 1] = np.nan
    root = prepare(tmp_path, "imagenet512_latents", latent=stored, label=np.arange(4))
    with pytest.raises(ValueError, match="latents': item 2 has values that are not"):
        make_dataset("imagenet512_latents", root=root).arrays()


@pytest.mark.parametrize("value", [-1, 1000])
def test_labels_out_of_range_name_the_item(tmp_path, value):
    label = np.array([0, 1, 2, value])
    root = prepare(tmp_path, "imagenet64", image=pictures(4, (64, 64, 3)), label=label)
    with pytest.raises(ValueError, match=rf"item 3 has the label {value}; legal are 0"):
        make_dataset("imagenet64", root=root).arrays()


def test_wrong_shapes_name_the_item(tmp_path):
    root = prepare(
        tmp_path, "imagenet64", image=pictures(3, (32, 32, 3)), label=np.arange(3)
    )
    with pytest.raises(ValueError, match=r"float32 \(32, 32, 3\); declared.*item 0"):
        make_dataset("imagenet64", root=root).iterator(2, 0)


def test_one_item_of_another_shape_is_named(tmp_path):
    images_ = [*pictures(3, (64, 64, 3)), pictures(1, (65, 64, 3))[0]]
    root = prepare(
        tmp_path,
        "imagenet64",
        shapes={"image": (None, 64, 3)},
        image=images_,
        label=np.arange(4),
    )
    with pytest.raises(ValueError, match=r"item 3 has 'image' of shape \(65, 64, 3\)"):
        make_dataset("imagenet64", root=root).arrays()


@pytest.mark.parametrize("channels", [3, 6])
def test_latents_of_other_channels_are_refused(tmp_path, channels):
    root = prepare(
        tmp_path,
        "imagenet512_latents",
        latent=raw_latents(2, channels),
        label=np.arange(2),
    )
    message = rf"float32 \(64, 64, {channels}\); declared are float32 \(64, 64, 4\)"
    with pytest.raises(ValueError, match=message):
        make_dataset("imagenet512_latents", root=root).iterator(2, 0)


def test_images_that_were_scaled_already_are_refused(tmp_path):
    scaled = pictures(2, (32, 32, 3)).astype(np.float32) / 255
    root = prepare(tmp_path, "cifar10", image=scaled)
    with pytest.raises(
        ValueError, match="'image' is stored as float32; legal are uint8"
    ):
        make_dataset("cifar10", root=root).iterator(2, 0)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("cifar10", {"split": "validation"}, r"'cifar10' = 'validation'.*'test'"),
        ("imagenet64", {"split": "test[:9]"}, r"'test' is not one of .*'validation'"),
        ("imagenet64", {"mirror": True}, "argument of dataset 'imagenet64' = 'mirror'"),
        ("imagenet512_latents", {"flip": True}, "not the latent of the mirrored image"),
        ("imagenet512_latents", {"whitening": "edm"}, r"did you mean 'edm2'"),
        ("noise_images", {"split": "validation"}, r"\['test', 'train'\]"),
    ],
)
def test_bad_arguments(name, arguments, message):
    with pytest.raises(ValueError, match=re.compile(message)):
        make_dataset(name, **arguments)


# --- stand-in -------------------------------------------------------------------------


def test_noise_images():
    dataset = make_dataset("noise_images", sample_shape=(8, 8, 4), num_classes=3)
    again = make_dataset("noise_images", sample_shape=(8, 8, 4), num_classes=3)
    other = make_dataset("noise_images", "test", sample_shape=(8, 8, 4))
    x, label = dataset.arrays()
    assert x.shape == (256, 8, 8, 4) and label.tolist()[:4] == [0, 1, 2, 0]
    assert x.std() == pytest.approx(0.5, rel=0.01)
    np.testing.assert_array_equal(again.arrays()[0], x)
    assert (other.arrays()[0] != x).all()
    assert dataset.info.to_pixels(x).shape == (256, 8, 8, 3)
    unlabelled = make_dataset("noise_images", num_classes=0, num_items=5)
    assert unlabelled.arrays()[1] is None and unlabelled.info.num_items == 5
    assert isinstance(unlabelled, pipeline.FiniteDataset)
