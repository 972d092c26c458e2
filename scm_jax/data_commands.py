"""The commands ``data ...``: from raw files to prepared data, and looks at these."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from scm_jax import cli, user_paths

if TYPE_CHECKING:
    from scm_jax.preparation.items import Items
    from scm_jax.preparation.recipes import Recipe

# Flags that fill a recipe where there is no file of one.
_OWN = (
    *("kind", "recipe", "size", "channels", "dtype"),
    *("labels", "label_base", "num_classes"),
)


def _flag_dataset(what: str) -> None:
    flags.DEFINE_string("dataset", None, what)
    flags.DEFINE_string(
        "root", None, "Folder of prepared data; default is $SCM_JAX_DATA or the cache."
    )


def _flags_of_recipe() -> None:
    flags.DEFINE_string(
        "kind",
        None,
        "What the source is: folder, zip, tar, webdataset, edm, npz, cifar10, tfds, "
        "drawn; default: recognized.",
    )
    flags.DEFINE_string(
        "recipe",
        None,
        "How images get their size: center_crop_dhariwal, center_crop_bicubic, box; "
        "default: they have it.",
    )
    cli.integer("size", None, "Side of the images in pixels.", lower_bound=1)
    flags.DEFINE_enum(
        "dtype", None, ["float32", "float16"], "Of stored latents; default float32."
    )
    flags.DEFINE_enum(
        "labels",
        None,
        ["auto", "required", "none"],
        "Whether classes are stored; default: where there are any.",
    )
    cli.integer("label_base", None, "Number of the first class in the source.")
    cli.integer("num_classes", None, "How many classes there must be.")
    cli.integer("channels", None, "3 for RGB (default), 1 for grey.")


def _flags_of_processes() -> None:
    cli.integer(
        "num_processes",
        1,
        "How many such commands run, where there are several.",
        lower_bound=1,
    )
    cli.integer("process_id", 0, "Which of them this is, from 0.", lower_bound=0)


def _flags_of_writing() -> None:
    cli.integer("workers", 1, "Processes that this command starts.", lower_bound=1)
    _flags_of_processes()
    cli.integer(
        "shard_items",
        0,
        "Items in a shard; default: at most 4,096 and 256 MiB.",
        lower_bound=0,
    )
    cli.integer("skip_bad", 0, "Leave out up to so many bad items.", lower_bound=0)
    flags.DEFINE_bool(
        "fresh",
        False,
        "Forget what an unfinished command has made; not with --num_processes.",
    )


@cli.command("data prepare", "Raw files to a prepared dataset; goes on after a kill.")
def _prepare() -> int:
    _flag_dataset("Recipe or builder: a folder of data/, or a path.")
    flags.DEFINE_string("name", None, "Name of the dataset, instead of --dataset.")
    flags.DEFINE_string("source", None, "The raw data: a file, folder or tfds:NAME.")
    flags.DEFINE_string("split", "train", "Name of the split that is prepared.")
    cli.integer(
        "num_items",
        None,
        "How many items of a source that is drawn, such as shapes.",
        lower_bound=1,
    )
    flags.DEFINE_string(
        "source_split", None, "Part of the source, where it has several."
    )
    flags.DEFINE_string(
        "label_file", None, "Text with an image and its class in each line."
    )
    flags.DEFINE_string("variant", "", "Of imagenet64: edm2, resized or downsampled.")
    flags.DEFINE_string("version", "1.0.0", "Of the prepared dataset.")
    _flags_of_recipe()
    _flags_of_writing()
    cli.parse()
    f = flags.FLAGS
    if (f.dataset is None) == (f.name is None):
        raise cli.UsageError(
            "either --dataset=NAME or, for data of your own, --name=NAME --source=PATH"
        )
    from scm_jax.preparation import recipes

    file = None if f.dataset is None else recipes.find(f.dataset)
    if f.dataset is not None and file is None:
        print(_run_builder(f.dataset, f.root))
        return 0
    print(_run_recipe(_chosen_recipe(file)))
    return 0


def _run_builder(builder: str, root: str | None) -> Path:
    """Prepares what a tfds builder makes, and measures it."""
    from scm_jax.datasets import storage
    from scm_jax.preparation import manifest, recipes

    if os.sep not in builder and storage.builders_folder().is_dir():
        known = recipes.names()
        if builder not in known:
            raise cli.UsageError(
                f"no dataset {builder!r} in {storage.builders_folder()}; there are "
                f"{', '.join(known)}. For data of your own: --name=NAME --source=PATH"
            )
    given = [
        name for name in (*_OWN, "source", "num_items") if flags.FLAGS[name].present
    ]
    if given:
        raise cli.UsageError(
            f"{builder} is a tfds builder, which decides itself about --{given[0]}"
        )
    folder = storage.prepare(builder, root)
    if not (folder / manifest.FILE).is_file():
        manifest.describe_prepared(folder)
    return folder


def _chosen_recipe(file: Path | None) -> Recipe:
    """The recipe of a file, or of flags; what a file says, flags may not change."""
    from scm_jax.preparation import recipes

    f = flags.FLAGS
    given = {name: f[name].value for name in _OWN if f[name].value is not None}
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
    from scm_jax.preparation import drawn, recipes, sources

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
    split = f.source_split or _source_split(kind, path, f.split)
    return sources.open_items(path, kind=kind, split=split, **options), options


def _draw_items(recipe: Recipe) -> Items:
    from scm_jax.preparation import drawn

    f = flags.FLAGS
    number = f.num_items or recipe.items.get(f.split)
    if number is None:
        raise cli.UsageError("missing --num_items: how many items are drawn")
    without = [n for n in ("label_file", "label_base", "channels") if f[n].present]
    if without:
        raise cli.UsageError(f"--{without[0]}: data that are drawn have none to choose")
    part = f.source_split or f.split
    return drawn.open_drawn(recipe.source, part, number, recipe.size)


def _run_recipe(recipe: Recipe) -> Path:
    from scm_jax.datasets import storage
    from scm_jax.preparation import prepare

    f = flags.FLAGS
    items, options = _open_items(recipe)
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


def _source_split(kind: str, path: Any, split: str) -> str | None:
    """The part of the source that a split is made from, where the source has parts."""
    from scm_jax.preparation import file_items

    if kind in ("cifar10", "tfds"):
        return split
    if kind == "folder":
        folders = file_items.SPLITS.get(split, ())
        return split if any((path / name).is_dir() for name in folders) else None
    batches = kind == "npz" and path.is_dir()
    return split if batches else None


@cli.command("data encode", "Prepared images to latents of an autoencoder.")
def _encode() -> int:
    _flag_dataset("Prepared images: a name, or the path of their folder.")
    flags.DEFINE_string("out_name", None, "Name of the dataset of latents.")
    flags.DEFINE_string("vae", "", "Weights; default: where published ones are kept.")
    flags.DEFINE_enum(
        "pixel_range",
        "pm1",
        ["pm1", "unit"],
        "Pixels enter in [-1,1], as the autoencoder was trained, or [0,1], as EDM2's.",
    )
    flags.DEFINE_bool("flips", False, "Store the latents of mirrored images, too.")
    flags.DEFINE_string("split", "train", "Which split.")
    flags.DEFINE_string("version", "1.0.0", "Of the dataset of latents.")
    flags.DEFINE_enum("dtype", "float32", ["float32", "float16"], "Of stored latents.")
    flags.DEFINE_enum(
        "compute_dtype", "float32", ["float32", "bfloat16"], "Of the autoencoder."
    )
    cli.integer(
        "batch_size", 0, "Images at a time; default: 8 on each device.", lower_bound=0
    )
    _flags_of_writing()
    cli.parse()
    cli.required("dataset", "out_name")
    from scm_jax import compile_cache, encoding
    from scm_jax.datasets import storage
    from scm_jax.preparation import encode, sources

    f = flags.FLAGS
    if f.workers != 1:
        raise cli.UsageError(
            "--workers: one process has all devices of a machine; start more commands "
            "with --num_processes and --process_id where there are more machines"
        )
    images = sources.open_items(_folder(), kind="tfds", split=f.split)
    compile_cache.enable()
    encoder = encoding.make_encoder(
        f.vae, f.pixel_range, batch_size=f.batch_size, dtype=f.compute_dtype
    )
    root = storage.data_root(f.root)
    folder = encode.encode_dataset(
        images,
        encoder,
        root / f.out_name / f.version,
        flips=f.flips,
        split=f.split,
        dtype=f.dtype,
        shard_items=f.shard_items,
        process_index=f.process_id,
        process_count=f.num_processes,
        skip_bad=f.skip_bad,
        fresh=f.fresh,
    )
    print(folder)
    return 0


@cli.command("data stats", "Reference statistics of a dataset in pretrained features.")
def _stats() -> int:
    _flag_dataset("Name of a dataset, or of one that was prepared.")
    flags.DEFINE_string("split", "train", "Which split.")
    flags.DEFINE_list("features", ["inception"], "Networks: inception, dinov2.")
    flags.DEFINE_string("weights", "", "File of the network, where it is one.")
    flags.DEFINE_string("out", None, "File; default: where evaluate looks for it.")
    flags.DEFINE_string("convert", None, "Instead: write this published file as --out.")
    _flags_of_processes()
    cli.parse()
    from scm_jax import compile_cache, reference_stats
    from scm_jax.evaluation import pretrained, references

    f = flags.FLAGS
    if f.convert:
        cli.required("out")
        references.convert_reference(f.convert, f.out)
        print(f.out)
        return 0
    cli.required("dataset")
    if len(f.features) > 1 and (f.weights or f.out):
        raise cli.UsageError("--weights and --out go with one of --features")
    compile_cache.enable()
    dataset = reference_stats.open_dataset(f.dataset, f.split, f.root)
    for name in f.features:
        net = pretrained.load_net(name, f.weights)
        path = Path(f.out or reference_stats.default_path(dataset, net, f.root))
        if reference_stats.measure(dataset, net, path, f.process_id, f.num_processes):
            print(path)
        else:
            print(f"{path} appears when the other processes have measured their parts")
    return 0


# --- looks at prepared data -----------------------------------------------------------


def _folder() -> Path:
    """The prepared folder that ``--dataset`` means: by name, or by path."""
    from scm_jax.datasets import storage

    cli.required("dataset")
    dataset = flags.FLAGS.dataset
    if os.sep in dataset:
        return user_paths.expand(dataset)
    return storage.prepared_folder(dataset, flags.FLAGS.root)


@cli.command("data inspect", "A PNG page: a grid of items and a histogram per channel.")
def _inspect() -> int:
    _flag_dataset("Name of a prepared dataset, or the path of its folder.")
    flags.DEFINE_string("split", "train", "Which split.")
    flags.DEFINE_string("out", "page.png", "The page.")
    cli.integer("num", 60, "How many items the grid has.", lower_bound=1)
    cli.parse()
    from scm_jax.preparation import inspection

    f = flags.FLAGS
    print(json.dumps(inspection.inspect(_folder(), f.split, f.out, f.num)))
    print(f"page: {f.out}")
    return 0


@cli.command("data verify", "Checks shards and items; exit code 1 if one is broken.")
def _verify() -> int:
    _flag_dataset("Name of a prepared dataset, or the path of its folder.")
    flags.DEFINE_string("split", None, "One split only; default: all.")
    flags.DEFINE_bool("quick", False, "Sizes and hashes only; decode nothing.")
    cli.parse()
    from scm_jax.preparation import manifest, progress, verify

    f = flags.FLAGS
    folder = _folder()
    splits = manifest.read(folder)["splits"]
    chosen = [s for name, s in splits.items() if f.split in (None, name)]
    total = sum(split["count"] for split in chosen)
    say = progress.Progress(f"verify {folder.parent.name}", total)
    done = 0

    def on_shard(items: int) -> None:
        nonlocal done
        done += items
        say.at(done)

    broken = 0
    for problem in verify.verify(folder, f.split, quick=f.quick, on_shard=on_shard):
        broken += 1
        print(problem, flush=True)
    num_shards = sum(len(split["shards"]) for split in chosen)
    checked = "hashes of" if f.quick else "all of"
    print(
        f"{folder}: {checked} {total:,} items in {num_shards:,} shards: "
        + (f"{broken} problems" if broken else "whole")
    )
    return 1 if broken else 0
