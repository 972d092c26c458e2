"""Images of any prepared dataset: what the manifest says is what a training gets."""

import logging

import jax
import numpy as np
import pytest

from scm_jax.datasets import images, make_dataset
from scm_jax.datasets.imagenet64_variants import IMAGENET64_VARIANTS
from scm_jax.datasets.preparation.prepare import prepare
from scm_jax.datasets.preparation.resize import RECIPES
from tests.preparation.made_items import ArrayItems, arrays, run


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("prepared")
    run(arrays(), root)
    run(arrays(num=6, seed=5), root, split="test")
    return root


def open_images(root, split="train", **options):
    return make_dataset("images", split, root=root, prepared="tiny", **options)


def test_shape_classes_and_values_are_those_of_the_manifest(root):
    dataset = open_images(root)
    info = dataset.info
    assert (info.sample_shape, info.num_classes, info.num_items) == ((8, 8, 3), 3, 23)
    assert info.name == "tiny" and info.sigma_data == 0.5
    assert "tiny" in info.description
    x, label = dataset.arrays()
    np.testing.assert_allclose(x, arrays().fields["image"] / 127.5 - 1, atol=1e-6)
    np.testing.assert_array_equal(label, arrays().fields["label"])
    assert open_images(root, "test").info.num_items == 6
    unlabelled = open_images(root, conditional=False)
    assert unlabelled.info.num_classes == 0 and unlabelled.arrays()[1] is None
    assert len(open_images(root, "train[:10]").arrays()[0]) == 10


@pytest.mark.parametrize("split", ["train", "test"])
def test_measured_scaling_is_that_of_the_training_split(root, split):
    dataset = open_images(root, split, scaling="measured")
    x, _ = dataset.arrays()
    train = arrays().fields["image"] / 127.5 - 1
    raw = (arrays() if split == "train" else arrays(6, seed=5)).fields["image"]
    centred = raw / 127.5 - 1 - train.mean((0, 1, 2))
    np.testing.assert_allclose(x, centred * 0.5 / train.std((0, 1, 2)), atol=1e-6)
    np.testing.assert_array_equal(dataset.info.to_pixels(x), raw)


def test_measured_scaling_is_the_same_on_the_device(root):
    dataset = open_images(root, scaling="measured")
    assert open_images(root, flip=True).opened.randomize is images.flip_at_random
    raw = next(dataset.iterator(23, seed=0))
    batch = jax.jit(dataset.to_batch)(raw)
    np.testing.assert_array_equal(batch.x, dataset.arrays()[0][raw.items[:, 2]])


def test_missing_data_name_the_command(tmp_path, root):
    with pytest.raises(FileNotFoundError) as error:
        make_dataset("images", root=tmp_path, prepared="flowers")
    command = "python -m scm_jax data prepare --name=flowers --source=PATH"
    assert command in str(error.value) and f"--root={tmp_path}" in str(error.value)
    with pytest.raises(ValueError, match=r"there are \['tiny'\]"):
        make_dataset("images", root=root)


LATENTS = ArrayItems({"latent": np.ones((2, 4, 4, 4), np.float32)})
CONSTANT = ArrayItems({"image": np.full((2, 4, 4, 3), 7, np.uint8)})


@pytest.mark.parametrize(
    "items, options, message",
    [
        (arrays(), {"scaling": "std"}, "dataset.scaling = 'std'"),
        (arrays(), {"split": "val"}, "split of the prepared dataset 'tiny' = 'val'"),
        (LATENTS, {}, "'tiny' holds latents"),
        (CONSTANT, {"scaling": "measured"}, "a channel has one value only"),
    ],
)
def test_what_cannot_be_opened(tmp_path, items, options, message):
    run(items, tmp_path)
    with pytest.raises(ValueError, match=message):
        open_images(tmp_path, **options)


@pytest.mark.parametrize("variant", IMAGENET64_VARIANTS)
def test_each_variant_has_a_folder_and_all_but_the_default_warn(
    tmp_path, variant, caplog
):
    chosen = IMAGENET64_VARIANTS[variant]
    fields = {"image": np.arange(3, dtype=np.uint8)[:, None, None, None]}
    fields["image"] = np.broadcast_to(fields["image"], (3, 64, 64, 3))
    if chosen.labelled:
        fields["label"] = np.array([0, 999, 5])
    raw = ArrayItems(fields, tuple(map(str, range(1000))), {"path": "x"})
    prepare(raw, tmp_path / chosen.folder / "1.0.0")
    with caplog.at_level(logging.WARNING):
        dataset = make_dataset("imagenet64", root=tmp_path, variant=variant)
    assert ("cannot be compared" in caplog.text) == (variant != "edm2")
    x, label = dataset.arrays()
    assert dataset.info.num_classes == (1000 if chosen.labelled else 0)
    assert (label is None) == (not chosen.labelled)
    np.testing.assert_allclose((x[:, 0, 0, 0] + 1) * 127.5, [0, 1, 2], atol=1e-5)


def test_variants_keep_apart_and_the_first_is_that_of_published_figures():
    first, *others = IMAGENET64_VARIANTS.values()
    assert len({variant.folder for variant in (first, *others)}) == 3
    for variant in (first, *others):
        assert variant.recipe in RECIPES
    assert first.folder == "imagenet64" and first.labelled and first.comparable
    assert first.recipe == "center_crop_dhariwal"
    assert not any(variant.comparable for variant in others)
    assert [variant.labelled for variant in others] == [True, False]
