"""What the device makes of stored fields: chance, scaling, and what crosses to it."""

import functools
import itertools
import json
import pathlib

import jax
import numpy as np
import pytest

from scm_jax.datasets import images, latents, pipeline
from scm_jax.types import DatasetInfo

NUM_ITEMS = 12


@functools.cache
def flipped_images():
    """Images without symmetry, half of them mirrored in every epoch."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (NUM_ITEMS, 3, 5, 3), np.uint8)
    fields = {"image": image, "label": np.arange(NUM_ITEMS)}
    info = DatasetInfo("pictures", (3, 5, 3), NUM_ITEMS, 0.5, NUM_ITEMS)
    source = pipeline.MemorySource(fields)
    return images.image_dataset(info, source, flip=True)


@functools.cache
def posteriors(folder=pathlib.Path("/nowhere"), whitening="sd_vae_ft_mse_pm1"):
    """Means and standard deviations of latents in eight channels."""
    rng = np.random.default_rng(1)
    mean = rng.standard_normal((NUM_ITEMS, 3, 3, 4)) * 3 + 1
    std = rng.uniform(0.5, 2, (NUM_ITEMS, 3, 3, 4))
    latent = np.concatenate([mean, std], axis=-1).astype(np.float16)
    fields = {"latent": latent, "label": np.arange(NUM_ITEMS)}
    info = DatasetInfo(latents.NAME, (3, 3, 4), NUM_ITEMS, 0.5, NUM_ITEMS)
    source = pipeline.MemorySource(fields)
    settings = {"whitening": whitening, "folder": lambda: folder}
    return latents.open_latents(info, source, **settings)


DATASETS = {"flips": flipped_images, "draws": posteriors}


@pytest.fixture(params=sorted(DATASETS))
def dataset(request):
    return DATASETS[request.param]()


def take(dataset, num, *arguments):
    return list(itertools.islice(dataset.iterator(*arguments), num))


QUICK = {"xla_backend_optimization_level": 0}  # compiles in a third of the time


@functools.cache
def compiled(dataset):
    return jax.jit(dataset.to_batch, compiler_options=QUICK)


def decoded(dataset, raws):
    """``(x, label)`` of all batches after one another."""
    to_batch = compiled(dataset)
    batches = [to_batch(raw) for raw in raws]
    rows = [batch.x for batch in batches], [batch.label for batch in batches]
    return tuple(map(np.concatenate, rows))


def by_item(dataset, epochs, seed=0):
    """``x`` of each item in each epoch, ``(epochs, items, ...)``."""
    x, label = decoded(dataset, take(dataset, epochs, NUM_ITEMS, seed))
    rows = x.reshape(epochs, NUM_ITEMS, *x.shape[1:])
    order = label.reshape(epochs, NUM_ITEMS).argsort(axis=1)
    return np.stack([row[o] for row, o in zip(rows, order, strict=True)])


def test_stored_types_cross_and_no_float32(dataset):
    seed = 2**32 - 1  # the largest is a number of its own, not a negative one
    (raw,) = take(dataset, 1, 4, seed)
    found = {name: values.dtype.name for name, values in raw.fields.items()}
    stored = {"image": "uint8", "latent": "float16", "label": "int32"}
    assert found == {name: stored[name] for name in dataset.source.fields}
    assert raw.items.dtype == np.uint32 and (raw.items[:, :2] == [seed, 0]).all()
    np.testing.assert_array_equal(raw.items[:, 2], raw.fields["label"])
    x, _ = decoded(dataset, [raw])
    assert x.dtype == np.float32 and np.isfinite(x).all()


def test_half_of_the_images_are_mirrored():
    dataset, epochs = flipped_images(), 200
    plain, _ = dataset.arrays()
    x = by_item(dataset, epochs)
    same = (x == plain).all((2, 3, 4))
    mirrored = (x == plain[:, :, ::-1]).all((2, 3, 4))
    assert (same ^ mirrored).all()
    num = mirrored.size  # four standard deviations of a fair coin, over all and by item
    assert abs(mirrored.mean() - 0.5) < 4 * 0.5 / np.sqrt(num)
    assert (abs(mirrored.mean(axis=0) - 0.5) < 4 * 0.5 / np.sqrt(epochs)).all()
    neighbours = mirrored[1:] == mirrored[:-1]  # epochs know nothing of one another
    assert abs(neighbours.mean() - 0.5) < 4 * 0.5 / np.sqrt(neighbours.size)


def test_draws_have_the_stored_mean_and_standard_deviation():
    dataset, epochs = posteriors(), 300
    raw = latents.unwhiten(by_item(dataset, epochs), "sd_vae_ft_mse_pm1")
    stored = dataset.source.fields["latent"].astype(np.float64)
    mean, std = stored[..., :4], stored[..., 4:]
    noise = (raw - mean) / std
    assert abs(noise.mean()) < 4 / np.sqrt(noise.size)
    assert (abs(noise.mean(axis=0)) < 5 / np.sqrt(epochs)).all()
    assert noise.std() == pytest.approx(1, abs=4 / np.sqrt(2 * noise.size))
    assert (abs(noise.std(axis=0) - 1) < 5 / np.sqrt(2 * epochs)).all()
    means = latents.whiten(mean.astype(np.float16), "sd_vae_ft_mse_pm1")
    np.testing.assert_array_equal(dataset.arrays()[0], means)


def test_chance_is_a_function_of_seed_epoch_and_item_alone(dataset):
    """Other batches, other neighbours and single rows give the same bits."""
    (raw,) = take(dataset, 1, NUM_ITEMS, 3)
    x, label = decoded(dataset, [raw])
    smaller = decoded(dataset, take(dataset, 3, 4, 3))
    jax.tree.map(np.testing.assert_array_equal, smaller, (x, label))
    backwards = jax.tree.map(lambda a: a[::-1], raw)
    np.testing.assert_array_equal(decoded(dataset, [backwards])[0][::-1], x)
    row = jax.tree.map(lambda a: a[5:6], raw)
    np.testing.assert_array_equal(decoded(dataset, [row])[0], x[5:6])
    assert (by_item(dataset, 1, seed=4)[0] != by_item(dataset, 1, seed=3)[0]).any()


def test_chance_does_not_depend_on_the_default_generator(dataset):
    (raw,) = take(dataset, 1, 4, 0)
    expected, _ = decoded(dataset, [raw])
    with jax.default_prng_impl("unsafe_rbg"):
        # A function of its own: JAX would use the trace of ``dataset.to_batch`` again.
        found = jax.jit(lambda raw: dataset.to_batch(raw), compiler_options=QUICK)(raw)
    np.testing.assert_array_equal(found.x, expected)


def test_keys_are_not_those_of_a_training():
    """``fold_in(key(seed), number)`` is the key of a step and, split, of its noise."""
    items = np.array([[s, e, i] for s in range(2) for e in range(3) for i in range(3)])
    data = jax.random.key_data(pipeline.item_keys(items.astype(np.uint32)))
    steps = np.array([(k, i) for k in range(3) for i in range(3)], np.uint32)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def training(seed):
        key = jax.random.key(seed)
        fold = jax.vmap(jax.random.fold_in, (None, 0))
        keys = [key[None], jax.random.split(key, 4), fold(key, steps[:, 0])]
        found = [jax.vmap(lambda k: fold(k, steps[:, 1]))(part) for part in keys]
        return [jax.random.key_data(part).reshape(-1, 2) for part in found]

    drawn = np.concatenate([part for seed in range(2) for part in training(seed)])
    keys = {tuple(row) for row in np.asarray(data).tolist()}
    assert len(keys) == len(items)
    assert not keys & {tuple(row) for row in drawn.tolist()}


def manifest(folder, **content):
    (folder / "manifest.json").write_text(json.dumps(content))
    return folder


def test_measured_whitening_gives_the_declared_moments(tmp_path):
    stored = posteriors().source.fields["latent"].astype(np.float64)
    flat = stored.reshape(-1, 8)
    moments = {"mean": flat.mean(0).tolist(), "std": flat.std(0).tolist()}
    folder = manifest(tmp_path, splits={"train": moments})
    x = by_item(posteriors(folder, "measured"), 400).reshape(-1, 4)
    np.testing.assert_allclose(x.mean(0), 0, atol=0.01)
    np.testing.assert_allclose(x.std(0), 0.5, rtol=0.02)


def test_measured_whitening_of_drawn_latents(tmp_path):
    mean, std = [0.1, 0.2, 0.3, 0.4], [1.0, 2.0, 3.0, 4.0]
    encoder = {"pixel_range": "[0, 1]"}
    folder = manifest(tmp_path, mean=mean, std=std, encoder=encoder)
    found = latents.find_whitening(folder, "measured")
    assert found == (tuple(mean), tuple(std), "[0,1]")
    # The split's come before those of the whole.
    manifest(tmp_path, mean=mean, std=std, splits={"train": {"mean": std, "std": std}})
    assert latents.find_whitening(folder, "measured").mean == tuple(std)


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"mean": [1, 2, 3], "std": [1, 2, 3]},
        {"mean": [1, 2, 3, 4], "std": [1, 2, 3, 0]},
        {"mean": [1, 2, 3, None], "std": [1, 2, 3, 4]},
        {"splits": {"train": {"mean": [1, 2, 3, 4]}}},
    ],
)
def test_manifests_without_constants_are_refused(tmp_path, content):
    with pytest.raises(FileNotFoundError, match=r"'measured' needs .*manifest.json"):
        latents.find_whitening(tmp_path, "measured")
    manifest(tmp_path, **content)
    with pytest.raises(ValueError, match=r"manifest.json must have under splits.train"):
        latents.find_whitening(tmp_path, "measured")
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"manifest.json is not JSON"):
        latents.find_whitening(tmp_path, "edm2")


@pytest.mark.parametrize("pixels", ["[0,1]", "[-1, 1]"])
@pytest.mark.parametrize("whitening", sorted(latents.WHITENING))
def test_pixel_range_of_the_recipe_must_be_that_of_the_data(
    tmp_path, whitening, pixels
):
    constants = latents.WHITENING[whitening]
    assert latents.find_whitening(tmp_path, whitening) == constants  # not recorded
    manifest(tmp_path, encoder={"pixel_range": pixels})
    if constants.pixel_range == pixels.replace(" ", ""):
        assert latents.find_whitening(tmp_path, whitening) == constants
        return
    other = {"edm2": "sd_vae_ft_mse_pm1", "sd_vae_ft_mse_pm1": "edm2"}[whitening]
    with pytest.raises(ValueError, match=rf"choose '{other}', or 'measured'"):
        posteriors(tmp_path, whitening)
