"""The few data types that pass between rooms; see the interfaces in README.md."""

from __future__ import annotations

import collections
import dataclasses
import difflib
import importlib
import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import flax.struct
import jax
import numpy as np


class Registry(collections.UserDict[str, Any]):
    """What a config can name: the things themselves, or where they are defined.

    A place ``module.attribute`` is imported when its entry is first looked up, so that
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


@flax.struct.dataclass
class Cond:
    """What a network is conditioned on, besides ``x_t / sigma_data``.

    Attributes:
      t: ``(b,)`` float32, TrigFlow time in ``[0, pi/2]``.
      dt: optional ``(b,)`` second time, for flow-map methods.
      label: optional ``(b,)`` int32 class; ``NULL_LABEL`` is the null class.
      guidance: optional ``(b,)`` float32 guidance scale as a network input; 1 means
        unguided.
      context: optional ``(b, n, c)`` token context, for text.
    """

    t: jax.Array
    dt: jax.Array | None = None
    label: jax.Array | None = None
    guidance: jax.Array | None = None
    context: jax.Array | None = None


@flax.struct.dataclass
class Batch:
    """One training batch.

    Attributes:
      x: ``(b, *sample_shape)`` float32, channels last, mean 0 and standard deviation
        ``sigma_data`` over the whole dataset.
      label: optional ``(b,)`` int32 in ``[0, num_classes)``.
    """

    x: jax.Array
    label: jax.Array | None = None


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
      to_pixels: ``(n, *sample_shape)`` float32 -> ``(n, h, w, c)`` uint8 for looking
        at samples; None where there is nothing to look at.
      quantization: the rule of ``to_pixels``, as it stands in a number's protocol.
      whitening: of latents that an autoencoder decodes, gives the constants of their
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
    quantization: str = ""
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

    Networks call it and know nothing of axes; ``training.sharding`` has the one that
    does.
    """

    @property
    def gathers(self) -> bool:
        """Whether weights are stored in pieces that a block must gather."""
        ...

    def gather(self, weights: Any, *path: str) -> Any:
        """``weights``, the subtree at ``path``, as they are multiplied by."""
        ...

    def batch(self, h: jax.Array) -> jax.Array:
        """``(b, ...)`` activations with ``b`` split over the devices."""
        ...


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


def whole_number(text: str) -> int:
    """An int as people type it.

    Example:
      >>> whole_number("1e6"), whole_number("1_000")
      (1000000, 1000)

    Raises:
      ValueError: not a whole number.
    """
    try:
        return int(text)
    except ValueError:
        number = _float(text)
    if not number.is_integer():
        raise ValueError(
            f"{text!r} is not a whole number: write digits, such as 1000000 or 1e6"
        )
    return int(number)


def real_number(text: str) -> float:
    """A finite float from text.

    Example:
      >>> real_number("none")
      Traceback (most recent call last):
      ValueError: 'none' is not a finite number: write for example 0.001 or 1e-3
    """
    number = _float(text)
    if not math.isfinite(number):
        raise ValueError(
            f"{text!r} is not a finite number: write for example 0.001 or 1e-3"
        )
    return number


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def yes_or_no(text: str) -> bool:
    """A flag's word as a bool; an empty one means yes.

    Example:
      >>> yes_or_no("TRUE"), yes_or_no("off")
      (True, False)

    Raises:
      ValueError: another word.
    """
    words = {"yes": True, "true": True, "on": True, "1": True, "": True}
    words |= {"no": False, "false": False, "off": False, "0": False}
    if text.lower() not in words:
        raise ValueError(f"{text!r} is not one of {sorted(words)}")
    return words[text.lower()]


# EX_TEMPFAIL: everything is saved; the same command goes on.
EXIT_PREEMPTED = 75


def num_steps(duration_images: int, batch_size: int) -> int:
    """Optimizer steps of a training: the last batch may go beyond its length.

    Example:
      >>> num_steps(1000, 128)
      8
    """
    return -(-duration_images // batch_size)


def lookup(registry: Mapping[str, Any], name: str, path: str) -> Any:
    """``registry[name]``; an unknown name is an error that lists the valid ones.

    Args:
      registry: valid names and what they stand for.
      name: what was asked for.
      path: the config path it came from, for the message.

    Raises:
      ValueError: ``name`` is not in ``registry``.
    """
    if name in registry:
        return registry[name]
    close = difflib.get_close_matches(str(name), registry, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"{path} = {name!r} is not one of {sorted(registry)}{hint}")
