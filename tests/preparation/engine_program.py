"""Items that tests prepare, and a process that does it: ROOT, then key=value."""

import dataclasses
import os
import pathlib
import signal
import sys

import numpy as np

from scm_jax.datasets.preparation import prepare
from scm_jax.datasets.preparation.readers import items

NUM, SHARD_ITEMS = 23, 4


def arrays(num=NUM, shape=(8, 8, 3), classes=3, seed=0):
    """Distinct random images, ready to be prepared."""
    rng = np.random.default_rng(seed)
    fields = {"image": rng.integers(0, 256, (num, *shape), np.uint8)}
    if classes:
        fields["label"] = np.arange(num) % classes
    names = tuple("abcdefghij"[:classes])
    return items.ArrayItems(fields, names, {"kind": "array", "path": "made"})


@dataclasses.dataclass(frozen=True)
class Deadly(items.ArrayItems):
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
    options = {"shard_items": SHARD_ITEMS, "quiet": True} | options
    return prepare.prepare(raw, target(root), **options)


if __name__ == "__main__":
    given = dict(argument.split("=") for argument in sys.argv[2:])
    raw = deadly(int(given.pop("kill_at", -1)), given.pop("mark", ""))
    run(raw, sys.argv[1], **{name: int(value) for name, value in given.items()})
