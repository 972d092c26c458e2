"""Items that tests prepare, and what a preparation has stored."""

import dataclasses
import json
import os
import pathlib
import signal
from typing import Any

import numpy as np

from scm_jax.datasets import pipeline
from scm_jax.datasets.preparation import prepare
from scm_jax.datasets.preparation.readers.items import ItemError

NUM = 23
LATENTS = np.random.default_rng(1).standard_normal((9, 4, 4, 8)).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class ArrayItems:
    """Items in memory: fields stacked over items."""

    fields: dict[str, np.ndarray]
    class_names: tuple[str, ...] = ()
    origin: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __len__(self):
        return len(next(iter(self.fields.values())))

    def name(self, index):
        return f"item {index}"

    def read(self, index):
        return {name: values[index] for name, values in self.fields.items()}


def arrays(num=NUM, shape=(8, 8, 3), classes=3, seed=0):
    """Distinct random images, ready to be prepared."""
    rng = np.random.default_rng(seed)
    fields = {"image": rng.integers(0, 256, (num, *shape), np.uint8)}
    if classes:
        fields["label"] = np.arange(num) % classes
    names = tuple("abcdefghij"[:classes])
    return ArrayItems(fields, names, {"kind": "array", "path": "made"})


@dataclasses.dataclass(frozen=True)
class Counted(ArrayItems):
    """Items that remember which of them were read, and may refuse some."""

    reads: list = dataclasses.field(default_factory=list)
    bad: tuple = ()

    def read(self, index):
        self.reads.append(index)
        if index in self.bad:
            raise ItemError(f"a.zip: {index}.png does not decode")
        return super().read(index)


def counted(bad=(), raw=None):
    return Counted(**vars(raw or arrays()), bad=bad)


def assert_stored(folder, images, split="train"):
    stored = pipeline.read_prepared(folder, split).fields["image"]
    np.testing.assert_array_equal(stored, images)


@dataclasses.dataclass(frozen=True)
class Deadly(ArrayItems):
    """Kills the process that reads an item, until a file is there."""

    kill_at: int = -1
    mark: str = ""

    def read(self, index):
        if index == self.kill_at and not os.path.exists(self.mark):
            pathlib.Path(self.mark).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(index)


def deadly(kill_at, mark):
    return Deadly(**vars(arrays()), kill_at=kill_at, mark=str(mark))


def target(root):
    return pathlib.Path(root) / "tiny/1.0.0"


def run(raw, root, **options):
    """Prepares them, in shards of four items."""
    options = {"shard_items": 4} | options
    return prepare.prepare(raw, target(root), **options)


def contents(folder):
    """File -> bytes; the manifest without when and with what it was made."""
    found = {file.name: file.read_bytes() for file in folder.iterdir()}
    manifest = json.loads(found["manifest.json"])
    for split in manifest["splits"].values():
        del split["made"]
    return found | {"manifest.json": json.dumps(manifest)}
