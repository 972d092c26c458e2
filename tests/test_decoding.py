"""Latents become pixels inside the compiled sampler."""

import dataclasses
import functools
import logging

import jax
import numpy as np
import pytest

from scm_jax import config as config_lib
from scm_jax import datasets, sampling
from scm_jax.datasets import images, latents
from scm_jax.datasets import pixels as quantize
from scm_jax.files import catalogue, state_dict
from scm_jax.networks import autoencoder
from scm_jax.networks.external import autoencoder as exchange
from scm_jax.runs import latents as decoding
from scm_jax.runs import sample as generation
from scm_jax.runs.setup import experiment

SHAPE = (4, 4, 4)


def tiny_latents(
    split="train", *, root=None, prepare=False, whitening="edm2", channels=4
):
    """Noise that claims to be whitened latents."""
    del root, prepare
    noise = images.make_noise_images(
        split, sample_shape=(*SHAPE[:2], channels), num_classes=0
    )
    constants = latents.WHITENING[whitening]
    info = dataclasses.replace(noise.info, whitening=lambda: constants)
    return dataclasses.replace(noise, info=info)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A machine without weights, and a dataset of tiny latents."""
    monkeypatch.setenv("SCM_JAX_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setitem(datasets.DATASETS, "tiny_latents", tiny_latents)
    return tmp_path


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Weights of an autoencoder that makes two pixels of a position."""
    module = autoencoder.AutoencoderKL(
        block_channels=(4, 4), num_blocks=1, num_groups=2
    )
    rng = np.random.default_rng(0)
    shapes = autoencoder.abstract_params(module)
    params = jax.tree.map(
        lambda a: (0.3 * rng.standard_normal(a.shape)).astype(np.float32), shapes
    )
    out = params["decoder"]["out"]  # pixels in the middle of both ranges
    out["kernel"] *= np.float32(0.3)
    out["bias"][:] = 0.4
    folder = tmp_path_factory.mktemp("vae")
    (folder / "config.json").write_text('{"norm_num_groups": 2}')
    path = folder / "vae.safetensors"
    state_dict.write_state_dict(path, exchange.export_autoencoder(module, params))
    return path


def generator(decoder=""):
    """``generate`` of an untrained network on tiny latents."""
    config = config_lib.base_config("mlp", "diffusion", "tiny_latents")
    config.network.update({"width": 8, "depth": 1})
    config.sampling.update({"decoder": decoder, "steps": 1, "batch_size": 2})
    config.sampling.sampler = "consistency"
    built = experiment.build(config)
    params = jax.jit(built.init_params)()["net"]
    return built, generation.Generator(built, params)


@pytest.mark.parametrize("whitening", ["edm2", "sd_vae_ft_mse_pm1"])
def test_latents_are_decoded_by_the_datasets_conventions(whitening, root, file):
    decoder = decoding.find_decoder(str(file), tiny_latents(whitening=whitening).info)
    x = np.random.default_rng(0).standard_normal((2, *SHAPE), np.float32) / 2
    pixels = jax.jit(decoder.pixels)(decoder.params, x)
    assert pixels.shape == (2, 8, 8, 3) and pixels.dtype == np.uint8
    module, params = exchange.load_autoencoder(file)
    mean, std, _ = (np.array(v)[None, None, None] for v in latents.WHITENING[whitening])
    decoded = decode(module)(params, np.float32(x / 0.5 * std + mean))
    name = {"edm2": "unit", "sd_vae_ft_mse_pm1": "pm1"}[whitening]
    expected = np.asarray(quantize.PIXEL_RANGES[name].to_uint8(decoded))
    assert 10 < expected.std()
    # Rounding in another order may move a value over the edge of a level.
    assert np.mean(pixels != expected) < 0.02


@functools.cache
def decode(module):
    return jax.jit(functools.partial(autoencoder.decode, module))


def test_the_compiled_sampler_holds_the_decoder(root, file, monkeypatch):
    """One program gives latents and pixels, and is called once for each batch."""
    calls = []
    make = sampling.make_sampler

    def recorded(*args, **kwargs):
        sample = make(*args, **kwargs)

        def call(*inputs):
            calls.append(sample(*inputs))
            return calls[-1]

        return call

    monkeypatch.setattr(sampling, "make_sampler", recorded)
    built, generate = generator(str(file))
    x, pixels = generate(3, pixels=True)
    assert x.shape == (3, *SHAPE) and x.dtype == np.float32
    decoder = decoding.find_decoder(str(file), built.dataset.info)
    expected = jax.jit(decoder.pixels)(decoder.params, x[:2])
    assert np.mean(pixels[:2] != expected) < 0.02 and expected.std() > 10
    assert len(calls) == 2
    assert [(part.shape, part.dtype) for part in calls[0]] == [
        ((2, *SHAPE), np.float32),
        ((2, 8, 8, 3), np.uint8),
    ]
    np.testing.assert_array_equal(generate(3), x)
    assert calls[2].shape == (2, *SHAPE)  # nobody asked for pixels


def test_without_weights_latents_are_shown_and_a_warning_names_the_file(root, caplog):
    built, generate = generator()
    with caplog.at_level(logging.WARNING):
        x, pixels = generate(2, pixels=True)
        generate(2, pixels=True)
    np.testing.assert_array_equal(pixels, built.dataset.info.to_pixels(x))
    (record,) = caplog.records
    expected = next(catalogue.accepted_paths("sd-vae-ft-mse"))
    assert str(expected) in record.getMessage() and "\n" not in record.getMessage()


def test_named_weights_must_be_there(root, file, caplog):
    info = tiny_latents().info
    assert decoding.find_decoder("none", info) is None and not caplog.records
    path = str(root / "absent.safetensors")
    with pytest.raises(FileNotFoundError, match="(?s)absent.safetensors.*huggingface"):
        decoding.find_decoder(path, info)
    with pytest.raises(ValueError, match="4 channels; those of .* have 3"):
        decoding.find_decoder(str(file), tiny_latents(channels=3).info)


def test_latents_of_sound_are_not_decoded_to_pixels(root, file):
    info = dataclasses.replace(tiny_latents().info, to_pixels=None)
    assert decoding.find_decoder(str(file), info) is None


def test_the_latents_of_imagenet_name_their_constants():
    for name, interval in (("edm2", "[0,1]"), ("sd_vae_ft_mse_pm1", "[-1,1]")):
        info = datasets.make_dataset("imagenet512_latents", whitening=name).info
        assert info.whitening() == latents.WHITENING[name]
        assert info.whitening().pixel_range == interval
        assert quantize.by_interval(interval).interval == interval
