"""What passes between rooms: data types, protocols, registries, checked values."""

from __future__ import annotations

import collections
import dataclasses
import difflib
import importlib
from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol, runtime_checkable

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np


class Registry(collections.UserDict[str, Any]):
    """What a config can name: the things themselves, or where they are defined.

    A string ``module.attribute`` is imported when its entry is first looked up, so that
    one backbone or dataset does not load the others.

    Example:
      >>> Registry(root="math.sqrt", twice=lambda x: 2 * x)["root"](9.0)
      3.0
    """

    def __getitem__(self, name: str) -> Any:
        found = super().__getitem__(name)
        if isinstance(found, str):
            module, _, attribute = found.rpartition(".")
            found = self[name] = getattr(importlib.import_module(module), attribute)
        return found


# A label below zero is the null class: the network's own unconditional embedding.
NULL_LABEL = -1

# Seeds are 32 bits wide: a larger one would be cut and draw what a smaller one draws.
MAX_SEED = 2**32 - 1

# What a sample is asked to be: the fields that ``Batch`` and ``Cond`` share.
CONDITIONS = ("label", "tokens", "context", "context_mask", "pooled")


@flax.struct.dataclass
class Cond:
    """What a network is conditioned on, besides ``x_t / sigma_data``.

    Attributes:
      t: ``(b,)`` float32, TrigFlow time in ``[0, pi/2]``.
      dt: optional ``(b,)`` second time, for flow-map methods.
      label: optional ``(b,)`` int32 class; ``NULL_LABEL`` is the null class.
      guidance: optional ``(b,)`` float32 guidance scale as a network input; 1 means
        unguided.
      tokens: optional ``(b, n)`` int32 caption for the network's own text tower; 0 is
        padding, and a row of zeros is the null caption.
      context: optional ``(b, n, c)`` states of the caption.
      context_mask: ``(b, n)`` bool, true where ``context`` is to be attended to; a row
        without any is the null caption.
      pooled: optional ``(b, p)`` one vector for the whole caption.
      frames: optional ``known_frames`` of a clip, for a network that reads them.
      memory: what ``Network.encode`` computed of the caption, for any number of passes.
      null: what ``Network.encode`` computed of the null condition, for guidance.
    """

    t: jax.Array
    dt: jax.Array | None = None
    label: jax.Array | None = None
    guidance: jax.Array | None = None
    tokens: jax.Array | None = None
    context: jax.Array | None = None
    context_mask: jax.Array | None = None
    pooled: jax.Array | None = None
    frames: jax.Array | None = None
    memory: Any = None
    null: Cond | None = None


@flax.struct.dataclass
class Batch:
    """One training batch; the conditions are those of ``Cond``.

    Attributes:
      x: ``(b, *sample_shape)`` float32, channels last, mean 0 and standard deviation
        ``sigma_data`` over the whole dataset.
      label: optional ``(b,)`` int32 in ``[0, num_classes)``.
    """

    x: jax.Array
    label: jax.Array | None = None
    tokens: jax.Array | None = None
    context: jax.Array | None = None
    context_mask: jax.Array | None = None
    pooled: jax.Array | None = None


def conditions(source: Batch | Cond) -> dict[str, Any]:
    """The fields of ``CONDITIONS`` that ``source`` has, by name."""
    found = ((name, getattr(source, name)) for name in CONDITIONS)
    return {name: value for name, value in found if value is not None}


def without_condition(cond: Cond, drop: jax.Array | None = None) -> Cond:
    """``cond`` with the null class and the null caption.

    Guidance, condition dropout and sampling all mean this by "no condition". A network
    knows what its null caption is: a learned row of its text tower, or the stored
    states of the empty caption.

    Args:
      cond: not encoded yet, see ``Network.encode``.
      drop: ``(b,)`` bool, the examples that lose their condition; all by default.
    """
    null = {"label": NULL_LABEL, "tokens": 0, "context_mask": False}

    def replaced(name: str, a: jax.Array) -> jax.Array:
        if drop is None:
            return jnp.full_like(a, null[name])
        return jnp.where(drop.reshape(-1, *[1] * (a.ndim - 1)), null[name], a)

    found = conditions(cond).items()
    changed: dict[str, Any] = {k: replaced(k, v) for k, v in found if k in null}
    return dataclasses.replace(cond, **changed)


def known_frames(x: jax.Array, number: jax.Array) -> jax.Array:
    """The first ``number`` ``(b,)`` frames of clips ``(b, t, ..., c)``: ``c + 1``.

    The other frames are zero. The last channel is 1 in known frames and 0 elsewhere.
    """
    known = jnp.arange(x.shape[1])[None] < number[:, None]
    mask = known.reshape(*known.shape, *[1] * (x.ndim - 2)).astype(x.dtype)
    mask = jnp.broadcast_to(mask, (*x.shape[:-1], 1))
    return jnp.concatenate([x * mask, mask], axis=-1)


# Ids of tokens: 0 is padding, 1 ends a spelled word, then 256 bytes, then words.
FIRST_BYTE, FIRST_WORD = 2, 258


@dataclasses.dataclass(frozen=True)
class TextInfo:
    """How the captions of a dataset become conditions.

    Attributes:
      length: most tokens of a caption.
      words: vocabulary of the network's text tower; empty for precomputed states.
      spells: any other word is spelled in bytes; without, it is an error.
      width: channels of precomputed states.
      pooled: channels of their pooled vector; 0 for none.
      encoder: name, revision and hash of what computed the states.
      null: states ``(n, width)`` and pooled vector ``(pooled,)`` of the empty caption.
    """

    length: int
    words: tuple[str, ...] = ()
    spells: bool = dataclasses.field(default=True, compare=False, kw_only=True)
    width: int = 0
    pooled: int = 0
    encoder: str = ""
    null: Any = dataclasses.field(default=None, compare=False)

    @property
    def vocab_size(self) -> int:
        """Tokens are below this number; 0 for precomputed states."""
        return FIRST_WORD + len(self.words) if self.words else 0


