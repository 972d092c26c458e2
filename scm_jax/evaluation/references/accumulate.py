"""Moments and features of many images under a pretrained network.

A large set is measured in parts, each of which is a file until all are there: a killed
measurement goes on, and several processes share it.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import itertools
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.experimental import multihost_utils

from scm_jax.evaluation.features.extraction import FeatureNet, Outputs
from scm_jax.evaluation.metrics.frechet import (
    FeatureStats,
    empty_stats,
    feature_stats,
    merge_stats,
)
from scm_jax.evaluation.references.statistics import Reference, write_reference
from scm_jax.files.state_dict import write_state_dict

# Output of a network -> name of the distance in it, for those with a name of their own.
SPACES = {
    "inception-2015-12-05": {"features": "fid", "spatial": "sfid"},
    "dinov2_vitl14": {"features": "fd_dinov2"},
}
# Items kept for metrics that compare single items; ADM's evaluator keeps as many.
KEPT_FEATURES = 10_000
# Rows that are summed up at a time: merging the moments of a batch costs as much as the
# products of hundreds of rows.
BLOCK = 1024
# Images of a part at least; a part of Inception's moments is a file of 66 MB.
PART_IMAGES, MOST_PARTS = 8192, 32


def spaces_of(net: FeatureNet) -> dict[str, str]:
    """Outputs of a network that distances are measured in, and their names."""
    return SPACES.get(net.name, {"features": f"fd_{net.name}"})


@dataclasses.dataclass(frozen=True)
class Collected:
    """What was kept of the outputs of a network, and how many images they are of."""

    count: int
    stats: dict[str, FeatureStats]
    outputs: dict[str, np.ndarray]


def collect(
    net: FeatureNet,
    images: Iterable[np.ndarray],
    moments: Sequence[str],
    kept: Sequence[str] = (),
    rows: np.ndarray | None = None,
) -> Collected:
    """Moments and, where asked for, rows of some outputs of a network.

    Args:
      net: the network.
      images: batches of uint8 ``(n, h, w, c)``.
      moments: outputs whose mean and covariance are accumulated in float64.
      kept: outputs that are kept.
      rows: numbers of the images whose outputs are kept, rising; None for all.
    """
    stats: dict[str, FeatureStats] = {}
    found: dict[str, list[np.ndarray]] = {name: [] for name in kept}
    count = 0
    for outputs in _in_blocks(net.batches(images)):
        before, count = count, count + len(outputs["features"])
        for name in moments:
            part = feature_stats(outputs[name].reshape(len(outputs[name]), -1))
            seen = stats.get(name, empty_stats(len(part.mean)))
            stats[name] = merge_stats(seen, part)
        for name in kept:
            here: Any = slice(None)
            if rows is not None:
                here = rows[(rows >= before) & (rows < count)] - before
            found[name].append(outputs[name][here])
    outputs = {name: np.concatenate(parts) for name, parts in found.items() if parts}
    return Collected(count, stats, outputs)


def _in_blocks(batches: Iterable[Outputs]) -> Iterator[Outputs]:
    """Joins batches to blocks of ``BLOCK`` rows or more, but for the last."""
    held: list[Outputs] = []
    for batch in batches:
        held.append(batch)
        if sum(len(part["features"]) for part in held) >= BLOCK:
            yield _joined(held)
            held = []
    if held:
        yield _joined(held)


def _joined(parts: Sequence[Outputs]) -> Outputs:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


# --- Processes ------------------------------------------------------------------------


def of_all_processes(part: Collected, widths: Mapping[str, int]) -> Collected:
    """Moments of what all processes collected; all must call it, and get the same.

    ``widths`` has the numbers per image of each output: a process may have no images.
    """
    stats = {
        name: all_processes(part.stats.get(name, empty_stats(width)))
        for name, width in widths.items()
    }
    return Collected(stats["features"].count, stats, {})


def all_processes(stats: FeatureStats) -> FeatureStats:
    """Statistics of the union of all processes' disjoint features, by the same bits.

    A process without features takes part with ``empty_stats``.
    """
    dim = len(stats.mean)
    numbers = [np.array([stats.count]), stats.mean, stats.scatter.ravel()]
    # As pairs of uint32, since JAX would turn float64 to float32.
    bits = np.concatenate(numbers).astype(np.float64).view(np.uint32)
    merged = empty_stats(dim)
    for row in np.ascontiguousarray(all_gather(bits), np.uint32).view(np.float64):
        mean, scatter = row[1 : 1 + dim], row[1 + dim :].reshape(dim, dim)
        merged = merge_stats(merged, FeatureStats(int(row[0]), mean, scatter))
    return merged


def all_gather(bits: np.ndarray) -> np.ndarray:
    """``(k,)`` uint32 of this process -> ``(num_processes, k)``, the same on all."""
    gathered = np.asarray(multihost_utils.process_allgather(bits))
    return gathered.reshape(-1, len(bits))


# --- Parts ----------------------------------------------------------------------------


def part_bounds(num_images: int) -> list[tuple[int, int]]:
    """Equal parts of a set, first and end: what a measurement is cut into.

    Example:
      >>> part_bounds(20_000)
      [(0, 6667), (6667, 13333), (13333, 20000)]
    """
    num = min(MOST_PARTS, -(-num_images // PART_IMAGES))
    edges = [round(i * num_images / num) for i in range(num + 1)]
    return list(itertools.pairwise(edges))


def _merge(parts: Sequence[Collected]) -> Collected:
    """What was collected of disjoint sets, in their order."""
    stats = {
        name: functools.reduce(merge_stats, [part.stats[name] for part in parts])
        for name in parts[0].stats
    }
    outputs = _joined([part.outputs for part in parts])
    return Collected(sum(part.count for part in parts), stats, outputs)


def _save(path: Path, found: Collected) -> None:
    arrays = {"count": np.array(found.count)}
    for name, stats in found.stats.items():
        arrays[f"mean.{name}"], arrays[f"scatter.{name}"] = stats.mean, stats.scatter
    arrays |= {f"output.{name}": rows for name, rows in found.outputs.items()}
    write_state_dict(path, arrays)


def _load(path: Path) -> Collected:
    kinds: dict[str, Any] = collections.defaultdict(dict)
    with np.load(path) as file:
        for entry, array in file.items():
            kind, _, name = entry.partition(".")
            kinds[kind][name] = array
    count = int(kinds["count"][""])
    stats = {
        name: FeatureStats(count, mean, kinds["scatter"][name])
        for name, mean in kinds["mean"].items()
    }
    return Collected(count, stats, kinds["output"])


def measure_reference(
    net: FeatureNet,
    images: Callable[[int, int], Iterable[np.ndarray]],
    num_images: int,
    path: str | os.PathLike,
    dataset: str,
    notes: dict[str, Any] | None = None,
    *,
    process_index: int = 0,
    process_count: int = 1,
) -> bool:
    """Writes the statistics of real images in all feature spaces of a network.

    The parts of a large set lie in a hidden folder beside ``path`` until all are there.

    Args:
      net: the network.
      images: ``(first, end) -> batches`` of uint8 ``(n, h, w, c)``.
      num_images: how many there are; of ``KEPT_FEATURES`` of them, evenly spaced, the
        features themselves are written, too.
      path: the file, ``.npz``; it appears whole or not at all.
      dataset: name of the set.
      notes: further entries of its protocol.
      process_index: which of several such calls this is.
      process_count: how many there are; each measures its own parts.

    Returns:
      Whether the file is there: not if parts of other processes are missing.

    Raises:
      ValueError: another number of images came.
    """
    path = Path(path)
    bounds = part_bounds(num_images)
    identity = f"{net.weights_sha256} {dataset} {num_images} {notes}"
    mark = hashlib.sha256(identity.encode()).hexdigest()[:10]
    folder = path.with_name(f".{path.stem}-{mark}.parts")
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{first}-{end}.npz" for first, end in bounds]
    keep = min(num_images, KEPT_FEATURES)
    rows = np.arange(keep) * num_images // keep
    try:
        for index in range(process_index, len(bounds), process_count):
            if files[index].exists():
                continue
            first, end = bounds[index]
            kept = rows[(rows >= first) & (rows < end)] - first
            part = collect(
                net, images(first, end), [*spaces_of(net)], ["features"], kept
            )
            if part.count != end - first:
                raise ValueError(
                    f"{dataset}: {part.count} images came for the images {first} to "
                    f"{end - 1}: expected {end - first}"
                )
            _save(files[index], part)
        if not all(file.exists() for file in files):
            return path.exists()
        found = _merge([_load(file) for file in files])
    except FileNotFoundError:
        if path.exists():  # another process was faster, and has removed the parts
            return True
        raise
    about = {
        "extractor": net.name,
        "extractor_sha256": net.weights_sha256,
        "resize": net.resize,
    }
    spaces = {}
    for output, name in spaces_of(net).items():
        stats, features = found.stats[output], found.outputs.get(output)
        spaces[name] = Reference(
            stats.mean, stats.covariance, stats.count, features, about
        )
    write_reference(path, spaces, dataset=dataset, notes=notes)
    shutil.rmtree(folder, ignore_errors=True)
    return True
