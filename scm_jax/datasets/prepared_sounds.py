"""Sounds that were prepared, as the front end of their manifest sees them."""

from __future__ import annotations

import functools
import os
from typing import Any

from scm_jax.datasets import front_ends, images, pipeline, storage
from scm_jax.datasets.captioned import with_captions
from scm_jax.datasets.prepared_images import find_split
from scm_jax.types import DatasetInfo


def make_sounds(
    split: str = "train",
    *,
    root: str | os.PathLike[str] | None = None,
    prepared: str = "",
    conditional: bool = True,
    captioned: bool = False,
    states: str = "",
) -> pipeline.LazyDataset:
    """Sounds that ``data prepare --sample_rate`` made under some name.

    Each bin has mean 0 and standard deviation 0.5, by the moments of the prepared split
    ``train`` (of the given one where there is no ``train``). For arguments and errors
    see ``prepared_images.make_images``.
    """
    root = storage.data_root(root)
    manifest, base, counts = find_split(prepared, split, root, "sound")
    seen = open_front_end(manifest, base)
    front_end = seen.front_end
    info = DatasetInfo(
        name=prepared,
        sample_shape=front_end.shape,
        num_classes=manifest["num_classes"] if conditional else 0,
        sigma_data=front_ends.SIGMA_DATA,
        num_items=0,
        description=f"{prepared}: {front_end.kind} at {front_end.rate} Hz, each bin "
        f"with standard deviation {front_ends.SIGMA_DATA}",
        to_pixels=seen.to_pixels,
        to_sound=seen.to_sound,
        sample_rate=front_end.rate,
        quantization="sound, 16 bits",
    )
    build: Any = functools.partial(_dataset, seen)
    wanted = (root, base), captioned, states
    info, build, beside = with_captions(info, build, manifest, *wanted)
    return images.make_prepared(
        info, split, counts, root, build, field="sound", beside=beside
    )


def open_front_end(manifest: dict[str, Any], split: str) -> front_ends.Whitened:
    """The front end of a manifest, with the moments of ``train``, or of ``split``."""
    part = manifest["splits"].get("train", manifest["splits"][split])
    found = front_ends.from_settings(manifest["front_end"])
    return front_ends.whitened(found, part["mean"], part["std"])


def _dataset(
    seen: front_ends.Whitened, info: DatasetInfo, source: pipeline.Source
) -> pipeline.FiniteDataset:
    def see(fields: pipeline.Fields) -> pipeline.Fields:
        sound = images.stored(fields, "sound", ("int16",), info.name)
        others = {name: values for name, values in fields.items() if name != "sound"}
        return {**others, "x": seen.to_x(sound)}

    def decode(fields: pipeline.Fields) -> tuple[Any, Any]:
        label = images.stored_label(fields, info.name) if info.num_classes else None
        return fields["x"], label

    found = pipeline.kept_in_memory(pipeline.ChangedSource(source, see))
    return pipeline.FiniteDataset(info, found, decode)
