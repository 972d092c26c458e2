"""Layers of published transformers by their formulas, in float64, on tensors of files.

And how such files are laid out.
"""

import re

import numpy as np

from scm_jax.networks.external import edm, transformers
from tests.networks.reference import silu, softmax

W, DEPTH, HEADS, C = 8, 2, 2, 3  # of the small files


def layout(table, w, depth, **sizes):
    """``name: out in ... [bias]`` a line; ``#`` stands for the number of a block."""
    found = {}
    for line in table.strip().splitlines():
        name, _, dims = line.strip().partition(": ")
        *dims, last = dims.split()
        dims += [] if last == "bias" else [last]
        shape = tuple(int(eval(d, {"w": w, **sizes})) for d in dims)
        for i in range(depth if "#" in name else 1):
            full = name.replace("#", f"blocks.{i}")
            plain = full.endswith(("shift_table", "pos_embed", ".modulation"))
            found[full if plain else f"{full}.weight"] = shape
            found |= {f"{full}.bias": shape[:1]} if last == "bias" else {}
    return found


def to_diffusers(state, renamed):
    found = {}
    for name, a in state.items():
        for old, new in zip(renamed[::2], renamed[1::2], strict=True):
            name = name.replace(old, new)
        parts = re.search(r"to_(q?kv)", name)
        letters = parts[1] if parts else ""
        for letter, part in zip(letters, np.split(a, len(letters) or 1), strict=False):
            found[name.replace(parts[1], letter)] = part
        found |= {} if letters else {name: a}
    return found


def of_a_file(module, naming="original"):
    shapes = edm.expected_shapes(module)
    entries = transformers.entries(module, naming)
    return {entry.name: entry.file_shape(shapes) for entry in entries}


def same(one, other):
    assert sorted(one) == sorted(other)
    for name, tensor in one.items():
        assert other[name].shape == tensor.shape, name
        np.testing.assert_array_equal(other[name], tensor, err_msg=name)


def draw(layout, seed=0):
    rng = np.random.default_rng(seed)

    def one(shape):
        fan_in = np.prod(shape[1:]) if len(shape) > 1 else 4
        return rng.normal(size=shape).astype(np.float32) / np.float32(np.sqrt(fan_in))

    return {name: one(shape) for name, shape in layout.items()}


def sinusoid(a):
    angles = a[:, None] * np.exp(-np.log(1e4) * np.arange(128) / 128)
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=1)


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def layer_norm(x):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)


def attend(q, k, v, mask=True, d=W // HEADS, turn=lambda a: a):
    """By softmax; ``mask`` broadcasts to ``(b, heads, n, m)``."""
    q, k, v = turn(heads(q, d)), turn(heads(k, d)), heads(v, d)
    logits = np.where(mask, q @ k.swapaxes(2, 3) / np.sqrt(d), -np.inf)
    return joined(softmax(logits) @ v)


def heads(a, d):
    return a.reshape(*a.shape[:2], -1, d).transpose(0, 2, 1, 3)  # b, heads, n, d


def joined(a):
    return a.transpose(0, 2, 1, 3).reshape(a.shape[0], a.shape[2], -1)


class File:
    """Layers by the names of a file after a prefix, in float64."""

    def __init__(self, state, prefix=""):
        self.state, self.prefix = state, prefix

    def __getitem__(self, name):
        return self.state[self.prefix + name].astype(np.float64)

    def __call__(self, name, x):
        weight = self[f"{name}.weight"]
        biased = f"{self.prefix}{name}.bias" in self.state
        y = x @ weight.reshape(len(weight), -1).T
        return y + self[f"{name}.bias"] if biased else y

    def rms(self, name, x, eps):
        mean = (x**2).mean(-1, keepdims=True)
        return x / np.sqrt(mean + eps) * self[f"{name}.weight"]

    def time(self, name, a):
        return self(f"{name}.mlp.2", silu(self(f"{name}.mlp.0", sinusoid(a))))
