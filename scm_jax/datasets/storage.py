"""Where prepared datasets lie on disk, ``ROOT/NAME/VERSION``, and how they get there.

Preparing runs a tfds builder, loaded by path; reading does not need the builder.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scm_jax.files import shipped, user_paths

if TYPE_CHECKING:
    import tensorflow_datasets as tfds


def data_root(root: str | os.PathLike[str] | None) -> Path:
    """``root``, or without one ``default_root()``."""
    return default_root() if root is None else user_paths.expand(root)


def default_root() -> Path:
    """``$SCM_JAX_DATA`` or ``~/.cache/scm_jax/datasets``, else a ValueError."""
    if root := os.environ.get("SCM_JAX_DATA"):
        return user_paths.expand(root)
    if (folder := user_paths.cache_folder("datasets")) is not None:
        return folder
    raise ValueError(
        "there is no home directory for prepared datasets: set HOME or SCM_JAX_DATA, "
        "or name a folder with --config.dataset.root=DIR (of `data` commands: --root)"
    )


def builders_folder() -> Path:
    """``data/``, which holds one folder per dataset builder or recipe."""
    return shipped.folder("data")


def find_builder(builder: str | os.PathLike[str]) -> Path:
    """The file ``*_dataset_builder.py`` that defines a tfds builder.

    ``builder`` is the name of a folder in the checkout's ``data/``, or the path (a
    ``PathLike``, or a string with a slash) of a builder's folder or of its file.
    """
    is_name = isinstance(builder, str) and os.sep not in builder
    folder = builders_folder() / builder if is_name else user_paths.expand(builder)
    files = [folder] if folder.is_file() else sorted(folder.glob("*.py"))
    # The file's name is where tfds takes the dataset's name from.
    files = [file for file in files if file.name.endswith("_dataset_builder.py")]
    if len(files) == 1:
        return files[0]
    message = f"expected one file *_dataset_builder.py at {folder}, found {len(files)}"
    if is_name:
        there = builders_folder().glob("*/*_dataset_builder.py")
        message += f"; builders here: {sorted(file.parent.name for file in there)}"
    raise FileNotFoundError(message)


def load_builder_class(file: Path) -> type[tfds.core.DatasetBuilder]:
    """Imports a builder file by path and returns its one builder class."""
    import tensorflow_datasets as tfds

    # A name without a dot, because tfds looks for the package of a dotted one.
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise ValueError(f"{file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module  # dataclasses in the file look themselves up here
    # A builder may have the name of a catalogued one, or be loaded twice.
    with tfds.core.registered.skip_registration():
        spec.loader.exec_module(module)
    own = (
        v for v in vars(module).values() if getattr(v, "__module__", "") == spec.name
    )
    classes = [value for value in own if isinstance(value, type)]
    classes = [c for c in classes if issubclass(c, tfds.core.DatasetBuilder)]
    if len(classes) != 1:
        raise ValueError(f"{file} must define one tfds builder class; found {classes}")
    builder_class: Any = classes[0]
    builder_class.pkg_dir_path = tfds.core.Path(file.parent)  # where its README.md is
    return builder_class


def prepare(
    builder: str | os.PathLike[str], root: str | os.PathLike[str] | None = None
) -> Path:
    """Prepares a dataset in ``ROOT/NAME/VERSION``, unless it is there already.

    It appears there in one rename, so a reader never sees half of it, and of several
    processes that prepare at once all succeed.

    Args:
      builder: name of a folder in ``data/``, or path of a builder; ``find_builder``.
      root: folder of prepared datasets, by default ``default_root()``.

    Raises:
      FileNotFoundError: no such builder.
      FileExistsError: something that is no prepared dataset has the folder's name.

    Example:
      >>> prepare("digits")  # doctest: +SKIP
      PosixPath('/home/me/.cache/scm_jax/datasets/digits/1.0.0')
    """
    root = data_root(root)
    builder_class = load_builder_class(find_builder(builder))
    version = builder_class(data_dir=root).data_path.relative_to(root)
    target = root / version
    if _is_prepared(target):
        return target
    root.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".incomplete-", dir=root))
    try:
        _generate(builder_class, staging)
        target.parent.mkdir(parents=True, exist_ok=True)
        (staging / version).rename(target)
    except OSError as error:
        if _is_prepared(target):  # another process was faster
            return target
        if not target.exists():
            raise
        raise FileExistsError(
            f"{target} already exists and is not a prepared dataset. Move it away and "
            "prepare again"
        ) from error
    finally:
        shutil.rmtree(staging)
    return target


def _generate(builder_class: type[tfds.core.DatasetBuilder], folder: Path) -> None:
    import tensorflow_datasets as tfds

    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    # tfds prints that it downloads, and that the data are in the staging folder.
    with contextlib.redirect_stdout(io.StringIO()):
        # The one format that is read without TensorFlow.
        builder_class(data_dir=folder).download_and_prepare(file_format="array_record")


def _is_prepared(folder: Path) -> bool:
    return (folder / "dataset_info.json").is_file()


def prepared_folder(
    name: str,
    root: str | os.PathLike[str] | None = None,
    prepare_missing: bool = False,
    *,
    flags: str = "",
    more: str = "",
) -> Path:
    """The newest prepared version of a dataset, ``ROOT/NAME/VERSION``.

    Args:
      name: name of the dataset.
      root: folder of prepared datasets, by default ``default_root()``.
      prepare_missing: prepare it where no version of it is there. One that is there is
        used even if its builder has moved on, so that a resumed run keeps its data.
      flags: of ``data prepare``, for the error.
      more: what the error says after that command.

    Raises:
      FileNotFoundError: none is prepared; the message has the command that does it.
    """
    root = data_root(root)
    versions = [
        path
        for path in (root / name).glob("*")
        if re.fullmatch(r"\d+\.\d+\.\d+", path.name) and _is_prepared(path)
    ]
    if versions:
        return max(versions, key=lambda path: tuple(map(int, path.name.split("."))))
    if prepare_missing:
        return prepare(name, root)
    own = f", data of your own with --name={name} --source=PATH in place of --dataset"
    raise FileNotFoundError(
        f"the dataset {name!r} is not prepared in {root}. Prepare it with `python -m "
        f"scm_jax data prepare {flags or f'--dataset={name}'} --root={root}`"
        f"{more or own}. To look elsewhere, set dataset.root or the environment "
        "variable SCM_JAX_DATA"
    )
