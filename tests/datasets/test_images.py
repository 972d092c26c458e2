"""Images and latents: late opening, exact scaling, data that are not as declared."""

import itertools
import re

import jax
import numpy as np
import pytest

from scm_jax.datasets import images, latents, make_dataset, pipeline, storage
from tests.datasets.builders import write_builder

# Name -> shape of a sample, classes, published training items.
PUBLISHED = {
    "cifar10": ((32, 32, 3), 0, 50_000),
    "imagenet64": ((64, 64, 3), 1000, 1_281_167),
    "imagenet512_latents": ((64, 64, 4), 1000, 1_281_167),
}
SPLITS = ("train", "test")
CARDS = {"imagenet512_latents": "imagenet512"}


def pictures(num, shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (num, *shape), np.uint8)


def raw_latents(num, channels=4, dtype=np.float32):
    rng = np.random.default_rng(1)
    return (5 * rng.standard_normal((num, 64, 64, channels))).astype(dtype)


def opened_latents(latent, whitening="sd_vae_ft_mse_pm1", label=None):
    """Stored latents, as the dataset opens them."""
    info = make_dataset("imagenet512_latents", whitening=whitening).info
    label = np.arange(len(latent)) if label is None else label
    source = pipeline.MemorySource({"latent": latent, "label": label})
    settings = {"whitening": whitening, "folder": storage.builders_folder}
    return latents.open_latents(info, source, **settings)


def take(dataset, num, *arguments):
    """The first batches as a training sees them."""
    to_batch = jax.jit(dataset.to_batch)
    raws = itertools.islice(dataset.iterator(*arguments), num)
    return [jax.tree.map(np.asarray, to_batch(raw)) for raw in raws]


@pytest.mark.parametrize("name", PUBLISHED)
def test_info_needs_no_data(tmp_path, name):
    dataset = make_dataset(name, root=tmp_path / "nowhere", prepare=True)
    shape = PUBLISHED[name][0]
    info = dataset.info
    assert (info.sample_shape, info.num_classes, info.num_items) == PUBLISHED[name]
    assert info.name == name and info.sigma_data == 0.5 and dataset.closed_form is None
    assert "0.5" in info.description
    assert ("(sd_vae_ft_mse_pm1)" in info.description) == ("latents" in name)
    pixels = info.to_pixels(np.zeros((2, *shape), np.float32))
    assert pixels.shape == (2, *shape[:2], 3) and pixels.dtype == np.uint8


@pytest.mark.parametrize(
    "name, options, command",
    [
        ("cifar10", {}, "--source=cifar-10-python.tar.gz"),
        ("imagenet64", {}, "--variant=edm2 --source=ILSVRC2012_img"),
        ("imagenet64", {"variant": "resized"}, "--variant=resized"),
        ("imagenet512_latents", {}, "--source=img512-sd"),
    ],
)
def test_missing_data_name_what_prepares_them_and_what_belongs_there(
    tmp_path, name, options, command
):
    dataset = make_dataset(name, root=tmp_path, prepare=True, **options)
    card = f"data/{CARDS.get(name, name)}/README.md"
    for use in (lambda: dataset.iterator(4, seed=0), dataset.arrays):
        with pytest.raises(FileNotFoundError) as error:
            use()
        text = str(error.value)
        assert f"scm_jax data prepare --dataset={name} {command}" in text
        assert f"in {tmp_path}." in text and card in text
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


