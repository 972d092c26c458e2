"""Checkpoints: saved in the background, whole or not at all, readable in parts.

DIR/checkpoints/STEP/state     step, params, opt_state, key
                     ema       profile name -> averaged network parameters
                     data      position of the data iterator, JSON
                     metadata  config hash, versions, images, JSON
                     manifest.json   size and CRC-32 of every file
DIR/ema_snapshots/STEP/...     EMAs for post-hoc reconstruction, kept for ever
"""

# A thin layer over Orbax. A save becomes visible by one rename, after its manifest: a
# kill at any moment leaves the earlier checkpoints, and later damage is noticed. The
# training waits only while its state is copied into host memory: Orbax prepares a save
# in the caller's thread, for as long as copying some hundred MB takes, so a thread of
# ours is that caller.

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

from scm_jax.training import seal, sharding
from scm_jax.training.seal import CheckpointError
from scm_jax.training.store import Store, read_arrays, stored_arrays, with_sharding

_STATE = ("step", "params", "opt_state", "key")


@dataclasses.dataclass(frozen=True)
class Restored:
    """What a checkpoint holds: the state, the data position, the caller's metadata."""

    step: int
    state: Any
    data: dict[str, Any]
    metadata: dict[str, Any]


def _leaf_table(tree: Any) -> dict[str, tuple[str, str]]:
    """``path -> (shape, dtype)`` as saved: typed keys are stored as their bits."""

    def described(leaf):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
            leaf = jax.eval_shape(jax.random.key_data, leaf)
        return str(tuple(leaf.shape)), str(leaf.dtype)

    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {sharding.path_name(path): described(leaf) for path, leaf in leaves}


def check_shapes(
    where: str, stored: Any, wanted: Any, *, check_dtype: bool = True
) -> None:
    """Raises ValueError that names each array in which ``stored`` is not ``wanted``."""
    have, want = _leaf_table(stored), _leaf_table(wanted)
    problems = [f"{name}: missing in the checkpoint" for name in want.keys() - have]
    problems += [f"{name}: unknown to this config" for name in have.keys() - want]
    parts = slice(0, 2 if check_dtype else 1)
    problems += [
        f"{name}: checkpoint has {' '.join(have[name])}, this config needs "
        f"{' '.join(want[name])}"
        for name in have.keys() & want
        if have[name][parts] != want[name][parts]
    ]
    if problems:
        shown = "\n".join(f"  {p}" for p in sorted(problems)[:10])
        more = f"\n  and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise ValueError(
            f"{where} does not fit this config:\n{shown}{more}\nUse the config it was "
            "trained with, or another work directory."
        )


