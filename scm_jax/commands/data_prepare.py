"""What ``data prepare`` does with its flags."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from scm_jax.commands import cli
from scm_jax.files import user_paths
from scm_jax.types import lookup

if TYPE_CHECKING:
    from scm_jax.datasets.preparation.readers.items import Items
    from scm_jax.datasets.preparation.recipes import Recipe

# Flags that fill a recipe where there is no file of one.
_OWN = (
    *("kind", "recipe", "size", "channels", "dtype"),
    *("labels", "label_base", "num_classes"),
)
# Flags about raw files that are no part of a recipe.
_READING = ("label_file", "label_key", "max_pixels")
_CLIPS = ("frames", "stride", "frame_rate")
_SOUNDS = ("sample_rate", "seconds", "front_end", "trim")
_CAPTIONS = ("captions", "caption_file", "caption_key")
_CAPTIONED = ("context_length", "missing_captions")  # what becomes of them


def prepare() -> Path:
    """Prepares what the flags say and returns the folder of the dataset."""
    from scm_jax.datasets.preparation import recipes

    f = flags.FLAGS
    file = None if f.dataset is None else recipes.find(f.dataset)
    if f.dataset is not None and file is None:
        return _run_builder(f.dataset, f.root)
    return _run_recipe(_chosen_recipe(file))


def writing() -> dict[str, Any]:
    """The arguments of ``preparation.prepare`` that are flags."""
    names = {"process_index": "process_id", "process_count": "num_processes"}
    names |= {name: name for name in ("shard_items", "workers", "skip_bad", "fresh")}
    return {name: flags.FLAGS[flag].value for name, flag in names.items()}


def _given(*names: str) -> dict[str, Any]:
    chosen = (flags.FLAGS[name] for name in names)
    return {flag.name: flag.value for flag in chosen if flag.present}


def _run_builder(builder: str, root: str | None) -> Path:
    """Prepares what a tfds builder makes, and measures it."""
    from scm_jax.datasets import storage
    from scm_jax.datasets.preparation import manifest, recipes

    if os.sep not in builder and storage.builders_folder().is_dir():
        known = recipes.names()
        if builder not in known:
            raise cli.UsageError(
                f"no dataset {builder!r} in {storage.builders_folder()}; there are "
                f"{', '.join(known)}. For data of your own: --name=NAME --source=PATH"
            )
    own = ("source", "source_split", "num_items")
    raw = (*_OWN, *_READING, *_CAPTIONS, *_CLIPS, *_SOUNDS, *own)
    given = [name for name in raw if flags.FLAGS[name].present]
    if given:
        raise cli.UsageError(
            f"--{given[0]} has no effect on {builder}, which is a tfds builder"
        )
    folder = storage.prepare(builder, root)
    if not (folder / manifest.FILE).is_file():
        manifest.describe_prepared(folder)
    return folder


def _chosen_recipe(file: Path | None) -> Recipe:
    """The recipe of a file, or of flags; what a file says, flags may not change."""
    from scm_jax.datasets.preparation import recipes

    f = flags.FLAGS
    given: dict[str, Any] = {
        name: f[name].value for name in _OWN if f[name].value is not None
    }
    if file is None:
        cli.required("source")
        if f.variant:
            raise cli.UsageError("--variant goes with --dataset=imagenet64")
        return recipes.Recipe(name=f.name, source=f.source, **given)
    recipe = recipes.read(file, f.variant)
    # dtype and kind do not change what the data are.
    own = {name: given.pop(name) for name in ("dtype", "kind") if name in given}
    fixed = [name for name in given if given[name] != getattr(recipe, name)]
    if fixed:
        raise cli.UsageError(
            f"{file} has {fixed[0]} = {getattr(recipe, fixed[0])!r}; data made "
            "otherwise need a name of their own: --name=NAME --source=PATH"
        )
    if f.source is None and not recipe.source:
        raise cli.UsageError(
            f"missing --source=PATH: the raw data; {file.parent / 'README.md'} says "
            "where they come from"
        )
    return dataclasses.replace(recipe, source=f.source or recipe.source, **own)


def _open_items(recipe: Recipe) -> tuple[Items, dict[str, Any]]:
    """The raw data, and how they were opened."""
    from scm_jax.datasets import front_ends
    from scm_jax.datasets.preparation import recipes
    from scm_jax.datasets.preparation.readers import sources

    f = flags.FLAGS
    if recipe.kind == sources.DRAWN:
        return _draw_items(recipe), {}
    if f.num_items is not None:
        raise cli.UsageError(f"--num_items goes with data that are {sources.DRAWN}")
    path: Any = recipe.source
    if not path.startswith("tfds:"):
        path = user_paths.expand(path).absolute()
    kind = sources.detect_kind(Path(path)) if recipe.kind == "auto" else recipe.kind
    options = recipes.open_options(recipe, kind, f.label_file)
    # Options are a part of what is prepared, so those with a default are left out.
    if f.label_base is not None:
        options["label_base"] = f.label_base
    if f["label_key"].present:
        options["label_key"] = f.label_key
    options |= _given(*_CAPTIONS, *_CLIPS, "trim")
    parts: dict[str, Any] = {"split": f.source_split, "target": f.split}
    if f.sample_rate is not None:
        front_end = front_ends.choose(f.front_end, f.sample_rate, f.seconds)
        parts["front_end"] = front_end
    elif given := _given(*_SOUNDS):
        raise cli.UsageError(f"--{min(given)} needs --sample_rate: it is about sounds")
    if f.max_pixels is not None:
        parts["max_pixels"] = f.max_pixels
    return sources.open_items(path, kind=kind, **parts, **options), options


def _draw_items(recipe: Recipe) -> Items:
    from scm_jax.datasets import shapes
    from scm_jax.datasets.preparation.readers import sources

    f = flags.FLAGS
    number = f.num_items or recipe.items.get(f.split)
    if number is None:
        raise cli.UsageError("missing --num_items: how many items are drawn")
    chosen = ("label_base", "channels", *_READING, *_CAPTIONS, *_CLIPS, *_SOUNDS)
    without = [name for name in chosen if f[name].present]
    if without:
        raise cli.UsageError(f"--{without[0]} has no effect on data that are drawn")
    where = f"source of the kind {sources.DRAWN!r}"
    kinds: dict[str, Any] = {"shapes": {}, "captioned_shapes": shapes.CAPTIONED}
    options = lookup(kinds, recipe.source, where)
    size = recipe.size or shapes.RESOLUTIONS[0]
    return shapes.ShapeSource(f.source_split or f.split, number, size, **options)


def _run_recipe(recipe: Recipe) -> Path:
    from scm_jax.datasets import storage
    from scm_jax.datasets.preparation import prepare
    from scm_jax.datasets.preparation.readers import sources

    f = flags.FLAGS
    items, options = _open_items(recipe)
    print(sources.summarize(items), file=sys.stderr)
    if recipe.num_classes not in (0, len(items.class_names)):
        raise ValueError(
            f"{recipe.source} has {len(items.class_names)} classes, and "
            f"{recipe.name!r} has {recipe.num_classes}"
        )
    published = f.num_items or recipe.items.get(f.split, len(items))
    if published != len(items):
        print(
            f"{recipe.source} holds {len(items):,} items, and {recipe.name!r} has "
            f"{published:,} in the split {f.split!r}: this is a part, or something "
            "else",
            file=sys.stderr,
        )
    return prepare.prepare(
        items,
        storage.data_root(f.root) / recipe.name / f.version,
        split=f.split,
        recipe=recipe.recipe,
        size=recipe.size,
        dtype=recipe.dtype or None,
        labelled=recipe.labels != "none",
        options=options | _given(*_CAPTIONED),
        encoder=recipe.encoder,
        **writing(),
    )