@dataclasses.dataclass(frozen=True, eq=False)
class Prompts:
    """Texts, and what a network reads of them: fields of ``Cond``, a row per text."""

    texts: tuple[str, ...]
    fields: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Questions:
    """Prompts whose answer can be checked.

    Attributes:
      prompts: what is asked for.
      targets: what a frozen classifier should name on each image, by its heads.
      pixels: uint8 ``(n, h, w, c)`` real images of these prompts.
    """

    prompts: Prompts
    targets: dict[str, np.ndarray]
    pixels: np.ndarray


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """What a dataset declares about itself, before any item is read.

    Attributes:
      name: its key in ``DATASETS``.
      sample_shape: shape of one sample with channels last, such as ``(8, 8, 1)``.
      num_classes: number of labels; 0 for unlabelled data.
      sigma_data: standard deviation of ``Batch.x`` per element.
      num_items: items in the training split; 0 for data that is drawn without end.
      description: one line: what the values are and how they were scaled.
      to_pixels: ``(n, *sample_shape)`` float32 -> ``(n, h, w, c)`` uint8, to look at
        samples; None for data that are no images.
      from_pixels: the inverse of ``to_pixels``, for frames that a clip is told.
      frame_rate: frames per second of clips ``(t, h, w, c)``; 0 for all other data.
      to_sound: ``(n, *sample_shape)`` float32 -> sound ``(n, samples)`` float32 in
        [-1, 1]; None for data that are no sound. ``to_pixels`` gives spectrograms.
      sample_rate: samples of sound per second.
      quantization: the rule of ``to_pixels``, as the protocol of a number quotes it.
      text: how captions become conditions; None for data without captions.
      examples: returns captions to sample where nobody asks for any.
      questions: ``(num, kind)`` -> prompts that can be checked; ``kind`` is ``seen`` or
        ``held_out``, for combinations of words that the training data have or lack.
      whitening: for latents that an autoencoder decodes, returns the constants of their
        scaling and the range of their pixels (``datasets.latents.Whitening``); None
        for all other data.
    """

    name: str
    sample_shape: tuple[int, ...]
    num_classes: int
    sigma_data: float
    num_items: int
    description: str = ""
    to_pixels: Callable[[np.ndarray], np.ndarray] | None = None
    from_pixels: Callable[[np.ndarray], np.ndarray] | None = None
    frame_rate: float = 0.0
    to_sound: Callable[[np.ndarray], np.ndarray] | None = None
    sample_rate: int = 0
    quantization: str = ""
    text: TextInfo | None = None
    examples: Callable[[], Prompts] | None = None
    questions: Callable[[int, str], Questions] | None = None
    whitening: Callable[[], Any] | None = None


@runtime_checkable  # for checks of argument types in tests
class NetFn(Protocol):
    """``F = net_fn(params, x, cond, train=..., key=...)`` with ``x = x_t/sigma_data``.

    ``F`` has the shape of ``x``. ``key`` drives dropout and is needed only when
    ``train`` is true and the network has dropout. ``dtype`` replaces the compute dtype
    of the network, where it has one.
    """

    def __call__(
        self,
        params: Any,
        x: jax.Array,
        cond: Cond,
        *,
        train: bool = False,
        key: jax.Array | None = None,
        dtype: str | None = None,
    ) -> jax.Array: ...


@runtime_checkable
class Placement(Protocol):
    """Where a network's weights and activations lie on a mesh; hashable.

    Networks know no axes of a mesh; ``training.sharding.Placement`` does.
    """

    @property
    def gathers(self) -> bool:
        """Whether weights are stored in pieces that a block must gather."""

    def gather(self, weights: Any, *path: str) -> Any:
        """``weights``, the subtree at ``path``, as they are multiplied by."""

    def batch(self, h: jax.Array, along: int = 0) -> jax.Array:
        """``(b, ...)`` with ``b`` split over the devices, a sequence ``along`` too."""


def check_seed(seed: int, name: str = "seed") -> None:
    """Raises ValueError unless ``0 <= seed <= MAX_SEED``; ``name`` is for the message.

    Example:
      >>> check_seed(-1)
      Traceback (most recent call last):
      ValueError: seed = -1 must be a whole number in 0..4294967295
    """
    whole = isinstance(seed, int | np.integer) and not isinstance(seed, bool)
    if not whole or not 0 <= seed <= MAX_SEED:
        raise ValueError(f"{name} = {seed!r} must be a whole number in 0..{MAX_SEED}")


# EX_TEMPFAIL: everything is saved; the same command continues.
EXIT_PREEMPTED = 75


def num_steps(duration_images: int, batch_size: int) -> int:
    """Optimizer steps of a training: the last batch may go beyond its length.

    Example:
      >>> num_steps(1000, 128)
      8
    """
    return -(-duration_images // batch_size)


def lookup(registry: Mapping[str, Any], name: str, path: str) -> Any:
    """``registry[name]``; see ``check_choice``."""
    check_choice(name, registry, path)
    return registry[name]


def check_choice(value: Any, legal: Collection[str], path: str) -> None:
    """Raises ``ValueError``, listing the legal values, unless ``value`` is one of them.

    ``path`` is the config path that it came from, for the message.
    """
    if value not in legal:
        close = difflib.get_close_matches(str(value), legal, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"{path} = {value!r} is not one of {sorted(legal)}{hint}")
