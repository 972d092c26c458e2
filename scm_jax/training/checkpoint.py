"""Checkpoints: saved in the background, whole or not at all, readable in parts.

    DIR/checkpoints/STEP/state     step, params, opt_state, key
                         ema       profile name -> averaged network parameters
                         data      position of the data iterator, JSON
                         metadata  config hash, versions, images, JSON
                         manifest.json   size and CRC-32 of every file
    DIR/ema_snapshots/STEP/...     EMAs for post-hoc reconstruction, kept for ever

A thin layer over Orbax. A save becomes visible by one rename, after the manifest is
written into it; so a kill at any moment leaves the earlier checkpoints, and a file that
was cut or changed later is noticed: Orbax itself reads flipped bits without complaint.
Reading takes the newest checkpoint that agrees with its manifest.

The training waits only while its state is copied into host memory. Orbax prepares a
save in the caller's thread, for as long as a copy of some hundred MB takes, so here a
thread does that, too.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

from scm_jax.training import seal, sharding
from scm_jax.training.seal import CheckpointError
from scm_jax.training.store import (
    Store,
    read_arrays,
    stored_arrays,
    with_sharding,
)


@dataclasses.dataclass(frozen=True)
class Restored:
    """What a checkpoint holds: the state, the data position, the caller's metadata."""

    step: int
    state: Any
    data: dict[str, Any]
    metadata: dict[str, Any]


# ------------------------------------------------------------------ shapes


def _leaf_table(tree: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    """``path -> (shape, dtype)`` as saved: typed keys are stored as their bits."""

    def described(leaf):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.eval_shape(
                jax.random.key_data, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
            )
        return tuple(leaf.shape), str(leaf.dtype)

    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {sharding.path_name(path): described(leaf) for path, leaf in leaves}


def check_shapes(
    where: str, stored: Any, wanted: Any, *, check_dtype: bool = True
) -> None:
    """Raises ValueError that names each array in which ``stored`` is not ``wanted``."""
    have, want = _leaf_table(stored), _leaf_table(wanted)
    problems = [
        f"{name}: missing in the checkpoint" for name in want if name not in have
    ]
    problems += [f"{name}: unknown to this config" for name in have if name not in want]
    for name in sorted(have.keys() & want.keys()):
        parts = slice(0, 2 if check_dtype else 1)
        if have[name][parts] != want[name][parts]:
            stored_text, wanted_text = (
                f"{shape} {dtype}" for shape, dtype in (have[name], want[name])
            )
            problems.append(
                f"{name}: checkpoint has {stored_text}, this config needs {wanted_text}"
            )
    if problems:
        shown = "\n".join(f"  {p}" for p in problems[:10])
        more = f"\n  and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise ValueError(
            f"{where} does not fit this config:\n{shown}{more}\nUse the config it was "
            "trained with, or another work directory."
        )


