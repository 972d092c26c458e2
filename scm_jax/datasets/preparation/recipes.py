"""``data/NAME/recipe.toml``: how raw files become a dataset with a given name."""

from __future__ import annotations

import dataclasses
import os
import tomllib
from pathlib import Path
from typing import Any

from scm_jax.datasets import storage
from scm_jax.datasets.imagenet64_variants import IMAGENET64_VARIANTS
from scm_jax.datasets.preparation.readers import sources
from scm_jax.datasets.preparation.readers.items import damaged
from scm_jax.files import user_paths
from scm_jax.types import lookup

FILE = "recipe.toml"


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What ``data prepare`` does with raw files; data/README.md lists the keys."""

    name: str
    source: str = ""  # relative to the file; what is drawn with the kind ``drawn``
    kind: str = "auto"  # or a key of SOURCES, or ``drawn``
    recipe: str = "none"  # a key of RECIPES
    size: int = 0  # side of the images in pixels; 0 for as they are
    dtype: str = ""  # of stored latents
    labels: str = "auto"
    label_base: int = 0
    num_classes: int = 0  # 0 for as many as there are
    channels: int = 3
    encoder: dict[str, str] = dataclasses.field(default_factory=dict)
    # Published number of items in each split; another one is a warning.
    items: dict[str, int] = dataclasses.field(default_factory=dict)


def find(dataset: str) -> Path | None:
    """The recipe file of a dataset: by its name or folder in ``data/``, or by path."""
    if os.sep in dataset:
        path = user_paths.expand(dataset)
        file = path if path.suffix == ".toml" else path / FILE
        return file if file.is_file() else None
    for file in sorted(storage.builders_folder().glob(f"*/{FILE}")):
        if dataset in (file.parent.name, read(file).name):
            return file
    return None


def names() -> list[str]:
    """Datasets of the checkout that ``data prepare --dataset`` knows."""
    folder = storage.builders_folder()
    builders = [file.parent.name for file in folder.glob("*/*_dataset_builder.py")]
    return sorted(builders + [read(file).name for file in folder.glob(f"*/{FILE}")])


def read(file: Path, variant: str = "") -> Recipe:
    """Reads a TOML file whose keys are the attributes of ``Recipe``.

    ``variant`` is a key of ``IMAGENET64_VARIANTS``; empty for the first.

    Raises:
      ValueError: not such a file, or no such variant; the message has the legal values.
    """
    with damaged(f"{file}", (tomllib.TOMLDecodeError,)):
        values = tomllib.loads(file.read_text())
    defaults = {field.name: field for field in dataclasses.fields(Recipe)}
    for key, value in values.items():
        wanted = str(lookup(defaults, key, f"{file}: key").type).split("[")[0]
        if type(value).__name__ != wanted:
            raise ValueError(f"{file}: {key} = {value!r} must be of the type {wanted}")
    if not values.get("name"):
        raise ValueError(f"{file}: has no name")
    recipe = Recipe(**values)
    is_name = recipe.kind == sources.DRAWN or recipe.source.startswith("tfds:")
    if recipe.source and not is_name:
        source = str((file.parent / user_paths.expand(recipe.source)).resolve())
        recipe = dataclasses.replace(recipe, source=source)
    if recipe.name != "imagenet64":
        if variant:
            raise ValueError(f"variant = {variant!r}: {recipe.name!r} has no variants")
        return recipe
    first = next(iter(IMAGENET64_VARIANTS))
    chosen = lookup(IMAGENET64_VARIANTS, variant or first, "variant")
    return dataclasses.replace(
        recipe,
        name=chosen.folder,
        recipe=chosen.recipe,
        labels="required" if chosen.labelled else "none",
        num_classes=recipe.num_classes if chosen.labelled else 0,
        label_base=chosen.label_base,
    )


def open_options(
    recipe: Recipe, kind: str, label_file: str | None = None
) -> dict[str, Any]:
    """What ``sources.open_items`` is told besides path, kind and split."""
    # tfds counts classes from 0, and folders have names.
    named = kind in ("tfds", "folder", "zip", "tar", "cifar10") and not label_file
    return {
        "labels": recipe.labels,
        "label_file": label_file,
        "label_base": 0 if named else recipe.label_base,
        "num_classes": recipe.num_classes or None,
        "channels": recipe.channels,
    }
