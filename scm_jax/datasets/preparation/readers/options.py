"""What can be said about raw data that the data do not say themselves."""

from __future__ import annotations

import dataclasses

from scm_jax.types import lookup

LABELS = {"auto": "labels where there are any", "required": "", "none": "left out"}
NO_SPLIT = "none"  # as a split: what looks like splits are classes
# Twice the number at which Pillow warns, where it refuses an image.
MAX_PIXELS = 178_956_970
CHANNELS = {3: "red, green, blue", 1: "grey"}


@dataclasses.dataclass(frozen=True)
class Options:
    """How a source is read; what a kind has no use for must stay as it is.

    Attributes:
      split: which part of the data, the command's ``--source_split``: a folder such as
        ``train`` around or inside of class folders, a split of CIFAR-10 or tfds;
        ``NO_SPLIT`` where folders of such names are classes; None for what ``target``
        says.
      target: the split that is made of the data. Where these have splits it is the part
        that is read; None for all there is (CIFAR-10 and tfds: train).
      labels: ``auto`` takes labels where there are any, ``required`` makes it an error
        that there are none, ``none`` leaves them out.
      label_file: text with a file and its class in each line, for images that do not
        lie in class folders (ImageNet's validation images); see
        ``label_files.read_label_file``.
      label_base: the number of the first class: 1 for the original files of
        ImageNet 64x64, which count from 1.
      num_classes: how many classes there are; None takes as many as are seen.
      label_key: the key of the label in the ``.json`` of webdataset shards.
      channels: 3 for RGB, whatever is stored; 1 for grey.
      upright: turn photographs as their EXIF orientation asks. Off: what published
        figures were measured on (ADM, EDM2) was read without.
      max_pixels: larger images are bad items. They may be files of a few bytes that
        take all memory.
    """

    split: str | None = None
    target: str | None = None
    labels: str = "auto"
    label_file: str | None = None
    label_base: int = 0
    num_classes: int | None = None
    label_key: str = "label"
    channels: int = 3
    upright: bool = False
    max_pixels: int = MAX_PIXELS

    def __post_init__(self):
        lookup(LABELS, self.labels, "labels")
        if self.label_file is not None:  # a path may be given, and the origin is JSON
            object.__setattr__(self, "label_file", str(self.label_file))
        if self.channels not in CHANNELS:
            raise ValueError(f"channels = {self.channels!r} is not one of [1, 3]")
        if self.num_classes is not None and self.num_classes < 1:
            raise ValueError(f"num_classes = {self.num_classes} must be at least 1")
