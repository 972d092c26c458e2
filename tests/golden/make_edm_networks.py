"""Writes ``edm2_tiny.npz`` and ``ddpmpp_tiny.npz``: weights, inputs and outputs.

A second implementation of the two published networks, in PyTorch, channels first and
without any structure: what the tests hold the ones of ``scm_jax.networks`` against.
Needs torch, which the package and its tests do not: ``python make_edm_networks.py``.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as nnf

HERE = Path(__file__).parent
SIDE, CHANNELS, CLASSES, BATCH = 8, 2, 3, 3


def plan(mult, width, stem, blocks, attention, last_only):
    """(name, in, skip, out, mode, attends), encoder and decoder."""
    enc, dec, skips, c = [], [], [stem], stem
    for level, m in enumerate(mult):
        s = SIDE >> level
        if level:
            enc.append((f"enc.{s}x{s}_down", c, 0, c, "down", False))
            skips.append(c)
        for i in range(blocks):
            out = m * width
            enc.append((f"enc.{s}x{s}_block{i}", c, 0, out, "", s in attention))
            c = out
            skips.append(c)
    for level in reversed(range(len(mult))):
        s = SIDE >> level
        if level == len(mult) - 1:
            dec.append((f"dec.{s}x{s}_in0", c, 0, c, "", True))
            dec.append((f"dec.{s}x{s}_in1", c, 0, c, "", False))
        else:
            dec.append((f"dec.{s}x{s}_up", c, 0, c, "up", False))
        for i in range(blocks + 1):
            out = mult[level] * width
            attends = s in attention and (i == blocks or not last_only)
            dec.append((f"dec.{s}x{s}_block{i}", c, skips.pop(), out, "", attends))
            c = out
    return enc, dec


def resampled(x, mode):
    if mode == "down":
        return nnf.avg_pool2d(x, 2)
    return nnf.interpolate(x, scale_factor=2, mode="nearest") if mode == "up" else x


def unit(x, dims):
    """x / (1e-4 + root mean square)."""
    return x / (1e-4 + x.square().mean(dims, keepdim=True).sqrt())


def layer(x, w, gain=1.0):
    """EDM2's magnitude-preserving convolution or linear layer."""
    fan_in = w[0].numel()
    w = unit(w, tuple(range(1, w.ndim))) * (gain / fan_in**0.5)
    return x @ w.T if w.ndim == 2 else nnf.conv2d(x, w, padding=w.shape[-1] // 2)


def lerp(a, b, t):
    return ((1 - t) * a + t * b) / ((1 - t) ** 2 + t**2) ** 0.5


def silu(x):
    return nnf.silu(x) / 0.596


def attend(qkv, heads, normalize):
    b, c3, h, w = qkv.shape
    qkv = qkv.reshape(b, heads, c3 // 3 // heads, 3, h * w)
    if normalize:
        qkv = unit(qkv, (2,))
    q, k, v = qkv[:, :, :, 0], qkv[:, :, :, 1], qkv[:, :, :, 2]
    logits = torch.einsum("bhcq,bhck->bhqk", q, k) / q.shape[2] ** 0.5
    y = torch.einsum("bhqk,bhck->bhcq", logits.softmax(-1), v)
    return y.reshape(b, c3 // 3, h, w)


def edm2(w, x, c_noise, onehot, enc, dec, head):
    """``w``: weights by their published names, without the prefix."""
    emb = np.sqrt(2) * torch.cos(
        c_noise[:, None] * w["emb_fourier.freqs"] + w["emb_fourier.phases"]
    )
    emb = layer(emb, w["emb_noise.weight"])
    label = layer(onehot * onehot.shape[1] ** 0.5, w["emb_label.weight"])
    emb = silu(lerp(emb, label, 0.5))
    x = torch.cat([x, torch.ones_like(x[:, :1])], 1)
    x = layer(x, w[f"enc.{SIDE}x{SIDE}_conv.weight"])
    skips = [x]
    for name, c, skip, out, mode, attends in enc + dec:
        x = resampled(x, mode)
        if skip:
            other = skips.pop()
            n_a, n_b = x.shape[1], other.shape[1]
            scale = ((n_a + n_b) / 0.5) ** 0.5 * 0.5
            x = torch.cat([x * (scale / n_a**0.5), other * (scale / n_b**0.5)], 1)
        if name.startswith("enc"):
            x = layer(x, w[name + ".conv_skip.weight"]) if c != out else x
            x = unit(x, (1,))
        y = layer(silu(x), w[name + ".conv_res0.weight"])
        s = layer(emb, w[name + ".emb_linear.weight"], w[name + ".emb_gain"]) + 1
        y = silu(y * s[:, :, None, None])
        y = layer(y, w[name + ".conv_res1.weight"])
        if name.startswith("dec") and c + skip != out:
            x = layer(x, w[name + ".conv_skip.weight"])
        x = lerp(x, y, 0.3)
        if attends:
            y = layer(x, w[name + ".attn_qkv.weight"])
            y = layer(attend(y, out // head, True), w[name + ".attn_proj.weight"])
            x = lerp(x, y, 0.3)
        x = x.clip(-256, 256)
        if name.startswith("enc"):
            skips.append(x)
    return layer(x, w["out_conv.weight"], w["out_gain"])


def edm2_weights(enc, dec, width, mult, head):
    g = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=g)

    dim = width * max(mult)
    w = {
        "out_gain": torch.tensor(0.7),
        "emb_fourier.freqs": 2 * np.pi * normal(width),
        "emb_fourier.phases": 2 * np.pi * torch.rand(width, generator=g),
        "emb_noise.weight": normal(dim, width),
        "emb_label.weight": normal(dim, CLASSES),
        f"enc.{SIDE}x{SIDE}_conv.weight": normal(width, CHANNELS + 1, 3, 3),
    }
    for name, c, skip, out, _, attends in enc + dec:
        w[name + ".emb_gain"] = 0.3 * normal(()).squeeze()
        w[name + ".conv_res0.weight"] = normal(
            out, c + skip if name[0] == "d" else out, 3, 3
        )
        w[name + ".emb_linear.weight"] = normal(out, dim)
        w[name + ".conv_res1.weight"] = normal(out, out, 3, 3)
        if c + skip != out:
            w[name + ".conv_skip.weight"] = normal(out, c + skip, 1, 1)
        if attends:
            w[name + ".attn_qkv.weight"] = normal(3 * out, out, 1, 1)
            w[name + ".attn_proj.weight"] = normal(out, out, 1, 1)
    w["out_conv.weight"] = normal(CHANNELS, width, 3, 3)
    return w


def group_norm(x, w, name):
    groups = min(32, x.shape[1] // 4)
    return nnf.group_norm(x, groups, w[name + ".weight"], w[name + ".bias"], 1e-6)


def biased(x, w, name):
    weight, bias = w[name + ".weight"], w[name + ".bias"]
    if weight.ndim == 2:
        return x @ weight.T + bias
    return nnf.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)


def ddpmpp(w, x, c_noise, onehot, enc, dec):
    half = w["map_layer0.weight"].shape[1] // 2
    freqs = 10_000.0 ** -(torch.arange(half, dtype=torch.float32) / (half - 1))
    angles = c_noise[:, None] * freqs
    emb = torch.cat([angles.sin(), angles.cos()], 1)
    emb = emb + biased(onehot * onehot.shape[1] ** 0.5, w, "map_label")
    emb = nnf.silu(biased(emb, w, "map_layer0"))
    emb = nnf.silu(biased(emb, w, "map_layer1"))
    x = biased(x, w, f"enc.{SIDE}x{SIDE}_conv")
    skips = [x]
    for name, c, skip, out, mode, attends in enc + dec:
        if skip:
            x = torch.cat([x, skips.pop()], 1)
        y = resampled(nnf.silu(group_norm(x, w, name + ".norm0")), mode)
        y = (
            biased(y, w, name + ".conv0")
            + biased(emb, w, name + ".affine")[:, :, None, None]
        )
        y = biased(nnf.silu(group_norm(y, w, name + ".norm1")), w, name + ".conv1")
        if c + skip != out or mode:
            x = biased(resampled(x, mode), w, name + ".skip")
        x = (x + y) * 0.5**0.5
        if attends:
            y = biased(group_norm(x, w, name + ".norm2"), w, name + ".qkv")
            x = (x + biased(attend(y, 1, False), w, name + ".proj")) * 0.5**0.5
        if name.startswith("enc"):
            skips.append(x)
    x = nnf.silu(group_norm(x, w, f"dec.{SIDE}x{SIDE}_aux_norm"))
    return biased(x, w, f"dec.{SIDE}x{SIDE}_aux_conv")


def ddpmpp_weights(enc, dec, width):
    g = torch.Generator().manual_seed(1)
    w = {}

    def add(name, *shape):
        fan_in = int(np.prod(shape[1:]))
        w[name + ".weight"] = torch.randn(*shape, generator=g) / fan_in**0.5
        w[name + ".bias"] = 0.3 * torch.randn(shape[0], generator=g)

    def norm(name, c):
        w[name + ".weight"] = 1 + 0.3 * torch.randn(c, generator=g)
        w[name + ".bias"] = 0.3 * torch.randn(c, generator=g)

    dim = 4 * width
    add("map_label", width, CLASSES)
    add("map_layer0", dim, width)
    add("map_layer1", dim, dim)
    add(f"enc.{SIDE}x{SIDE}_conv", width, CHANNELS, 3, 3)
    for name, c, skip, out, mode, attends in enc + dec:
        norm(name + ".norm0", c + skip)
        add(name + ".conv0", out, c + skip, 3, 3)
        add(name + ".affine", out, dim)
        norm(name + ".norm1", out)
        add(name + ".conv1", out, out, 3, 3)
        if c + skip != out or mode:
            add(name + ".skip", out, c + skip, 1, 1)
        if attends:
            norm(name + ".norm2", out)
            add(name + ".qkv", 3 * out, out, 1, 1)
            add(name + ".proj", out, out, 1, 1)
    norm(f"dec.{SIDE}x{SIDE}_aux_norm", out)
    add(f"dec.{SIDE}x{SIDE}_aux_conv", CHANNELS, out, 3, 3)
    return w


def save(file, prefix, w, fn, extras):
    g = torch.Generator().manual_seed(2)
    x = torch.randn(BATCH, CHANNELS, SIDE, SIDE, generator=g)
    c_noise = torch.tensor([-1.2, 0.1, 0.9])
    onehot = torch.eye(CLASSES)[torch.tensor([1, 2, 0])]
    onehot[2] = 0  # the null class
    as64 = {name: a.double() for name, a in w.items()}
    y = fn(as64, x.double(), c_noise.double(), onehot.double())
    w = {prefix + name: a for name, a in w.items()} | extras
    np.savez_compressed(
        HERE / file,
        x=x.numpy(),
        c_noise=c_noise.numpy(),
        label=np.array([1, 2, -1]),
        y=y.numpy(),
        **{"weights/" + name: np.asarray(a) for name, a in w.items()},
    )


def main():
    width, mult, head = 4, (1, 2), 4
    enc, dec = plan(mult, width, width, 2, (4,), False)
    save(
        "edm2_tiny.npz",
        "unet.",
        edm2_weights(enc, dec, width, mult, head),
        lambda *a: edm2(*a, enc, dec, head),
        {"logvar_linear.weight": torch.ones(1, 8)},
    )
    width = 4
    enc, dec = plan((2, 2), width, width, 2, (4,), True)
    save(
        "ddpmpp_tiny.npz",
        "model.",
        ddpmpp_weights(enc, dec, width),
        lambda *a: ddpmpp(*a, enc, dec),
        {"model.map_augment.weight": torch.ones(width, 9)},
    )


if __name__ == "__main__":
    main()
