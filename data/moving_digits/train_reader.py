"""Train the small network that reads digit and motion off clips of moving digits.

Run: python data/moving_digits/train_reader.py --output=clips_reader.npz
Expect: held-out accuracy of the digit 0.982, of the direction 0.950, of the speed
0.956; of the digit on a frame 0.979, on all frames of a clip 0.948; in 980 seconds of
processor time on one busy core.

Clips of another seed than the data set's, each seen once, in batches of 128, half of
them with noise; AdamW with cosine decay, the sum of four cross entropies. The frozen
file is what counts, and this script never overwrites it unless told to: ``--output``.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from scm_jax.datasets.moving_digits import ClipSource, Motion
from scm_jax.evaluation.features import clips_reader as reader
from scm_jax.files.tensors import tensors_sha256

DATA_SEED = 1  # the data set's is 0
NUM_TEST = 5_000
BATCH_SIZE = 128
LEARNING_RATE = 3e-3
NOISE = 12.0  # largest standard deviation, in levels of 0..255


def targets(motion: Motion, label: np.ndarray) -> dict[str, np.ndarray]:
    """What the heads are to name: the digit, an eighth of a turn, a third of speeds."""
    down, right = motion.velocity[:, 0].T
    turn = np.arctan2(down, right) / (2 * np.pi)
    return {
        "digit": label,
        "direction": np.floor(8 * turn).astype(np.int64) % 8,
        "speed": np.searchsorted((1.17, 1.58), np.hypot(down, right)),
    }


def load_items(
    source: ClipSource, indices: np.ndarray
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Pixels of some clips, and what the heads are to name."""
    fields = source.gather(indices)
    return fields["clip"], targets(source.motion(indices), fields["label"])


def init_weights(rng: np.random.Generator) -> dict[str, jax.Array]:
    """He initialization (arXiv 1502.01852); heads and biases start at zero."""
    weights = {}
    for name, shape in reader.WEIGHT_SHAPES.items():
        layer, part = name.split(".")
        zero = part == "bias" or layer in (*reader.HEADS, "frame_digit")
        scale = 0.0 if zero else np.sqrt(2 / np.prod(shape[:-1]))
        weights[name] = jnp.asarray(scale * rng.standard_normal(shape), jnp.float32)
    return weights


def train(num_items: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Weights after one pass over so many clips, as float16."""
    weights, num_steps = init_weights(rng), num_items // BATCH_SIZE
    schedule = optax.warmup_cosine_decay_schedule(0.0, LEARNING_RATE, 100, num_steps)
    optimizer = optax.adamw(schedule, b2=0.99, weight_decay=0.05)
    entropy = optax.softmax_cross_entropy_with_integer_labels

    def loss_fn(weights, pixels, labels):
        found = reader.read_clips(weights, pixels)
        loss = sum(entropy(found[k], labels[k]).mean() for k in reader.HEADS)
        digit = jnp.broadcast_to(
            labels["digit"][:, None], found["frame_digit"].shape[:2]
        )
        return loss + entropy(found["frame_digit"], digit).mean()

    @jax.jit
    def step(weights, state, pixels, labels):
        loss, gradient = jax.value_and_grad(loss_fn)(weights, pixels, labels)
        updates, state = optimizer.update(gradient, state, weights)
        return optax.apply_updates(weights, updates), state, loss

    state = optimizer.init(weights)
    source = ClipSource(num_items=num_items, seed=DATA_SEED)
    for number in range(num_steps):
        first = number * BATCH_SIZE
        pixels, labels = load_items(source, np.arange(first, first + BATCH_SIZE))
        strength = NOISE * np.maximum(0, rng.uniform(-1, 1, (BATCH_SIZE, 1, 1, 1, 1)))
        noisy = pixels + strength * rng.standard_normal(pixels.shape)
        pixels = np.clip(noisy, 0, 255).astype(np.float32)
        weights, state, loss = step(weights, state, pixels, labels)
        if number % 200 == 0:
            print(f"step {number}: loss {float(loss):.3f}", flush=True)
    return {name: np.asarray(value, np.float16) for name, value in weights.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--output", type=Path, help="where to write the weights (.npz)")
    parser.add_argument("--num_items", type=int, default=200_000)
    arguments = parser.parse_args()
    started = time.process_time()
    weights = train(arguments.num_items, np.random.default_rng(0))
    print(f"{time.process_time() - started:.0f} s of processor time")
    single = {name: np.asarray(array, np.float32) for name, array in weights.items()}
    pixels, labels = load_items(ClipSource("test", NUM_TEST), np.arange(NUM_TEST))
    found = reader.read(single, pixels)
    for head in reader.HEADS:
        right = found[head].argmax(-1) == labels[head]
        print(f"held-out accuracy of {head} {right.mean():.4f}")
    right = found["frame_digit"].argmax(-1) == labels["digit"][:, None]
    print(f"of the digit on a frame {right.mean():.4f}")
    print(f"on all frames of a clip {right.all(1).mean():.4f}")
    print(f"sha256 {tensors_sha256(weights)}")
    if arguments.output is not None:
        np.savez(arguments.output, **weights)
        print(f"wrote {arguments.output}, {arguments.output.stat().st_size} bytes")


if __name__ == "__main__":
    main()
