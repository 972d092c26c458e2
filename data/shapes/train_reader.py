"""Train the small network that reads the words of a caption off images of ``shapes``.

Run: python data/shapes/train_reader.py --output=reader.npz
Expect: held-out accuracy of size 0.930, colour 1.000, shape 0.983, colour of the second
shape 0.999, second shape 0.905, colour of the background 1.000, background 0.972, place
0.951; all of them 0.766; in 1,290 seconds of processor time on two busy cores.

Items of another seed than the data set's, each seen once, in batches of 128; AdamW with
warmup and cosine decay, the sum of the cross entropies of eight heads. The frozen file
is what counts, and this script never overwrites it unless told to: ``--output PATH``.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from scm_jax.datasets import shapes
from scm_jax.evaluation.features import shapes_reader as reader
from scm_jax.files.tensors import tensors_sha256

DATA_SEED = 1  # the data set's is 0
NUM_TEST = 10_000
BATCH_SIZE = 128
LEARNING_RATE = 2e-3
WARMUP_STEPS = 100


def load_items(
    source: shapes.ShapeSource, first: int, last: int
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Pixels of some items, and what the heads are to name."""
    indices = np.arange(first, last)
    return source.gather(indices)["image"], shapes.targets(source.attributes(indices))


def init_weights(rng: np.random.Generator) -> dict[str, jax.Array]:
    """He initialization (arXiv 1502.01852); heads and biases start at zero."""
    weights = {}
    for name, shape in reader.WEIGHT_SHAPES.items():
        layer, part = name.split(".")
        zero = part == "bias" or layer in reader.HEADS
        scale = 0.0 if zero else np.sqrt(2 / np.prod(shape[:-1]))
        weights[name] = jnp.asarray(scale * rng.standard_normal(shape), jnp.float32)
    return weights


def train(num_items: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Weights after one pass over so many items, as float16."""
    weights, num_steps = init_weights(rng), num_items // BATCH_SIZE
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, LEARNING_RATE, WARMUP_STEPS, num_steps
    )
    optimizer = optax.adamw(schedule, b2=0.99, weight_decay=0.05)

    def loss_fn(weights, pixels, labels):
        found = reader.logits(weights, pixels)
        losses = [
            optax.softmax_cross_entropy_with_integer_labels(found[k], labels[k]).mean()
            for k in reader.HEADS
        ]
        return jnp.stack(losses).sum()

    @jax.jit
    def step(weights, state, pixels, labels):
        loss, gradient = jax.value_and_grad(loss_fn)(weights, pixels, labels)
        updates, state = optimizer.update(gradient, state, weights)
        return optax.apply_updates(weights, updates), state, loss

    state = optimizer.init(weights)
    source = shapes.ShapeSource("train", num_items, seed=DATA_SEED)

    def draw(number: int):
        start = number * BATCH_SIZE
        return load_items(source, start, start + BATCH_SIZE)

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(draw, 0)
        for number in range(num_steps):
            pixels, labels = ahead.result()
            ahead = pool.submit(draw, min(number + 1, num_steps - 1))
            weights, state, loss = step(weights, state, pixels, labels)
            if number % 100 == 0:
                print(f"step {number}: loss {float(loss):.3f}", flush=True)
    return {name: np.asarray(value, np.float16) for name, value in weights.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--output", type=Path, help="where to write the weights (.npz)")
    parser.add_argument("--num_items", type=int, default=400_000)
    arguments = parser.parse_args()
    started = time.process_time()
    weights = train(arguments.num_items, np.random.default_rng(0))
    print(f"{time.process_time() - started:.0f} s of processor time")
    single = {name: np.asarray(array, np.float32) for name, array in weights.items()}
    pixels, labels = load_items(shapes.ShapeSource("test", NUM_TEST), 0, NUM_TEST)
    right = {k: v == labels[k] for k, v in reader.read(single, pixels).items()}
    for head, values in right.items():
        print(f"held-out accuracy of {head} {values.mean():.4f}")
    print(f"all words {np.all(list(right.values()), axis=0).mean():.4f}")
    print(f"sha256 {tensors_sha256(weights)}")
    if arguments.output is not None:
        np.savez(arguments.output, **weights)
        print(f"wrote {arguments.output}, {arguments.output.stat().st_size} bytes")


if __name__ == "__main__":
    main()
