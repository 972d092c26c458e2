"""What a source of raw data is told, and what it gives to the preparation."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from scm_jax.types import lookup

if TYPE_CHECKING:
    from scm_jax.datasets.front_ends import FrontEnd

# Whether labels, or captions, are read.
LABELS = {"auto": "where there are any", "required": "or an error", "none": "left out"}
NO_SPLIT = "none"  # as a split: folders that look like splits are classes
# Twice the number at which Pillow warns, where it refuses an image.
MAX_PIXELS = 178_956_970


class ItemError(ValueError):
    """One item cannot be used; the message names file and item."""


@contextlib.contextmanager
def damaged(
    what: str, errors: tuple[type[Exception], ...], kind: type[ValueError] = ValueError
) -> Iterator[None]:
    """Turns errors of a library into one that begins with file or item and ``what``."""
    try:
        yield
    except ItemError:
        raise
    except errors as error:
        raise kind(f"{what}: {error}") from error


# Items that are pixels, and their axes before the channels.
AXES = {"image": "h, w", "clip": "t, h, w"}


def check_pixels(field: str, value: np.ndarray, where: str) -> None:
    """Raises ItemError unless the value of a field of ``AXES`` has type and axes."""
    right = value.dtype == np.uint8 and value.shape[-1:] in ((1,), (3,))
    if not right or value.ndim != len(AXES[field].split()) + 1:
        raise ItemError(
            f"{where} is {value.dtype} {value.shape}; {field}s are uint8 "
            f"({AXES[field]}, 1 or 3)"
        )


@dataclasses.dataclass(frozen=True)
class Options:
    """How a source is read; a kind refuses options that it has no use for."""

    # Part of the data (--source_split): a folder such as train around or inside of
    # class folders, or a split of CIFAR-10 or tfds. NO_SPLIT: folders with such names
    # are classes. None: as ``target``.
    split: str | None = None
    # The split that is made of the data, which is read where they have splits. None:
    # all there is (CIFAR-10 and tfds: train).
    target: str | None = None
    labels: str = "auto"  # a key of LABELS
    # Text with a file and its class in each line, for images outside of class folders.
    label_file: str | None = None
    label_base: int = 0  # number of the first class; 1 for the files of ImageNet 64x64
    num_classes: int | None = None  # None for as many as are seen
    label_key: str = "label"  # in the .json of webdataset shards
    captions: str = "auto"  # a key of LABELS
    caption_file: str | None = None  # a table of files and captions
    caption_key: str | None = None  # of captions in JSON and tables; None: the usual
    channels: int = 3  # 3 for RGB, whatever is stored; 1 for grey
    max_pixels: int = MAX_PIXELS  # a file of a few bytes may take all memory
    frames: int = 0  # of a clip; 0 reads images
    stride: int = 1  # every so many frames of a video
    frame_rate: float = 0.0  # to which videos are brought; 0 for their own
    front_end: FrontEnd | None = None  # of sounds, with the rate and length of a clip
    trim: bool = True  # sounds lose their silent ends

    def __post_init__(self):
        lookup(LABELS, self.labels, "labels")
        lookup(LABELS, self.captions, "captions")
        for name in ("label_file", "caption_file"):
            if getattr(self, name) is not None:  # may be a path, and the origin is JSON
                object.__setattr__(self, name, str(getattr(self, name)))
        if self.channels not in (1, 3):
            raise ValueError(f"channels = {self.channels!r} is not one of [1, 3]")
        if self.num_classes is not None and self.num_classes < 1:
            raise ValueError(f"num_classes = {self.num_classes} must be at least 1")
        if self.frames < 0 or self.stride < 1 or self.frame_rate < 0:
            raise ValueError(
                f"frames = {self.frames}, stride = {self.stride}, frame_rate = "
                f"{self.frame_rate}: frames and stride are positive whole numbers"
            )
        if self.frames and self.front_end is not None:
            raise ValueError(
                f"frames = {self.frames} reads videos, sample_rate = "
                f"{self.front_end.rate} sounds: one source is one of them"
            )


class Items(Protocol):
    """Raw items in a fixed order; picklable, so that several processes read them.

    Attributes:
      class_names: names of the classes 0, 1, ... in order; empty for unlabelled data.
      origin: what identifies the raw data, ready for JSON: kind, path, file sizes.
    """

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def origin(self) -> dict[str, Any]: ...

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """Where an item comes from, for messages: ``a.tar: n01440764/1.JPEG``."""
        ...

    def read(self, index: int) -> dict[str, Any]:
        """The stored fields of one item.

        ``image`` uint8 ``(h, w, 3)`` or ``(h, w, 1)``, of any size, ``clip`` with
        frames before these, ``latent`` float32 ``(h, w, c)``, or ``sound`` int16
        ``(samples,)``; with classes also ``label``, a 0-dimensional int64; with
        captions also ``captions``, a tuple of texts that may be empty; and ``noted``, a
        tuple of what was done to the item, each a clause to be counted.

        Raises:
          ItemError: it does not decode, or its label is out of range.
        """
        ...
