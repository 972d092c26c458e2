"""A look at a prepared dataset: a grid of items and a histogram per channel."""

from __future__ import annotations

import math
import os
import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from scm_jax.datasets import pipeline, prepared_sounds
from scm_jax.datasets.preparation import manifest
from scm_jax.datasets.preparation.sums import PIXELS
from scm_jax.files.optional import require
from scm_jax.types import lookup

COLUMNS = 10
NAME_LETTERS = 14
INK, MUTED, LINE = "#1b1f24", "#59636e", "#d1d9e0"
CHANNELS = {
    1: ("grey",),
    3: ("red", "green", "blue"),
    8: (*(f"mean {k}" for k in range(4)), *(f"std {k}" for k in range(4))),
}
COLOURS = ("#cf222e", "#1a7f37", "#0969da", "#8250df")


def inspect(
    folder: Path, split: str, out: str | os.PathLike[str], num: int = 60
) -> dict[str, Any]:
    """Writes a page on a prepared split.

    It shows items at equal distances through the split, and histograms of at most 1,000
    such items; mean and standard deviation are those of the manifest, over all items.
    Sounds are shown by their spectrograms and by what a network sees of them.

    Args:
      folder: ``ROOT/NAME/VERSION`` with a manifest.
      split: which split.
      out: PNG file.
      num: how many items the grid has at most.

    Returns:
      The facts on the page: ``count``, ``shape``, ``num_classes``, ``mean``, ``std``,
      and ``captions`` and ``noted`` where there are any.

    Raises:
      FileNotFoundError: there is no manifest.
      ValueError: no such split.
    """
    found = manifest.read(folder)
    facts = lookup(found["splits"], split, f"split of {folder}")
    source = pipeline.read_prepared(folder, split, memory_limit=0)
    values, names = _items(source, found, num)
    sample, _ = _items(source, found, 1000)
    if found["field"] == "sound":
        seen = prepared_sounds.open_front_end(found, split)
        values, sample = seen.to_pixels(seen.to_x(values)), seen.to_x(sample)
        axes = tuple(range(sample.ndim - 1))
        moments = {"mean": sample.mean(axes), "std": sample.std(axes)}
        facts = {**facts, **{key: value.tolist() for key, value in moments.items()}}
        found = {**found, "statistics_of": "what a network sees"}
    figure_module = require("matplotlib.figure", "data inspect", "scm_jax[analysis]")
    rows = math.ceil(len(values) / COLUMNS)
    lines = 0 if names is None else max(name.count("\n") + 1 for name in names)
    heights = [(0.84 + 0.14 * lines) * rows, 2.6]
    size = (9, sum(heights) + 0.9)
    figure = figure_module.Figure(figsize=size, dpi=110, layout="constrained")
    classes = f"{found['num_classes']:,}" if found["num_classes"] else "no"
    shape = "x".join(map(str, found["shape"]))
    what = f"{facts['count']:,} items, {found['dtype']} {shape}, {classes} classes"
    title = f"{found['name']}, {split}: {what}"
    figure.suptitle(title, fontsize=11, color=INK, x=0.01, ha="left")
    top, bottom = figure.subfigures(2, 1, height_ratios=heights)
    _draw_grid(top, rows, _shown(values, found, facts), names)
    _draw_histograms(bottom, sample, found, facts)
    figure.savefig(out, facecolor="white")
    keys = ("count", "mean", "std", "captions", "noted")
    shown = {key: facts[key] for key in keys if key in facts}
    return {**shown, "shape": found["shape"], "num_classes": found["num_classes"]}


def _items(
    source: pipeline.Source, found: dict[str, Any], num: int
) -> tuple[np.ndarray, list[str] | None]:
    """Items at equal distances, and their first captions or classes to show."""
    indices = np.linspace(0, len(source) - 1, min(num, len(source))).astype(np.int64)
    fields = source.gather(indices)
    names = None
    if "caption" in fields:
        said = [text.decode().partition("\n")[0] for text in fields["caption"]]
        names = ["\n".join(textwrap.wrap(c, 18)[:3]) or "(no caption)" for c in said]
    elif "label" in fields:
        classes = [found["class_names"][int(label)] for label in fields["label"]]
        short = NAME_LETTERS - 3
        names = [c if len(c) <= NAME_LETTERS else f"{c[:short]}..." for c in classes]
    return fields[found["field"]], names


def _shown(
    values: np.ndarray, found: dict[str, Any], facts: dict[str, Any]
) -> np.ndarray:
    """uint8 with one or three channels; three of latents, each its mean +- 2.5 std.

    A clip is shown by the frame in its middle.
    """
    if values.ndim == 5:
        values = values[:, values.shape[1] // 2]
    if found["field"] != "latent":  # spectrograms, too
        # Images with a few levels only, such as the digits, use all of the grey scale.
        top = 255 if values.max() > 16 else max(int(values.max()), 1)
        return (values.astype(np.float32) * (255 / top)).astype(np.uint8)
    mean, std = (np.array(facts[key][:3]) for key in ("mean", "std"))
    shown = values[..., :3].astype(np.float64)
    scaled = (shown - mean) / np.maximum(5 * std, 1e-12) + 0.5
    return (255 * np.clip(scaled, 0, 1)).astype(np.uint8)


def _draw_grid(
    figure: Any,
    rows: int,
    images: np.ndarray,
    names: list[str] | None,
) -> None:
    axes = figure.subplots(rows, COLUMNS, squeeze=False)
    for index, axis in enumerate(axes.ravel()):
        axis.set_axis_off()
        if index >= len(images):
            continue
        axis.imshow(images[index], cmap="gray", vmin=0, vmax=255)
        if names is not None:
            size = 5 if "\n" in names[index] else 7
            axis.set_title(names[index], fontsize=size, color=MUTED, pad=2)


def _draw_histograms(
    figure: Any, sample: np.ndarray, found: dict[str, Any], facts: dict[str, Any]
) -> None:
    """One panel per channel, at most eight, in the unit of the statistics."""
    channels = min(sample.shape[-1], 8)
    known = {} if found["field"] == "sound" else CHANNELS
    names = known.get(channels, tuple(f"channel {k}" for k in range(channels)))
    axes = figure.subplots(1 if channels <= 4 else 2, min(channels, 4), squeeze=False)
    image = found["field"] in PIXELS
    figure.supxlabel(found["statistics_of"], fontsize=8, color=MUTED)
    for k, axis in enumerate(axes.ravel()[:channels]):
        values = sample[..., k].ravel().astype(np.float64)
        values = values / 127.5 - 1 if image else values
        mean, std = facts["mean"][k], facts["std"][k]
        colour = MUTED if channels == 1 else COLOURS[k % len(COLOURS)]
        span = (-1, 1) if image else (values.min(), values.max())
        axis.hist(values, bins=64, range=span, density=True, color=colour, alpha=0.75)
        axis.axvline(mean, color=INK, linewidth=1)
        axis.axvspan(mean - std, mean + std, color=LINE, alpha=0.5, zorder=0)
        title = f"{names[k]}: mean {mean:.3f}, std {std:.3f}"
        axis.set_title(title, fontsize=8, color=INK)
        axis.tick_params(labelsize=7, colors=MUTED)
        axis.set_yticks([])
        axis.spines[["top", "right", "left"]].set_visible(False)