def test_images_are_read_back_exactly(tmp_path, caplog):
    stored, label = pictures(7, (32, 32, 3)), np.array([3, 1, 4, 1, 5, 9, 2])
    root = tmp_path / "root"
    storage.prepare(write_builder(tmp_path, "cifar10", image=stored, label=label), root)
    dataset = make_dataset("cifar10", root=root, conditional=True)
    x, read = dataset.arrays()
    assert x.dtype == np.float32 and read.dtype == np.int32
    np.testing.assert_allclose(x, stored / 127.5 - 1, rtol=2e-7, atol=0)
    np.testing.assert_array_equal(read, label)
    np.testing.assert_array_equal(dataset.info.to_pixels(x), stored)
    # One epoch, also by two processes, has every item once and unchanged.
    whole = take(dataset, 1, 6, 0)[0]
    parts = [take(dataset, 1, 6, 0, i, 2)[0] for i in range(2)]
    np.testing.assert_array_equal(np.concatenate([p.x for p in parts]), whole.x)
    for image, of in zip(whole.x, whole.label, strict=True):
        found = [i for i in range(7) if (x[i] == image).all()]
        assert len(found) == 1 and read[found[0]] == of
    # The published number of items is declared; another one is read with a warning.
    assert dataset.info.num_items == 50_000 and dataset.opened.info.num_items == 7
    (record,) = caplog.records
    assert "7 items" in record.getMessage() and "50,000" in record.getMessage()
    caplog.clear()
    # A slice was asked for: nothing to warn of. Without classes, unless asked.
    part = make_dataset("cifar10", "train[:4]", root=root, flip=True)
    assert len(part.arrays()[0]) == 4 and not caplog.records
    assert part.info.num_classes == 0 and part.arrays()[1] is None
    assert part.opened.randomize is images.flip_at_random
    assert dataset.opened.randomize is None


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


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("whitening", sorted(latents.WHITENING))
def test_latents_are_whitened_exactly(dtype, whitening):
    stored, label = raw_latents(5, dtype=dtype), np.array([0, 999, 5, 6, 7])
    dataset = opened_latents(stored, whitening, label)
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


def test_latents_of_another_encoding_are_noticed(caplog):
    """Latents for EDM2 (pixels in [0, 1]) under the paper's constants."""
    mean, std, _ = latents.WHITENING["edm2"]
    unit = np.random.default_rng(0).standard_normal((64, 64, 64, 4))
    stored = (unit * std + mean).astype(np.float16)
    for whitening, noticed in (("edm2", False), ("sd_vae_ft_mse_pm1", True)):
        opened_latents(stored, whitening)
        assert ("pixels in another range" in caplog.text) == noticed


@pytest.mark.parametrize(
    ("image", "num_classes", "message"),
    [
        (pictures(2, (8, 8, 3)), 0, r"float32 \(8, 8, 3\); declared.*item 0"),
        (np.ones((2, 4, 4, 3), np.float32), 0, "'image' is stored as float32; legal"),
        (pictures(2, (4, 4, 3)), 10, r"feature of .*'tiny' = 'label'.*image"),
    ],
)
def test_other_images_are_refused(image, num_classes, message):
    info = images.image_info("tiny", (4, 4, 3), num_classes)
    source = pipeline.MemorySource({"image": image})
    with pytest.raises(ValueError, match=message):
        images.image_dataset(info, source).arrays()


@pytest.mark.parametrize("channels", [3, 6])
def test_latents_of_other_channels_are_refused(channels):
    message = rf"float32 \(64, 64, {channels}\); declared are float32 \(64, 64, 4\)"
    with pytest.raises(ValueError, match=message):
        next(opened_latents(raw_latents(2, channels)).iterator(2, 0))


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("cifar10", {"split": "validation"}, r"'cifar10' = 'validation'.*'test'"),
        ("imagenet64", {"split": "test[:9]"}, r"'test' is not one of .*'validation'"),
        ("imagenet512_latents", {"flip": True}, "not the latent of the mirrored image"),
        ("imagenet512_latents", {"whitening": "edm"}, r"did you mean 'edm2'"),
        ("noise_images", {"split": "validation"}, r"\['test', 'train'\]"),
    ],
)
def test_bad_arguments(name, arguments, message):
    with pytest.raises(ValueError, match=re.compile(message)):
        make_dataset(name, **arguments)


def test_noise_images():
    options = {"sample_shape": (8, 8, 4), "num_classes": 3}
    dataset, other = (make_dataset("noise_images", s, **options) for s in SPLITS)
    x, label = dataset.arrays()
    assert x.shape == (256, 8, 8, 4) and label.tolist()[:4] == [0, 1, 2, 0]
    assert x.std() == pytest.approx(0.5, rel=0.01)
    assert (other.arrays()[0] != x).all()
    assert dataset.info.to_pixels(x).shape == (256, 8, 8, 3)
    unlabelled = make_dataset("noise_images", num_classes=0, num_items=5)
    assert unlabelled.arrays()[1] is None and unlabelled.info.num_items == 5
