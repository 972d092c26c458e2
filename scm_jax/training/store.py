"""One directory of sealed steps, written and read through Orbax."""

# Orbax takes the path of a directory for more than its name: for a pattern when it
# merges what processes wrote (``[``, ``*``, ``?``), for a place in a bucket (``gs:``),
# with ``\\`` as ``/``, and always as UTF-8. So a path that is not plain gets a plain
# name, and the first save of a process is read back before the training goes on.

from __future__ import annotations

import concurrent.futures
import contextlib
import pathlib
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp

from scm_jax.training import seal
from scm_jax.training.seal import CheckpointError

_HOST = "pinned_host"  # the memory in which JAX keeps arrays beside the devices
_BEGINNING = threading.Lock()  # Orbax numbers saves: two must not begin at once
# What every layer below takes as it is written.
_PLAIN = re.compile(r"[A-Za-z0-9_./ +,=@~-]*")


@contextlib.contextmanager
def plain_path(directory: pathlib.Path) -> Iterator[pathlib.Path]:
    """A path of the same directory that Orbax takes literally; a link where needed.

    Raises:
      CheckpointError: neither the path nor that of temporary files is plain.
    """
    if _PLAIN.fullmatch(str(directory)):
        yield directory
        return
    if not _PLAIN.fullmatch(tempfile.gettempdir()):
        raise CheckpointError(
            f"the path {directory} has characters that the checkpoint library "
            f"misreads, and so has the folder {tempfile.gettempdir()}, where it would "
            "get another name: set TMPDIR to a path of ASCII letters and digits, or "
            "take another work directory"
        )
    with tempfile.TemporaryDirectory(prefix="scm_jax-") as folder:
        link = pathlib.Path(folder) / "directory"
        link.symlink_to(directory)
        yield link


def stored_arrays(path: pathlib.Path) -> Any:
    """The tree of array metadata (shape, dtype) of one saved item; {} if not saved."""
    if not path.is_dir():
        return {}
    with plain_path(path) as plain:
        return ocp.PyTreeCheckpointHandler().metadata(plain).tree


def read_arrays(path: pathlib.Path, item: Any) -> Any:
    """The arrays of one saved item that ``item`` names, onto its shardings."""
    restore = ocp.args.PyTreeRestore(
        item=item,
        restore_args=ocp.checkpoint_utils.construct_restore_args(item),
        partial_restore=True,
    )
    with plain_path(path) as plain, ocp.PyTreeCheckpointer() as reader:
        return reader.restore(plain, args=restore)


def with_sharding(tree: Any, where: Callable[[Any], Any] | None = None) -> Any:
    """Abstract leaves; those without a sharding go to the first local device."""
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    where = where or (lambda x: getattr(x, "sharding", None))
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where(x) or device),
        tree,
    )


def _on_host(x: Any) -> Any:
    """The sharding of an array with its pieces in host memory, if that exists."""
    if not isinstance(x, jax.Array):
        return None
    return x.sharding.with_memory_kind(_HOST) if _has_host_memory() else x.sharding


def _has_host_memory() -> bool:
    return _HOST in {m.kind for m in jax.local_devices()[0].addressable_memories()}