class Checkpointer(contextlib.AbstractContextManager):
    """Saves and restores the checkpoints of one run.

    All processes make the same calls, on one shared POSIX file system.

    Args:
      directory: the folder of the checkpoints, one subfolder a step; created.
      max_to_keep: older ones are deleted, except None; at least 2.
      snapshots_directory: where ``save_ema_snapshot`` writes; default is
        ``ema_snapshots`` beside ``directory``.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        *,
        max_to_keep: int | None = 3,
        snapshots_directory: str | os.PathLike | None = None,
    ):
        if max_to_keep is not None and max_to_keep < 2:
            raise ValueError(
                f"checkpoint.max_to_keep={max_to_keep}: must be at least 2, so that a "
                "whole checkpoint remains if the newest is damaged; or None for all"
            )
        self.directory = pathlib.Path(directory).absolute()
        self.snapshots_directory = pathlib.Path(
            snapshots_directory or self.directory.parent / "ema_snapshots"
        ).absolute()
        self._store = Store(
            self.directory, ("state", "ema", "data", "metadata"), max_to_keep
        )
        self._stores = [self._store]

    @functools.cached_property
    def _snapshots(self) -> Store:  # most runs never write one
        store = Store(self.snapshots_directory, ("ema", "metadata"), max_to_keep=None)
        self._stores.append(store)
        return store

    def save(
        self,
        step: int,
        state: Any,
        *,
        data: dict[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        """Starts saving ``state``; returns when it is copied into host memory.

        A ``step`` that is already there is left as it is. ``data`` (the position of the
        data iterator) and ``metadata`` are JSON.

        Raises:
          CheckpointError: this save, or the one before it in the background, failed; a
            full disk for example. Earlier checkpoints stay whole.
        """
        self._store.wait()
        if step in seal.list_steps(self.directory):
            return
        json = {"data": data or {}, "metadata": metadata or {}}
        self._store.save(step, json=json, **_items(state))

    def restore_latest(self, abstract_state: Any) -> Restored | None:
        """The newest whole checkpoint; None where there is no checkpoint at all.

        Leaves of ``abstract_state`` (arrays or ``ShapeDtypeStruct``) with a sharding
        are restored onto it, whatever devices they were saved from. A damaged newer
        checkpoint is reported by a warning and renamed to ``STEP.damaged``.

        Raises:
          CheckpointError: there are checkpoints, and none is whole; or folders that
            may have been some before they were renamed.
          ValueError: an array has another shape or type than ``abstract_state``.
        """
        self._store.wait()
        if not seal.list_steps(self.directory):
            if strays := seal.strays_text(self.directory):
                raise CheckpointError(
                    f"no checkpoint in {self.directory}{strays}; to start again from "
                    "step 0, move it away"
                )
            return None
        step, damaged = seal.newest_whole(self.directory)
        wanted = {"ema": {}, **_items(with_sharding(abstract_state))}
        path = self.directory / str(step)
        check_shapes(
            f"checkpoint {path}",
            {**stored_arrays(path / "state"), "ema": stored_arrays(path / "ema")},
            {**wanted["state"], "ema": wanted["ema"]},
        )
        self._store.set_aside(damaged)
        items = self._store.restore(
            step,
            data=ocp.args.JsonRestore(),
            metadata=ocp.args.JsonRestore(),
            **{k: ocp.args.StandardRestore(tree) for k, tree in wanted.items() if tree},
        )
        fields = {**items["state"], "ema": items.get("ema", {})}
        if "critic" in fields:
            fields["critic"] = abstract_state.critic.replace(**fields["critic"])
        state = abstract_state.replace(**fields)
        return Restored(step, state, items["data"], items["metadata"])

    def save_ema_snapshot(
        self, step: int, ema: dict[str, Any], metadata: dict[str, Any] | None = None
    ) -> None:
        """Keeps the EMAs of this step for ever, for post-hoc reconstruction."""
        self._snapshots.wait()
        path = self.snapshots_directory / str(step)
        if path.exists():
            # A resumed run passes the steps after its checkpoint a second time.
            if seal.find_damage(path) is None:
                return
            self._snapshots.set_aside([step])
        self._snapshots.save(step, json={"metadata": metadata or {}}, ema=dict(ema))

    def check(self) -> None:
        """Raises what went wrong in a save that has ended; never waits."""
        for store in self._stores:
            store.check()

    def wait(self) -> None:
        """Returns when everything is on disk."""
        for store in self._stores:
            store.wait()

    def close(self) -> None:
        """Waits, and ends the background threads."""
        for store in self._stores:
            store.close()

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _items(state: Any) -> dict[str, Any]:
    """The items of a train state; without ``ema`` where it is empty, as Orbax asks."""
    items = {"state": {name: getattr(state, name) for name in _STATE}}
    if (critic := getattr(state, "critic", None)) is not None:
        # Plain dicts, as Orbax reads them.
        fields = dataclasses.fields(critic)
        items["state"]["critic"] = {f.name: getattr(critic, f.name) for f in fields}
    return {**items, "ema": dict(state.ema)} if state.ema else items


def save_average(
    directory: str | os.PathLike,
    profile: str,
    params: Any,
    *,
    step: int = 0,
    metadata: dict[str, Any] | None = None,
) -> None:
    """Writes a checkpoint of one EMA and nothing else: weights from elsewhere.

    ``load_ema`` finds the network parameters ``params`` under the name ``profile``.

    Raises:
      CheckpointError: it could not be written.
    """
    store = Store(pathlib.Path(directory).absolute(), ("ema", "metadata"), None)
    store.save(step, json={"metadata": metadata or {}}, ema={profile: params})
    store.close()


def load_ema(
    directory: str | os.PathLike,
    profile: str,
    step: int | None = None,
    abstract: Any = None,
) -> Any:
    """One EMA of the network parameters, and nothing else of a checkpoint.

    Args:
      directory: a folder of checkpoints, or of EMA snapshots.
      profile: the name of the EMA.
      step: which checkpoint; default is the newest whole one.
      abstract: tree of ``ShapeDtypeStruct`` to restore onto other devices or into
        another type; default is as saved, on the first local device.

    Raises:
      FileNotFoundError: no checkpoint (of that step) in ``directory``.
      CheckpointError: it is damaged.
      ValueError: no such profile (lists those stored), or other shapes.
    """
    directory = pathlib.Path(directory).absolute()
    if step is None:
        step = seal.newest_whole(directory, "ema/")[0]
    elif step not in (present := seal.list_steps(directory)):
        strays = seal.strays_text(directory)
        text = f"no checkpoint {step} in {directory}; present are {present}{strays}"
        raise FileNotFoundError(text)
    elif problem := seal.find_damage(directory / str(step), "ema/"):
        raise CheckpointError(f"checkpoint {directory / str(step)}: {problem}")
    path = directory / str(step) / "ema"
    stored = stored_arrays(path)
    if profile not in stored:
        known = sorted(stored)
        raise ValueError(f"{path} holds no EMA {profile!r}; stored are {known}")
    if abstract is None:  # the sharding as saved may name devices that are not here
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), stored[profile]
        )
    where = f"{path}, EMA {profile}"
    check_shapes(where, stored[profile], abstract, check_dtype=False)
    return read_arrays(path, {profile: with_sharding(abstract)})[profile]
