"""Wan's autoencoder: against a build that works through a clip in pieces, and back."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scm_jax.networks import autoencoder
from scm_jax.networks.external import video_autoencoder as exchange
from scm_jax.networks.external.autoencoder import load_autoencoder
from scm_jax.networks.external.edm import flat_shapes
from scm_jax.networks.video_autoencoder import VideoAutoencoder
from tests.networks.reference import quick_jit, rms, silu

TINY = {"block_channels": (4, 4, 6), "time": (False, True), "num_blocks": 1}
TINY |= {"latent_channels": 3}


def shapes_of_file(module):
    shapes = flat_shapes(autoencoder.abstract_params(module))
    return {e.name: e.file_shape(shapes) for e in exchange.entries(module)}


def tiny_file(seed=0):
    """Random tensors under the published names; time is halved once."""
    rng = np.random.default_rng(seed)
    return {
        name: (rng.normal(size=shape) / max(1, math.prod(shape[1:])) ** 0.5).astype(
            np.float32
        )
        for name, shape in shapes_of_file(VideoAutoencoder(**TINY)).items()
    }


# --- The published layout -------------------------------------------------------------


def test_the_layout_of_wan():
    """Names and shapes that were read off its code, and the number of parameters."""
    table = shapes_of_file(VideoAutoencoder())
    assert sum(map(math.prod, table.values())) == 126_892_531
    some = {
        "encoder.conv1.weight": (96, 3, 3, 3, 3),
        "encoder.downsamples.0.residual.0.gamma": (96, 1, 1, 1),
        "encoder.downsamples.2.resample.1.weight": (96, 96, 3, 3),
        "encoder.downsamples.3.shortcut.weight": (192, 96, 1, 1, 1),
        "encoder.downsamples.5.time_conv.weight": (192, 192, 3, 1, 1),
        "encoder.downsamples.10.residual.6.bias": (384,),
        "encoder.middle.1.norm.gamma": (384, 1, 1),
        "encoder.middle.1.to_qkv.weight": (1152, 384, 1, 1),
        "encoder.head.2.weight": (32, 384, 3, 3, 3),
        "conv1.weight": (32, 32, 1, 1, 1),
        "conv2.weight": (16, 16, 1, 1, 1),
        "decoder.upsamples.3.resample.1.weight": (192, 384, 3, 3),
        "decoder.upsamples.3.time_conv.weight": (768, 384, 3, 1, 1),
        "decoder.upsamples.4.shortcut.weight": (384, 192, 1, 1, 1),
        "decoder.upsamples.11.resample.1.weight": (96, 192, 3, 3),
        "decoder.upsamples.14.residual.6.weight": (96, 96, 3, 3, 3),
        "decoder.head.0.gamma": (96, 1, 1, 1),
    }
    assert some.items() <= table.items()
    empty = {n: np.broadcast_to(np.float32(0), shape) for n, shape in table.items()}
    assert exchange.recognizes(empty)
    assert exchange.infer_autoencoder(empty) == VideoAutoencoder()


def test_a_file_comes_back_bit_for_bit(tmp_path):
    state = tiny_file()
    np.savez(tmp_path / "tiny.npz", **state)
    module, params = load_autoencoder(tmp_path / "tiny.npz")
    assert module == VideoAutoencoder(**TINY)
    back = exchange.export_autoencoder(module, params)
    assert back.keys() == state.keys()
    for name, tensor in state.items():
        np.testing.assert_array_equal(back[name], tensor, err_msg=name)
    state["conv2.weight"] = state["conv2.weight"][:2]
    with pytest.raises(ValueError, match=r"conv1.bias has shape .*must have"):
        exchange.import_autoencoder(exchange.infer_autoencoder(state), state)


# --- What it computes -----------------------------------------------------------------


class Pieces:
    """A clip in pieces of one frame, then as many as share a latent, with what is
    remembered of the last frames: ``(c, t, h, w)``, float64.
    """

    def __init__(self, state):
        self.state = {k: v.astype(np.float64) for k, v in state.items()}
        self.past = {}

    def conv(self, name, x, stride=(1, 1, 1), pad=1):
        """The published convolutions; ``pad`` rows and columns of zeros around."""
        w, b = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        w = w[:, :, None] if w.ndim == 4 else w
        x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
        windows = np.lib.stride_tricks.sliding_window_view(x, w.shape[2:], (1, 2, 3))
        windows = windows[:, :: stride[0], :: stride[1], :: stride[2]]
        return np.einsum("cthwijk,ocijk->othw", windows, w) + b[:, None, None, None]

    def causal(self, name, x):
        """With the last two frames of the piece before, zeros before the first."""
        pad = self.state[f"{name}.weight"].shape[-1] // 2
        past = self.past.get(name, np.zeros((len(x), 2, *x.shape[2:])))
        both = np.concatenate([past, x], axis=1)
        self.past[name] = both[:, -2:]
        return self.conv(name, both, pad=pad)

    def norm(self, name, x):
        gamma = self.state[f"{name}.gamma"].reshape(-1, 1, 1, 1)
        return x / np.sqrt((x**2).mean(0)) * gamma

    def residual(self, name, x):
        h = self.causal(f"{name}.residual.2", silu(self.norm(f"{name}.residual.0", x)))
        h = self.causal(f"{name}.residual.6", silu(self.norm(f"{name}.residual.3", h)))
        if f"{name}.shortcut.weight" in self.state:
            x = self.conv(f"{name}.shortcut", x, pad=0)
        return x + h

    def attend(self, name, x):
        c, t, h, w = x.shape
        qkv = self.conv(f"{name}.to_qkv", self.norm(f"{name}.norm", x), pad=0)
        q, k, v = qkv.reshape(3, c, t, h * w)
        logits = np.einsum("cti,ctj->tij", q, k) / np.sqrt(c)
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        out = np.einsum("tij,ctj->cti", weights, v).reshape(x.shape)
        return x + self.conv(f"{name}.proj", out, pad=0)

    def middle(self, half, x):
        x = self.residual(f"{half}.middle.0", x)
        x = self.attend(f"{half}.middle.1", x)
        return self.residual(f"{half}.middle.2", x)

    def down(self, name, x):
        x = np.pad(x, ((0, 0), (0, 0), (0, 1), (0, 1)))
        x = self.conv(f"{name}.resample.1", x, (1, 2, 2), pad=0)
        if f"{name}.time_conv.weight" in self.state:
            past, self.past[name] = self.past.get(name), x[:, -1:]
            if past is not None:  # not the very first frame
                both = np.concatenate([past, x], axis=1)
                x = self.conv(f"{name}.time_conv", both, (2, 1, 1), pad=0)
        return x

    def up(self, name, x, first):
        if f"{name}.time_conv.weight" in self.state and not first:
            c, t, h, w = x.shape
            both = self.causal(f"{name}.time_conv", x).reshape(2, c, t, h, w)
            x = both.transpose(1, 2, 0, 3, 4).reshape(c, 2 * t, h, w)
        x = x.repeat(2, axis=2).repeat(2, axis=3)
        return self.conv(f"{name}.resample.1", x)

    def half(self, half, x, kinds, first):
        x = self.causal(f"{half}.conv1", x)
        x = x if half == "encoder" else self.middle(half, x)
        samples = "downsamples" if half == "encoder" else "upsamples"
        for number, kind in enumerate(kinds):
            name = f"{half}.{samples}.{number}"
            if kind == "block":
                x = self.residual(name, x)
            else:
                x = self.down(name, x) if half == "encoder" else self.up(name, x, first)
        x = self.middle(half, x) if half == "encoder" else x
        return self.causal(f"{half}.head.2", silu(self.norm(f"{half}.head.0", x)))


def in_pieces(state, x):
    """Mean, standard deviation and what is decoded of the mean: ``(t, h, w, c)``."""
    frames = x.astype(np.float64).transpose(3, 0, 1, 2)
    sizes = [1, *[2] * ((len(x) - 1) // 2)]
    pieces = np.split(frames, np.cumsum(sizes)[:-1], axis=1)
    net, kinds = Pieces(state), ["block", "change", "block", "change", "block"]
    encoded = [net.half("encoder", p, kinds, i == 0) for i, p in enumerate(pieces)]
    moments = net.conv("conv1", np.concatenate(encoded, axis=1), pad=0)
    mean, logvar = np.split(moments, 2)
    z = net.conv("conv2", mean, pad=0)
    kinds = [*["block", "block", "change"] * 2, "block", "block"]
    net, latents = Pieces(state), np.split(z, z.shape[1], axis=1)
    shown = [net.half("decoder", p, kinds, i == 0) for i, p in enumerate(latents)]
    arrays = mean, np.exp(logvar / 2), np.concatenate(shown, axis=1)
    return [a.transpose(1, 2, 3, 0) for a in arrays]


def test_all_at_once_is_what_the_published_code_does_in_pieces():
    state = tiny_file()
    module = exchange.infer_autoencoder(state)
    params = exchange.import_autoencoder(module, state)
    x = np.random.default_rng(1).uniform(-1, 1, (2, 7, 8, 12, 3)).astype(np.float32)
    run = quick_jit(lambda x: autoencoder.encode(module, params, x))
    mean, std = run(x)
    assert mean.shape == (2, 4, 2, 3, 3)
    shown = quick_jit(lambda z: autoencoder.decode(module, params, z))(mean)
    assert shown.shape == x.shape
    for i, clip in enumerate(x):
        expected = in_pieces(state, clip)
        for found, wanted in zip((mean[i], std[i], shown[i]), expected, strict=True):
            assert rms(found - wanted) < 1e-5 * rms(wanted)


def test_an_image_is_a_clip_of_one_frame_and_others_do_not_fit():
    module = VideoAutoencoder(**TINY)
    shapes = autoencoder.abstract_params(module)
    params = jax.tree.map(lambda a: jnp.full(a.shape, 0.1), shapes)
    z = quick_jit(lambda x: autoencoder.encode(module, params, x))(
        jnp.ones((1, 1, 4, 4, 3))
    )
    assert z[0].shape == (1, 1, 1, 1, 3)
    for shape, message in {
        (1, 4, 4, 4, 3): r"takes clips \(t, h, w, c\) of 1 \+ 2 k frames",
        (1, 3, 4, 6, 3): r"4x6 pixels .* multiples of 4",
        (1, 4, 4, 3): r"takes clips",
    }.items():
        with pytest.raises(ValueError, match=message):
            autoencoder.encode(module, params, jnp.zeros(shape))
