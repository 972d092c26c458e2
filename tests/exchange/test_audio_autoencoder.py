"""Stable Audio Open's autoencoder against a build by the definition of each layer."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scm_jax.networks import autoencoder
from scm_jax.networks.audio_autoencoder import AudioAutoencoder
from scm_jax.networks.external import audio_autoencoder as exchange
from scm_jax.networks.external.autoencoder import load_autoencoder
from tests.networks.reference import quick_jit, rms

TINY = {"block_channels": (4, 4, 6), "strides": (2, 4), "latent_channels": 3}
TOOLS = "stable_audio_tools"


def tiny_file(spelling=TOOLS):
    """Random tensors under the published names; the same ones in both spellings."""
    rng, state = np.random.default_rng(0), {}
    for e in exchange.entries(AudioAutoencoder(**TINY), spelling):
        size = 1.0 if e.name.endswith("weight_g") else 0.5
        state[e.name] = (size * rng.normal(size=e.shape)).astype(np.float32)
    return state


# --- The published layout -------------------------------------------------------------


def test_the_layout_of_stable_audio_open():
    """Names and shapes that were read off the code of both libraries."""
    tools, diffusers = (
        {e.name: e.shape for e in exchange.entries(AudioAutoencoder(), spelling)}
        for spelling in exchange.SPELLINGS.values()
    )
    some = {
        "encoder.layers.0.weight_v": (128, 2, 7),
        "encoder.layers.0.bias": (128,),
        "encoder.layers.1.layers.0.layers.0.alpha": (128,),
        "encoder.layers.2.layers.2.layers.1.weight_g": (128, 1, 1),
        "encoder.layers.3.layers.1.layers.3.weight_v": (256, 256, 1),
        "encoder.layers.5.layers.3.beta": (1024,),
        "encoder.layers.5.layers.4.weight_v": (2048, 1024, 16),
        "encoder.layers.6.alpha": (2048,),
        "encoder.layers.7.weight_v": (128, 2048, 3),
        "decoder.layers.0.weight_v": (2048, 64, 7),
        "decoder.layers.1.layers.0.alpha": (2048,),
        "decoder.layers.1.layers.1.weight_v": (2048, 1024, 16),
        "decoder.layers.1.layers.1.weight_g": (2048, 1, 1),
        "decoder.layers.1.layers.1.bias": (1024,),
        "decoder.layers.5.layers.4.layers.1.weight_v": (128, 128, 7),
        "decoder.layers.6.beta": (128,),
        "decoder.layers.7.weight_v": (2, 128, 7),
    }
    assert some.items() <= tools.items()
    assert "decoder.layers.7.bias" not in tools
    some = {
        "encoder.block.4.conv1.weight_v": (2048, 1024, 16),
        "encoder.block.0.res_unit1.snake1.alpha": (1, 128, 1),
        "encoder.conv2.bias": (128,),
        "decoder.block.0.conv_t1.weight_g": (2048, 1, 1),
        "decoder.block.4.res_unit3.conv2.weight_v": (128, 128, 1),
        "decoder.snake1.beta": (1, 128, 1),
    }
    assert some.items() <= diffusers.items()
    for table in tools, diffusers:
        assert sum(map(math.prod, table.values())) == parameters()[0]
        empty = {n: np.broadcast_to(np.float32(0), s) for n, s in table.items()}
        assert exchange.recognizes(empty)
        assert exchange.infer_autoencoder(empty) == AudioAutoencoder()
    shapes = jax.tree.leaves(autoencoder.abstract_params(AudioAutoencoder()))
    assert sum(math.prod(a.shape) for a in shapes) == parameters()[1]


def parameters():
    """In a file, and without the norms of kernels; published are 156M."""
    ends = [(2, 128, 7, 128), (2048, 128, 3, 128), (64, 2048, 7, 2048), (128, 2, 7, 0)]
    weights = sum(i * o * k + bias for i, o, k, bias in ends) + 2 * (2048 + 128)
    norms = 128 + 128 + 2048 + 2
    widths = (128, 128, 256, 512, 1024, 2048)
    for a, b, stride in zip(widths, widths[1:], (2, 4, 4, 8, 8), strict=False):
        # In each half three units of width a and a kernel from a to b, or from b to a.
        weights += 6 * (8 * a * a + 6 * a) + 4 * stride * a * b + 3 * (a + b)
        norms += 6 * 2 * a + 2 * b
    assert (weights + norms, weights) == (156_112_514, 156_077_696)
    return weights + norms, weights


# --- What it computes -----------------------------------------------------------------


class Definition:
    """The layers by their numbers: one sound ``(c, n)``, float64."""

    def __init__(self, state):
        self.state = {k: v.astype(np.float64) for k, v in state.items()}

    def kernel(self, name):
        g, v = (self.state[f"{name}.weight_{part}"] for part in "gv")
        return np.stack([a * b / np.linalg.norm(b) for a, b in zip(g, v, strict=True)])

    def conv(self, name, x, stride=1, dilation=1, pad=0):
        w, bias = self.kernel(name), self.state.get(f"{name}.bias", np.zeros(1))
        x = np.pad(x, ((0, 0), (pad, pad)))
        reach = dilation * (w.shape[-1] - 1)
        starts = range(0, x.shape[1] - reach, stride)
        taps = [x[:, i : i + reach + 1 : dilation] for i in starts]
        return np.stack([np.tensordot(w, t, 2) for t in taps], 1) + bias[:, None]

    def spread(self, name, x, stride):
        """Each sample adds a kernel to the result, ``stride`` after the one before."""
        w, bias = self.kernel(name), self.state[f"{name}.bias"]
        y = np.zeros((w.shape[1], stride * (x.shape[1] - 1) + w.shape[2]))
        for i in range(x.shape[1]):
            y[:, i * stride : i * stride + w.shape[2]] += np.tensordot(x[:, i], w, 1)
        return y[:, stride // 2 : -(stride // 2)] + bias[:, None]

    def snake(self, name, x):
        a, b = (np.exp(self.state[f"{name}.{part}"]) for part in ("alpha", "beta"))
        return x + np.sin(a[:, None] * x) ** 2 / b[:, None]

    def unit(self, name, x, dilation):
        h = self.snake(f"{name}.layers.0", x)
        h = self.conv(f"{name}.layers.1", h, dilation=dilation, pad=3 * dilation)
        return x + self.conv(f"{name}.layers.3", self.snake(f"{name}.layers.2", h))

    def encode(self, x):
        x = self.conv("encoder.layers.0", x, pad=3)
        for i, stride in ((1, 2), (2, 4)):
            for k, dilation in enumerate((1, 3, 9)):
                x = self.unit(f"encoder.layers.{i}.layers.{k}", x, dilation)
            x = self.snake(f"encoder.layers.{i}.layers.3", x)
            x = self.conv(f"encoder.layers.{i}.layers.4", x, stride, pad=stride // 2)
        x = self.conv("encoder.layers.4", self.snake("encoder.layers.3", x), pad=1)
        return x[:3], np.log(1 + np.exp(x[3:])) + 1e-4

    def decode(self, x):
        x = self.conv("decoder.layers.0", x, pad=3)
        for i, stride in ((1, 4), (2, 2)):
            x = self.snake(f"decoder.layers.{i}.layers.0", x)
            x = self.spread(f"decoder.layers.{i}.layers.1", x, stride)
            for k, dilation in enumerate((1, 3, 9)):
                x = self.unit(f"decoder.layers.{i}.layers.{k + 2}", x, dilation)
        return self.conv("decoder.layers.4", self.snake("decoder.layers.3", x), pad=3)


def test_both_halves_are_what_the_layers_mean():
    state = tiny_file()
    module = exchange.infer_autoencoder(state)
    assert module == AudioAutoencoder(**TINY) and module.factor == 8
    params = exchange.import_autoencoder(module, state)
    x = np.random.default_rng(1).uniform(-1, 1, (2, 40, 2)).astype(np.float32)
    mean, std = quick_jit(lambda x: autoencoder.encode(module, params, x))(x)
    sound = quick_jit(lambda z: autoencoder.decode(module, params, z))(mean)
    assert mean.shape == std.shape == (2, 5, 3) and sound.shape == x.shape
    net = Definition(state)
    for i in range(2):
        expected = (*net.encode(x[i].T), net.decode(np.asarray(mean[i], np.float64).T))
        for found, wanted in zip((mean[i], std[i], sound[i]), expected, strict=True):
            assert rms(found - wanted.T) < 1e-5 * rms(wanted)


# --- Files ----------------------------------------------------------------------------


def test_every_kind_of_file_gives_the_same(tmp_path):
    tools, diffusers = tiny_file(), tiny_file("diffusers")
    full = {f"pretransform.model.{name}": a for name, a in tools.items()}
    full |= {"model.model.transformer.layers.0.weight": np.zeros((2, 2), np.float32)}
    later = {"_g": "original0", "_v": "original1"}
    renamed = {
        name.replace(f"weight{end}", f"parametrizations.weight.{word}"): a
        for end, word in later.items()
        for name, a in diffusers.items()
        if name.endswith(end) or (end == "_g" and "weight" not in name)
    }
    assert len(renamed) == len(diffusers) and "encoder.conv1.weight_v" not in renamed
    trees = []
    for i, state in enumerate((tools, diffusers, full, renamed)):
        np.savez(tmp_path / f"{i}.npz", **state)
        module, params = load_autoencoder(tmp_path / f"{i}.npz")
        assert module == AudioAutoencoder(**TINY)
        trees.append(params)
    for other in trees[1:]:
        jax.tree.map(np.testing.assert_array_equal, trees[0], other)
    assert trees[0]["decoder"]["block_0"]["conv_t1"]["kernel"].dtype == np.float32


def test_files_and_sounds_that_do_not_fit(tmp_path):
    state = tiny_file()
    state["encoder.layers.4.weight_g"] = np.ones((4, 1, 1), np.float32)
    np.savez(tmp_path / "tiny.npz", **state)
    wrong = r"tiny.npz: encoder.layers.4.weight_g has shape \(4, 1, 1\); it must have"
    with pytest.raises(ValueError, match=wrong):
        load_autoencoder(tmp_path / "tiny.npz")
    module = AudioAutoencoder(**TINY)
    del state["decoder.layers.3.beta"]
    state["decoder.layers.9.bias"] = np.zeros(1, np.float32)
    with pytest.raises(
        ValueError, match=r"missing: decoder.layers.3.beta .for dec"
    ) as e:
        exchange.import_autoencoder(module, state)
    assert "left over: decoder.layers.9.bias (1,)" in str(e.value)
    del state["decoder.layers.0.weight_v"]
    with pytest.raises(ValueError, match=r"decoder.layers.0.weight_v is missing"):
        exchange.infer_autoencoder(state)
    assert not exchange.recognizes({"encoder.conv1.weight": np.zeros((1, 1, 3, 3, 3))})
    with pytest.raises(ValueError, match=r"no weights of an AudioAut.*\['other'\]"):
        exchange.infer_autoencoder({"other": np.zeros(1)})
    for shape in ((1, 12, 2), (1, 16, 1), (1, 16, 16, 3)):
        with pytest.raises(
            ValueError, match=r"takes sound .samples, 2. with a multiple"
        ):
            autoencoder.encode(module, {}, jnp.zeros(shape))
