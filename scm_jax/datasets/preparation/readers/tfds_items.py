"""Items of a dataset that tfds has prepared in array records, without TensorFlow."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import json
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np

from scm_jax.datasets import storage
from scm_jax.datasets.preparation.readers.decode import to_channels
from scm_jax.datasets.preparation.readers.items import (
    AXES,
    ItemError,
    Options,
    check_pixels,
    damaged,
)
from scm_jax.types import lookup

PREFIX = "tfds:"


@dataclasses.dataclass(frozen=True, eq=False)
class TfdsItems:
    """Items of a prepared tfds dataset; see ``Items`` for the methods."""

    folder: str  # the prepared version
    split: str  # a tfds split, slices included
    num_items: int
    feature: str  # a key of ``AXES``, or ``latent``
    class_names: tuple[str, ...]
    origin: dict[str, Any]
    options: Options  # ``channels`` and ``label_base`` count

    def __len__(self) -> int:
        return self.num_items

    def name(self, index: int) -> str:
        return f"{self.folder}: {self.split}: item {index}"

    def read(self, index: int) -> dict[str, Any]:
        with _OPENING:
            records = _open_records(self.folder, self.split, os.getpid())
        errors = (ValueError, OSError, RuntimeError)
        with damaged(f"{self.name(index)}: cannot be read", errors, ItemError):
            item = records[index]
        value = np.asarray(item[self.feature])
        if self.feature == "latent":
            fields: dict[str, Any] = {"latent": value}
        else:
            check_pixels(self.feature, value, self.name(index))
            channels = self.options.channels
            frames = value.reshape(-1, *value.shape[-3:])
            shown = np.stack([to_channels(frame, channels) for frame in frames])
            fields = {self.feature: shown.reshape(*value.shape[:-1], channels)}
        if self.class_names:
            label = int(item["label"]) - self.options.label_base
            fields["label"] = np.array(label, np.int64)
        text = item.get("caption")  # as `data prepare` stores them, or one of others
        if isinstance(text, bytes) and self.options.captions != "none":
            fields["captions"] = tuple(c for c in text.decode().split("\n") if c)
        return fields


_OPENING = threading.Lock()


# By process: what a forked child inherits of another's reader is of no use to it.
@functools.lru_cache(maxsize=8)
def _open_records(folder: str, split: str, process: int) -> Any:
    import tensorflow_datasets as tfds

    return tfds.builder_from_directory(folder).as_data_source(split=split)


def read_tfds(path: Path, options: Options) -> TfdsItems:
    """A dataset that tfds has prepared: its folder, or ``tfds:NAME``.

    A name may hold a config (``tfds:imagenet_resized/64x64``) and is looked for in
    ``$SCM_JAX_DATA``, in ``$TFDS_DATA_DIR`` and in ``~/tensorflow_datasets``, the
    newest version first. Nothing is downloaded.

    Raises:
      FileNotFoundError: it is not prepared; the message has the command that does it.
      ValueError: it is prepared in a format without random access, or has no images.
    """
    import tensorflow_datasets as tfds

    folder = _find_prepared(str(path))
    builder = tfds.builder_from_directory(folder)
    split = options.split or options.target or "train"
    lookup(dict(builder.info.splits), split.split("[", 1)[0], "--source_split")
    file_format = builder.info.file_format
    if file_format is None or file_format.value != "array_record":
        raise ValueError(
            f"{folder}: is prepared as {getattr(file_format, 'value', None)}, which "
            f"has no random access. {_how_to_prepare(builder.info.full_name)}"
        )
    features = builder.info.features
    names = [name for name in (*AXES, "latent") if name in features]
    if not names:
        raise ValueError(
            f"{folder}: has no feature 'image', 'clip' or 'latent'; its features are "
            f"{', '.join(features)}"
        )
    rate = None  # of clips that `data prepare` made
    with contextlib.suppress(FileNotFoundError):
        rate = json.loads((folder / "manifest.json").read_text()).get("frame_rate")
    label = features["label"] if "label" in features else None
    class_names = _class_names(label, str(folder), options)
    return TfdsItems(
        folder=str(folder),
        split=split,
        num_items=builder.info.splits[split].num_examples,
        feature=names[0],
        class_names=class_names,
        origin={
            **({"frame_rate": rate} if rate is not None else {}),
            "kind": "tfds",
            "path": str(path),
            "folder": str(folder),
            "name": builder.info.full_name,
            "split": split,
            "num_bytes": int(builder.info.splits[split].num_bytes),
        },
        options=options,
    )


def _class_names(feature: Any, where: str, options: Options) -> tuple[str, ...]:
    if options.labels == "none":
        return ()
    if feature is None and options.labels == "required":
        raise ValueError(f"{where}: has no feature 'label', and labels are required")
    if feature is None:
        return ()
    if names := getattr(feature, "names", None):
        return tuple(names)
    number = options.num_classes or getattr(feature, "num_classes", None)
    if not number:
        raise ValueError(f"{where}: has no number of classes; give num_classes")
    return tuple(map(str, range(number)))


def _find_prepared(path: str) -> Path:
    """The folder of one prepared version, for ``tfds:NAME`` or a folder above it."""
    if not path.startswith(PREFIX):
        if (Path(path) / "dataset_info.json").is_file():
            return Path(path)
        return storage.prepared_folder(Path(path).name, Path(path).parent)
    name = path.removeprefix(PREFIX).strip("/")
    roots = []
    for given in (None, os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"):
        with contextlib.suppress(ValueError):  # no home directory
            roots.append(storage.data_root(given))
    for root in roots:
        with contextlib.suppress(FileNotFoundError):
            return storage.prepared_folder(name, root)
    raise FileNotFoundError(
        f"{path}: tfds has prepared no dataset {name!r} in any of "
        f"{', '.join(map(str, roots))}. {_how_to_prepare(name)}"
    )


def _how_to_prepare(name: str) -> str:
    missing = (
        " This needs TensorFlow, which is not installed here: `pip install "
        "'scm_jax[tf]'`."
    )
    return (
        f"Prepare it with `tfds build {name} --file_format=array_record`, which "
        "downloads what its card names."
        + ("" if importlib.util.find_spec("tensorflow") else missing)
    )
