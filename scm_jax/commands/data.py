"""The commands ``data ...``: from raw files to prepared data, and looks at these."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from absl import flags

from scm_jax.commands import cli, data_prepare
from scm_jax.files import user_paths


def _strings(**helps: str) -> None:
    """Declares flags that take a string and have no default."""
    for name, text in helps.items():
        flags.DEFINE_string(name, None, text)


def _flag_dataset(what: str) -> None:
    root = "Folder of prepared data; default is $SCM_JAX_DATA or the cache."
    _strings(dataset=what, root=root)


def _flags_of_recipe() -> None:
    _strings(
        kind="What the source is: folder, zip, tar, webdataset, edm, npz, cifar10, "
        "tfds, drawn; default: recognized.",
        recipe="How images get their size: center_crop_dhariwal, center_crop_bicubic, "
        "box; default: they have it.",
    )
    cli.integer("size", None, "Side of the images in pixels.", lower_bound=1)
    text = "Type of stored latents; default float32."
    flags.DEFINE_enum("dtype", None, ["float32", "float16"], text)
    text = "Whether classes are stored; default: where there are any."
    flags.DEFINE_enum("labels", None, ["auto", "required", "none"], text)
    cli.integer("label_base", None, "Number of the first class in the source.")
    cli.integer("num_classes", None, "How many classes there must be.")
    cli.integer("channels", None, "3 for RGB (default), 1 for grey.")


def _flags_of_captions() -> None:
    text = "Whether captions are stored; default: where there are any."
    flags.DEFINE_enum("captions", "auto", ["auto", "required", "none"], text)
    _strings(
        caption_file="Table of files and captions: JSON lines, JSON, COCO, CSV or "
        "parquet; default: metadata.jsonl, .csv or .parquet in the source.",
        caption_key="Key or column of the caption in JSON and tables; default: "
        "caption or text.",
    )
    text = "Most tokens of a caption; default: the 99.9th percentile, rounded up."
    cli.integer("context_length", 0, text, lower_bound=0)
    text = "Items without a caption get the null caption, or are an error."
    flags.DEFINE_enum("missing_captions", "null", ["null", "refuse"], text)


def _flags_of_clips() -> None:
    text = "Frames of a clip: the source holds videos, and each gives all that fit."
    cli.integer("frames", None, text, lower_bound=1)
    text = "Take every so many frames of a video; default: each."
    cli.integer("stride", None, text, lower_bound=1)
    text = "Frames per second to which videos are brought; default: all must have one."
    flags.DEFINE_float("frame_rate", None, text, lower_bound=1e-3)


def _flags_of_sounds() -> None:
    text = "Samples per second: the source holds sounds, and each gives one clip."
    cli.integer("sample_rate", None, text, lower_bound=1)
    text = "Length of a clip; rounded so that networks can halve its frames."
    flags.DEFINE_float("seconds", 1.0, text, lower_bound=1e-3)
    text = "How sound is seen: log_mel, complex_stft or waveform, with settings, such "
    text += "as log_mel,bands=64,hop=128."
    flags.DEFINE_string("front_end", "log_mel", text)
    flags.DEFINE_bool("trim", True, "Cut off silence before and after a sound.")


def _flags_of_processes() -> None:
    cli.integer("num_processes", 1, "Number of such commands, if several.", 1)
    cli.integer("process_id", 0, "Which of them this is, from 0.", 0)


def _flags_of_writing() -> None:
    cli.integer("workers", 1, "Processes that this command starts.", 1)
    _flags_of_processes()
    text = "Items in a shard; default: at most 4,096 and 256 MiB."
    cli.integer("shard_items", 0, text, lower_bound=0)
    cli.integer("skip_bad", 0, "Leave out up to so many bad items.", lower_bound=0)
    text = "Forget what an unfinished command has made; not with --num_processes."
    flags.DEFINE_bool("fresh", False, text)


@cli.command("data prepare", "Raw files to a prepared dataset; goes on after a kill.")
def _prepare() -> int:
    _flag_dataset("Recipe or builder: a folder of data/, or a path.")
    _strings(
        name="Name of the dataset, instead of --dataset.",
        source="The raw data: a file, folder or tfds:NAME.",
        source_split="Part of the source, where it has several: a folder such as "
        "train, or none where such folders are classes; default: as --split.",
        label_file="Text with an image and its class in each line.",
    )
    flags.DEFINE_string("split", "train", "Name of the split that is prepared.")
    text = "Key of the class in the .json of webdataset shards."
    flags.DEFINE_string("label_key", "label", text)
    text = "Number of items, where the source is drawn, such as shapes."
    cli.integer("num_items", None, text, lower_bound=1)
    text = "Pixels of the largest image that is read; default 178,956,970."
    cli.integer("max_pixels", None, text, lower_bound=1)
    text = "Variant of imagenet64: edm2, resized or downsampled."
    flags.DEFINE_string("variant", "", text)
    flags.DEFINE_string("version", "1.0.0", "Version of the prepared dataset.")
    _flags_of_recipe()
    _flags_of_captions()
    _flags_of_clips()
    _flags_of_sounds()
    _flags_of_writing()
    cli.parse()
    f = flags.FLAGS
    if (f.dataset is None) == (f.name is None):
        raise cli.UsageError(
            "either --dataset=NAME or, for data of your own, --name=NAME --source=PATH"
        )
    print(data_prepare.prepare())
    return 0


@cli.command("data encode", "Prepared images to latents of an autoencoder.")
def _encode() -> int:
    _flag_dataset("Prepared images: a name, or the path of their folder.")
    flags.DEFINE_string("out_name", None, "Name of the dataset of latents.")
    flags.DEFINE_string("vae", "", "Weights; default: where published ones are kept.")
    text = "Pixels enter in [-1,1], as the autoencoder was trained, or [0,1] (EDM2)."
    flags.DEFINE_enum("pixel_range", "pm1", ["pm1", "unit"], text)
    flags.DEFINE_bool("flips", False, "Store the latents of mirrored images, too.")
    flags.DEFINE_string("split", "train", "Which split.")
    flags.DEFINE_string("version", "1.0.0", "Version of the dataset of latents.")
    text = "Number format of the stored latents."
    flags.DEFINE_enum("dtype", "float32", ["float32", "float16"], text)
    text = "Number format in which the autoencoder computes."
    flags.DEFINE_enum("compute_dtype", "float32", ["float32", "bfloat16"], text)
    text = "Images at a time; default: 8 on each device."
    cli.integer("batch_size", 0, text, lower_bound=0)
    _flags_of_writing()
    cli.parse()
    cli.required("dataset", "out_name")
    from scm_jax.commands import compile_cache
    from scm_jax.datasets import storage
    from scm_jax.datasets.preparation import encode
    from scm_jax.datasets.preparation.readers import sources
    from scm_jax.runs import latents

    f = flags.FLAGS
    if f.workers != 1:
        raise cli.UsageError(
            "--workers: one process uses all devices of a machine; on further machines "
            "run the command with --num_processes and --process_id"
        )
    images = sources.open_items(_folder(), kind="tfds", split=f.split)
    compile_cache.enable()
    encoder = latents.make_encoder(
        f.vae, f.pixel_range, batch_size=f.batch_size, dtype=f.compute_dtype
    )
    target = storage.data_root(f.root) / f.out_name / f.version
    how = {"flips": f.flips, "split": f.split, "dtype": f.dtype}
    how |= data_prepare.writing()
    print(encode.encode_dataset(images, encoder, target, **how))
    return 0


@cli.command("data encode-text", "Captions or prompts to states of a text encoder.")
def _encode_text() -> int:
    _flag_dataset("Prepared data with captions: a name, or the path of their folder.")
    _strings(
        prompts="Instead of a dataset: a file with a prompt in each line.",
        out_name="Name of the states; default: --encoder. With --prompts their folder.",
        encoder="Kind of the encoder: clip, t5, umt5, gemma, or hashed.",
        model="Its weights: a folder or a name, as transformers takes it.",
        revision="Revision of a model that is given by name.",
        layer="Hidden states that are taken: last or a number; default: clip -2.",
        prefix="Instruction that is put before each caption.",
    )
    text = "Most tokens of a caption; default: clip 77, t5 256, umt5 512, gemma 300."
    cli.integer("max_length", 0, text, lower_bound=0)
    flags.DEFINE_enum("dtype", "float16", ["float16", "float32"], "Of stored states.")
    flags.DEFINE_string("split", "train", "Which split.")
    cli.parse()
    from scm_jax.datasets.captioned import STATES
    from scm_jax.datasets.preparation import encode_text, text_encoders

    f = flags.FLAGS
    if (f.prompts is None) == (f.dataset is None) or f.encoder is None:
        raise cli.UsageError(
            "--encoder=KIND and either --dataset=NAME or --prompts=FILE --out_name=DIR"
        )
    names = (field.name for field in dataclasses.fields(text_encoders.Settings))
    given: Any = {name: f[name].value for name in names if f[name].value}
    if f.prompts is not None:
        cli.required("out_name")
        lines = user_paths.expand(f.prompts).read_text("utf-8").splitlines()
        texts, split = [line.strip() for line in lines if line.strip()], "prompts"
        folder = user_paths.expand(f.out_name)
    else:
        texts, split = encode_text.captions_of(_folder(), f.split), f.split
        folder = _folder() / STATES / (f.out_name or f.encoder)
    encoder = text_encoders.make_encoder(f.encoder, text_encoders.Settings(**given))
    print(encode_text.encode(texts, encoder, folder, split))
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
    from scm_jax.commands import compile_cache
    from scm_jax.evaluation import pretrained_quality
    from scm_jax.evaluation.references import statistics
    from scm_jax.runs import reference_stats

    f = flags.FLAGS
    if f.convert:
        cli.required("out")
        statistics.convert_reference(f.convert, f.out)
        print(f.out)
        return 0
    cli.required("dataset")
    if len(f.features) > 1 and (f.weights or f.out):
        raise cli.UsageError("--weights and --out go with one of --features")
    compile_cache.enable()
    dataset = reference_stats.open_dataset(f.dataset, f.split, f.root)
    for name in f.features:
        net = pretrained_quality.load_net(name, f.weights)
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
    from scm_jax.datasets.preparation import inspection

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
    from scm_jax.datasets.preparation import caption_facts, manifest, progress, verify

    f = flags.FLAGS
    folder = _folder()
    found = manifest.read(folder)
    splits = found["splits"]
    chosen = [s for name, s in splits.items() if f.split in (None, name)]
    total = sum(split["count"] for split in chosen)
    say = progress.Progress(f"verify {folder.parent.name}", total)
    broken = 0
    for problem in verify.verify(folder, f.split, quick=f.quick, on_shard=say.add):
        broken += 1
        print(problem, flush=True)
    num_shards = sum(len(split["shards"]) for split in chosen)
    checked = "hashes of" if f.quick else "all of"
    print(
        f"{folder}: {checked} {total:,} items in {num_shards:,} shards: "
        + (f"{broken} problems" if broken else "whole")
    )
    for name in splits:
        for line in (
            caption_facts.summary(found, name) if f.split in (None, name) else ()
        ):
            print(f"split {name!r}: {line}")
    return 1 if broken else 0