class Checkpointer:
    """Saves and restores the checkpoints of one run.

    Args:
      directory: the folder of the checkpoints, one subfolder a step; created.
      max_to_keep: older checkpoints are deleted once a newer one is on disk. At least
        2: the second newest is what remains if the newest is damaged. None keeps all.
      snapshots_directory: where ``save_ema_snapshot`` writes; default is
        ``ema_snapshots`` beside ``directory``.

    All processes of a multi-process run make the same calls, on one shared POSIX file
    system.
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
        self._snapshots: Store | None = None  # most runs never write one

    def save(
        self,
        step: int,
        state: Any,
        *,
        data: dict[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        """Starts saving ``state``; returns when it is copied into host memory.

        Args:
          step: names the checkpoint. A step that is already there is left as it is.
          state: train state with the fields step, params, opt_state, ema, key.
          data: JSON, the position of the data iterator.
          metadata: JSON, whatever the caller wants to find again.

        Raises:
          CheckpointError: this save, or the one before it in the background, failed; a
            full disk for example. Earlier checkpoints stay whole.
        """
        self._store.wait()
        if step in seal.list_steps(self.directory):
            return
        self._store.save(
            step,
            json={"data": data or {}, "metadata": metadata or {}},
            state=_state_item(state),
            **_ema_item(state.ema),
        )

    def restore_latest(self, abstract_state: Any) -> Restored | None:
        """The newest whole checkpoint, on the devices that ``abstract_state`` names.

        Args:
          abstract_state: train state of arrays or ``ShapeDtypeStruct``; leaves with a
            sharding are restored onto it, whatever devices they were saved from.

        Returns:
          None where there is no checkpoint at all. A damaged newer checkpoint is
          reported by a warning in the log and renamed to ``STEP.damaged``.

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
        abstract = with_sharding(abstract_state)
        path = self.directory / str(step)
        check_shapes(
            f"checkpoint {path}",
            {**stored_arrays(path / "state"), "ema": stored_arrays(path / "ema")},
            {**_state_item(abstract), "ema": abstract.ema},
        )
        self._store.set_aside(damaged)
        items = self._store.restore(
            step,
            state=ocp.args.StandardRestore(_state_item(abstract)),
            data=ocp.args.JsonRestore(),
            metadata=ocp.args.JsonRestore(),
            **{
                name: ocp.args.StandardRestore(tree)
                for name, tree in _ema_item(abstract.ema).items()
            },
        )
        state = abstract_state.replace(
            **items["state"], ema=items["ema"] if abstract.ema else {}
        )
        return Restored(step, state, items["data"], items["metadata"])

    def save_ema_snapshot(
        self,
        step: int,
        ema: dict[str, Any],
        metadata: dict[str, Any] | None = None,
    ) -> None:
        """Keeps the EMAs of this step for ever, for post-hoc reconstruction."""
        if self._snapshots is None:
            self._snapshots = Store(
                self.snapshots_directory, ("ema", "metadata"), max_to_keep=None
            )
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
        for store in filter(None, (self._store, self._snapshots)):
            store.check()

    def wait(self) -> None:
        """Returns when everything is on disk."""
        for store in filter(None, (self._store, self._snapshots)):
            store.wait()

    def close(self) -> None:
        """Waits, and ends the background threads."""
        for store in filter(None, (self._store, self._snapshots)):
            store.close()

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _state_item(state: Any) -> dict[str, Any]:
    return {
        name: getattr(state, name) for name in ("step", "params", "opt_state", "key")
    }


def _ema_item(ema: dict[str, Any]) -> dict[str, Any]:
    """The item ``ema``, or nothing: Orbax refuses to save an empty tree."""
    return {"ema": dict(ema)} if ema else {}


def save_average(
    directory: str | os.PathLike,
    profile: str,
    params: Any,
    *,
    step: int = 0,
    metadata: dict[str, Any] | None = None,
) -> None:
    """Writes one EMA and nothing else: weights that come from elsewhere.

    Args:
      directory: the folder of the checkpoints; made if it is not there.
      profile: the name under which ``load_ema`` finds them.
      params: network parameters.
      step: names the checkpoint.
      metadata: JSON.

    Raises:
      CheckpointError: it could not be written.
    """
    store = Store(pathlib.Path(directory).absolute(), ("ema", "metadata"), None)
    store.save(step, json={"metadata": metadata or {}}, ema={profile: params})
    store.close()


# ------------------------------------------------------------------ reading


def load_ema(
    directory: str | os.PathLike,
    profile: str,
    step: int | None = None,
    abstract: Any = None,
) -> Any:
    """The averaged network parameters of one profile, and nothing else of a checkpoint.

    Args:
      directory: a folder of checkpoints, or of EMA snapshots.
      profile: the name under which the EMA was kept.
      step: which checkpoint; default is the newest whole one.
      abstract: tree of ``ShapeDtypeStruct`` to restore onto other devices or into
        another type; default is as saved, on the first local device.

    Raises:
      FileNotFoundError: no checkpoint (of that step) in ``directory``.
      CheckpointError: it is damaged.
      ValueError: no such profile (lists those stored), or other shapes.
    """
    directory = pathlib.Path(directory).absolute()
    path = directory / str(_chosen_step(directory, step, "ema/")) / "ema"
    stored = stored_arrays(path)
    if profile not in stored:
        raise ValueError(
            f"{path} holds no average {profile!r}; stored are {sorted(stored)}"
        )
    wanted = stored[profile] if abstract is None else abstract
    check_shapes(
        f"{path}, profile {profile}", stored[profile], wanted, check_dtype=False
    )
    if abstract is None:  # sharding as saved may name devices that are not here
        wanted = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), stored[profile]
        )
    return read_arrays(path, {profile: with_sharding(wanted)})[profile]


def _chosen_step(directory: pathlib.Path, step: int | None, item: str) -> int:
    if step is None:
        return seal.newest_whole(directory, item)[0]
    present = seal.list_steps(directory)
    if step not in present:
        raise FileNotFoundError(
            f"no checkpoint {step} in {directory}; present are {present}"
            + seal.strays_text(directory)
        )
    problem = seal.find_damage(directory / str(step), item)
    if problem:
        raise CheckpointError(f"checkpoint {directory / str(step)}: {problem}")
    return step
