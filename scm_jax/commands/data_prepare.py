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


def run_builder(builder: str, root: str | None) -> Path:
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
    raw = (*_OWN, *_READING, "source", "source_split", "num_items")
    given = [name for name in raw if flags.FLAGS[name].present]
    if given:
        raise cli.UsageError(
            f"{builder} is a tfds builder, which decides itself about --{given[0]}"
        )
    folder = storage.prepare(builder, root)
    if not (folder / manifest.FILE).is_file():
        manifest.describe_prepared(folder)
    return folder


def chosen_recipe(file: Path | None) -> Recipe:
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
    fixed = [
        n
        for n in given
        if n not in ("dtype", "kind") and given[n] != getattr(recipe, n)
    ]
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
    own = {name: given[name] for name in ("dtype", "kind") if name in given}
    return dataclasses.replace(recipe, source=f.source or recipe.source, **own)


def _open_items(recipe: Recipe) -> tuple[Items, dict[str, Any]]:
    """The raw data, and how they were opened."""
    from scm_jax.datasets.preparation import recipes
    from scm_jax.datasets.preparation.readers import drawn, sources

    f = flags.FLAGS
    if recipe.kind == drawn.KIND:
        return _draw_items(recipe), {}
    if f.num_items is not None:
        raise cli.UsageError(f"--num_items goes with data that are {drawn.KIND}")
    is_tfds = recipe.source.startswith("tfds:")
    path: Any = recipe.source
    path = path if is_tfds else user_paths.expand(path).absolute()
    kind = recipe.kind
    if kind == "auto":
        kind = sources.detect_kind(Path(path))
    options = recipes.open_options(recipe, kind, f.label_file)
    # Options are a part of what is prepared, so those with a default are left out.
    if f.label_base is not None:
        options["label_base"] = f.label_base
    if f["label_key"].present:
        options["label_key"] = f.label_key
    parts = {"split": f.source_split, "target": f.split}
    if f.max_pixels is not None:
        parts["max_pixels"] = f.max_pixels
    return sources.open_items(path, kind=kind, **parts, **options), options


def _draw_items(recipe: Recipe) -> Items:
    from scm_jax.datasets.preparation.readers import drawn

    f = flags.FLAGS
    number = f.num_items or recipe.items.get(f.split)
    if number is None:
        raise cli.UsageError("missing --num_items: how many items are drawn")
    chosen = ("label_base", "channels", *_READING)
    without = [name for name in chosen if f[name].present]
    if without:
        raise cli.UsageError(f"--{without[0]}: data that are drawn have none to choose")
    part = f.source_split or f.split
    return drawn.open_drawn(recipe.source, part, number, recipe.size)


def run_recipe(recipe: Recipe) -> Path:
    """Prepares what a recipe says, and returns the folder of the dataset."""
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
            f"{published:,} in the split {f.split!r}: this is a part, or another set",
            file=sys.stderr,
        )
    root = storage.data_root(f.root)
    return prepare.prepare(
        items,
        root / recipe.name / f.version,
        split=f.split,
        recipe=recipe.recipe,
        size=recipe.size,
        dtype=recipe.dtype or None,
        shard_items=f.shard_items,
        workers=f.workers,
        process_index=f.process_id,
        process_count=f.num_processes,
        skip_bad=f.skip_bad,
        fresh=f.fresh,
        labelled=recipe.labels != "none",
        options=options,
        encoder=recipe.encoder,
    )
