"""Train the small network that names the digit that is heard on a spectrogram.

Run: python data/spoken_digits/train_reader.py --output=speech_reader.npz
Expect: see README.md beside this file.

Clips of another seed than the data set's, of its training voices only; the accuracy is
that on the voices of the split ``test``. Half of the clips pass through the front end
and back, so that the network knows what Griffin-Lim makes of sound; each is moved by up
to three frames, and half have noise. AdamW with cosine decay. The frozen file is what
counts, and this script never overwrites it unless told to: ``--output``.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from scm_jax.datasets.front_ends import LogMel
from scm_jax.datasets.spoken_digits import SpeechSource
from scm_jax.evaluation.features import speech_reader as reader
from scm_jax.files.tensors import tensors_sha256

DATA_SEED = 2  # the data set's is 0
BATCH_SIZE = 128
EPOCHS = 12
LEARNING_RATE = 2e-3
NOISE = 20.0  # largest standard deviation, in levels of 0..255
SHIFT = 3  # frames


def load_items(split: str, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Levels of clips, of the same after the way back to sound, and their digits."""
    source = SpeechSource(split=split, num_items=number, seed=DATA_SEED)
    sound, (digits, _) = source.sound(np.arange(number)), source.said(np.arange(number))
    front_end = LogMel(8_000, sound.shape[1])
    values = front_end.values(sound)
    again = [
        front_end.sound(part) for part in np.array_split(values, 1 + number // 500)
    ]
    back = front_end.values(np.concatenate(again))
    return front_end.image(values), front_end.image(back), digits


def init_weights(rng: np.random.Generator) -> dict[str, jax.Array]:
    """He initialization (arXiv 1502.01852); the head and biases start at zero."""
    weights = {}
    for name, shape in reader.WEIGHT_SHAPES.items():
        layer, part = name.split(".")
        zero = part == "bias" or layer == "digit"
        scale = 0.0 if zero else np.sqrt(2 / np.prod(shape[:-1]))
        weights[name] = jnp.asarray(scale * rng.standard_normal(shape), jnp.float32)
    return weights


def augmented(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Clips moved in time, half of them with noise."""
    moved = [np.roll(p, rng.integers(-SHIFT, SHIFT + 1), axis=1) for p in pixels]
    strength = NOISE * np.maximum(0, rng.uniform(-1, 1, (len(pixels), 1, 1, 1)))
    noisy = np.stack(moved) + strength * rng.standard_normal(pixels.shape)
    return np.clip(noisy, 0, 255).astype(np.float32)


def train(num_items: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Weights after ``EPOCHS`` passes, as float16."""
    direct, back, digits = load_items("train", num_items)
    weights, num_steps = init_weights(rng), EPOCHS * num_items // BATCH_SIZE
    schedule = optax.warmup_cosine_decay_schedule(0.0, LEARNING_RATE, 100, num_steps)
    optimizer = optax.adamw(schedule, b2=0.99, weight_decay=0.05)

    def loss_fn(weights, pixels, labels):
        found = reader.read_images(weights, pixels)["digit"]
        return optax.softmax_cross_entropy_with_integer_labels(found, labels).mean()

    @jax.jit
    def step(weights, state, pixels, labels):
        loss, gradient = jax.value_and_grad(loss_fn)(weights, pixels, labels)
        updates, state = optimizer.update(gradient, state, weights)
        return optax.apply_updates(weights, updates), state, loss

    state = optimizer.init(weights)
    for number in range(num_steps):
        rows = rng.integers(0, num_items, BATCH_SIZE)
        which = rng.random((BATCH_SIZE, 1, 1, 1)) < 0.5
        pixels = augmented(np.where(which, direct[rows], back[rows]), rng)
        weights, state, loss = step(weights, state, pixels, digits[rows])
        if number % 200 == 0:
            print(f"step {number}: loss {float(loss):.3f}", flush=True)
    return {name: np.asarray(value, np.float16) for name, value in weights.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--output", type=Path, help="where to write the weights (.npz)")
    parser.add_argument("--num_items", type=int, default=8_000)
    arguments = parser.parse_args()
    started = time.process_time()
    weights = train(arguments.num_items, np.random.default_rng(0))
    print(f"{time.process_time() - started:.0f} s of processor time")
    single = {name: np.asarray(array, np.float32) for name, array in weights.items()}
    direct, back, digits = load_items("test", 4_000)
    for kind, pixels in {"spoken": direct, "after the way back": back}.items():
        right = reader.read(single, pixels)["digit"].argmax(-1) == digits
        print(f"held-out voices, {kind}: {right.mean():.4f}")
    print(f"sha256 {tensors_sha256(weights)}")
    if arguments.output is not None:
        np.savez(arguments.output, **weights)
        print(f"wrote {arguments.output}, {arguments.output.stat().st_size} bytes")


if __name__ == "__main__":
    main()