class Store:
    """One directory of sealed steps: an Orbax manager and the thread that drives it."""

    def __init__(
        self, directory: pathlib.Path, items: Iterable[str], max_to_keep: int | None
    ):
        self.directory = directory
        self._closing = contextlib.ExitStack()
        directory.mkdir(parents=True, exist_ok=True)  # no link to nowhere
        self._read_back = False
        self._step: int | None = None
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
        self._under_way: concurrent.futures.Future | None = None
        self._manager = ocp.CheckpointManager(
            self._closing.enter_context(plain_path(directory)),
            item_names=items,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=max_to_keep,
                cleanup_tmp_directories=True,
                async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
            ),
        )

    def _seal(self) -> None:
        """Runs in the saving thread when all files are written, before the rename."""
        if jax.process_index() == 0:
            unfinished = f"{self._step}{ocp.utils.TMP_DIR_SUFFIX}*"
            seal.write_manifest(max(self.directory.glob(unfinished)))

    def save(self, step: int, *, json: dict[str, Any], **trees: Any) -> None:
        """Saves trees of arrays, and JSON, by item; returns when these are copied.

        The first save is waited for and read back: whoever trains on must be able to
        come back.
        """
        self.wait()
        self._step = step
        self._check_space(trees)
        items = {name: ocp.args.JsonSave(dict(value)) for name, value in json.items()}
        try:
            # With several processes Orbax aligns the begin of a save by collectives,
            # which must not mix with those of the steps.
            if jax.process_count() == 1 and _has_host_memory():
                # Also where the devices are the host: the next step reuses the buffers.
                places = jax.tree.map(_on_host, trees)
                trees = jax.device_put(trees, places, may_alias=False)
                jax.block_until_ready(trees)
                self._under_way = self._thread.submit(self._write, step, items, trees)
            else:
                self._begin(step, items, trees)
                self._under_way = self._thread.submit(self._manager.wait_until_finished)
        except Exception as error:
            raise self._failure(error) from error
        if not self._read_back:
            self.wait()
            self._restore_as_saved(step, trees)
            self._read_back = True

    def _restore_as_saved(self, step: int, trees: dict[str, Any]) -> None:
        """Reads a save into host memory, every process its own pieces."""
        wanted = with_sharding(trees, _on_host)
        arrays = {name: ocp.args.StandardRestore(tree) for name, tree in wanted.items()}
        try:
            found = self.restore(step, **arrays)
            jax.block_until_ready([found[name] for name in arrays])
        except Exception as error:
            self.set_aside([step])
            raise CheckpointError(
                f"checkpoint {self.directory / str(step)} was saved and cannot be read "
                f"back: {_cause(error)}\nThe training stops; take another work "
                "directory. The earlier checkpoints "
                f"{seal.list_steps(self.directory)} are untouched."
            ) from error

    def _begin(self, step: int, items: dict[str, Any], trees: dict[str, Any]) -> None:
        arrays = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        arguments = ocp.args.Composite(**items, **arrays)
        with _BEGINNING:
            self._manager.save(step, args=arguments, force=True)

    def _write(self, *save: Any) -> None:
        self._begin(*save)
        self._manager.wait_until_finished()

    def wait(self) -> None:
        """Until the save under way is on disk; raises what went wrong in it."""
        if self._under_way is None:
            return
        save, self._under_way = self._under_way, None
        try:
            save.result()
        except Exception as error:
            raise self._failure(error) from error

    def check(self) -> None:
        """Raises what went wrong in a save that has ended; never waits."""
        if self._under_way is not None and self._under_way.done():
            self.wait()

    def _check_space(self, trees: dict[str, Any]) -> None:
        # Orbax's threads would print pages of tracebacks before the message.
        needed = sum(x.nbytes for x in jax.tree.leaves(trees))
        # Compression takes less than a tenth off float32 weights.
        if shutil.disk_usage(self.directory).free < 0.8 * needed:
            full = f"No space left on device for {needed / 2**20:.1f} MiB"
            raise self._failure(OSError(full))

    def _failure(self, error: Exception) -> CheckpointError:
        # The unfinished folder stays: other threads of this save may still write to
        # it. The next start removes it.
        free = shutil.disk_usage(self.directory).free
        kept = seal.list_steps(self.directory)
        return CheckpointError(
            f"could not save step {self._step} in {self.directory}, a disk with "
            f"{free / 2**20:.1f} MiB free: {_cause(error)}\nThe earlier checkpoints "
            f"{kept} are untouched: once the cause is gone, the same command resumes."
        )

    def restore(self, step: int, **items: Any) -> Any:
        return self._manager.restore(step, args=ocp.args.Composite(**items))

    def set_aside(self, steps: Iterable[int]) -> None:
        if jax.process_index() == 0:
            for step in steps:
                seal.set_aside(self.directory / str(step))
        self._manager.reload()

    def close(self) -> None:
        with self._closing:
            self.wait()
            # In the thread that has seen the errors: Orbax raises them again in others.
            self._thread.submit(self._manager.close).result()
            self._thread.shutdown()


def _cause(error: Exception) -> str:
    return str(error).split(" [tensorstore_spec=")[0]  # and pages of configuration
