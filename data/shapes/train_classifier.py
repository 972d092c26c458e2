"""Train the small network in whose features samples of ``shapes`` are measured.

Run: python data/shapes/train_classifier.py
Expect: held-out accuracy of shape 0.7221, of colour 0.9959, of background 0.7092, in
150 seconds of processor time.

60,000 items of another seed than the data set's, so that its training items are as new
to the network as its test items and copies of them earn nothing. Two cycles in batches
of 128, AdamW with warmup and cosine decay, the sum of the cross entropies of three
heads: shape, colour of the shape, kind of background. ``--start PATH`` goes on after
the first cycle with the weights that it has written.

The frozen weights were trained in two parts, the second with ``--start``; the README
beside this file says more.

The result repeats bitwise with the same versions on the same kind of CPU. Elsewhere the
training ends at other weights of the same quality; the frozen file is what counts, and
this script never overwrites it unless told to: ``--output PATH``.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from scm_jax.datasets.shapes import ShapeSource
from scm_jax.evaluation.features import shapes_classifier as classifier
from scm_jax.files.tensors import tensors_sha256

DATA_SEED = 1  # the data set's is 0
NUM_TEST = 10_000
SEED = 0
BATCH_SIZE = 128
WARMUP_STEPS = 50
WEIGHT_DECAY = 0.05


class Cycle(NamedTuple):
    """Items ``first`` up to ``last``, for so many steps."""

    first: int
    last: int
    num_steps: int
    learning_rate: float


CYCLES = (Cycle(0, 40_000, 940, 2e-3), Cycle(40_000, 60_000, 620, 1e-3))

Labels = dict[str, np.ndarray]


def load_items(source: ShapeSource, first: int, last: int) -> tuple[np.ndarray, Labels]:
    """Pixels of some items of a source, and what the heads are to name."""
    indices = np.arange(first, last)
    seen = source.attributes(indices)
    labels = {name: getattr(seen, name) for name in classifier.HEADS}
    return source.gather(indices)["image"], labels


def init_weights(rng: np.random.Generator) -> dict[str, jax.Array]:
    """He initialization (arXiv 1502.01852); heads and biases start at zero."""
    weights = {}
    for name, shape in classifier.WEIGHT_SHAPES.items():
        layer, part = name.split("_")
        zero = part == "bias" or layer in classifier.HEADS
        scale = 0.0 if zero else np.sqrt(2 / np.prod(shape[:-1]))
        weights[name] = jnp.asarray(scale * rng.standard_normal(shape), jnp.float32)
    return weights


def batches(
    num_items: int, num_steps: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Rows of so many batches, without replacement inside an epoch."""
    order = np.empty(0, np.int64)
    for _ in range(num_steps):
        if len(order) < BATCH_SIZE:
            order = rng.permutation(num_items)
        rows, order = order[:BATCH_SIZE], order[BATCH_SIZE:]
        yield rows


def loss_fn(
    weights: dict[str, jax.Array], pixels: jax.Array, labels: dict[str, jax.Array]
) -> jax.Array:
    """Sum over the heads of the mean cross entropy."""
    features = classifier.apply(weights, pixels)
    losses = [
        optax.softmax_cross_entropy_with_integer_labels(
            classifier.logits(weights, features, head), labels[head]
        ).mean()
        for head in classifier.HEADS
    ]
    return jnp.stack(losses).sum()


def train(
    pixels: np.ndarray,
    labels: Labels,
    cycle: Cycle,
    rng: np.random.Generator,
    weights: classifier.Weights | None = None,
) -> dict[str, np.ndarray]:
    """Weights after a cycle on the given images, as float16; ``weights`` start it."""
    if weights is None:
        weights = init_weights(rng)
    weights = {name: jnp.asarray(value, jnp.float32) for name, value in weights.items()}
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, cycle.learning_rate, WARMUP_STEPS, cycle.num_steps
    )
    optimizer = optax.adamw(schedule, b2=0.99, weight_decay=WEIGHT_DECAY)

    @jax.jit
    def step(weights, state, pixels, labels):
        loss, gradient = jax.value_and_grad(loss_fn)(weights, pixels, labels)
        updates, state = optimizer.update(gradient, state, weights)
        return optax.apply_updates(weights, updates), state, loss

    state = optimizer.init(weights)
    for number, rows in enumerate(batches(len(pixels), cycle.num_steps, rng)):
        batch = {name: values[rows] for name, values in labels.items()}
        weights, state, loss = step(weights, state, pixels[rows], batch)
        if number % 100 == 0:
            print(f"step {number}: loss {float(loss):.3f}", flush=True)
    return {name: np.asarray(value, np.float16) for name, value in weights.items()}


def accuracy(
    weights: classifier.Weights, pixels: np.ndarray, labels: Labels
) -> dict[str, float]:
    """Share of images that each head names correctly."""
    single = {name: np.asarray(array, np.float32) for name, array in weights.items()}
    features = classifier.features(single, pixels)
    return {
        head: float(
            (
                classifier.logits(single, features, head).argmax(-1) == labels[head]
            ).mean()
        )
        for head in classifier.HEADS
    }


def save(weights: dict[str, np.ndarray], output: Path) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    np.savez(output, **weights)
    print(f"wrote {output}, {output.stat().st_size} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--output", type=Path, help="where to write the weights (.npz)")
    parser.add_argument("--start", type=Path, help="weights after the first cycle")
    arguments = parser.parse_args()
    held_out = load_items(ShapeSource("test", NUM_TEST), 0, NUM_TEST)
    weights = None if arguments.start is None else dict(np.load(arguments.start))
    for number in range(0 if weights is None else 1, len(CYCLES)):
        cycle = CYCLES[number]
        source = ShapeSource("train", cycle.last, seed=DATA_SEED)
        items = load_items(source, cycle.first, cycle.last)
        rng = np.random.default_rng(SEED + number)
        weights = train(*items, cycle, rng, weights)
        print(f"cycle {number}: sha256 {tensors_sha256(weights)}")
        for head, share in accuracy(weights, *held_out).items():
            print(f"held-out accuracy of {head} {share:.4f}", flush=True)
        if arguments.output is not None:
            save(weights, arguments.output)


if __name__ == "__main__":
    main()
