"""Published weights that the repository does not ship: where they lie on this machine.

Nothing is downloaded. A file is found under the name it was published with, in
``ROOT/NAME/FILE``, and identified by the sha256 of its bytes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from pathlib import Path

from scm_jax.types import lookup


@dataclasses.dataclass(frozen=True)
class Published:
    """Where weights come from.

    Attributes:
      file: the name of the file.
      url: the page that offers it.
    """

    file: str
    url: str


PUBLISHED = {
    "sd-vae-ft-mse": Published(
        "diffusion_pytorch_model.safetensors",
        "https://huggingface.co/stabilityai/sd-vae-ft-mse",
    ),
}


def default_root() -> Path:
    """``$SCM_JAX_WEIGHTS`` or ``~/.cache/scm_jax/weights``.

    An empty variable counts as not set.
    """
    root = os.environ.get("SCM_JAX_WEIGHTS") or "~/.cache/scm_jax/weights"
    return Path(root).expanduser()


def expected_path(name: str) -> Path:
    """Where the weights ``name``, a key of ``PUBLISHED``, are looked for."""
    published = lookup(PUBLISHED, name, "weights")
    return default_root() / name / published.file


def find_weights(name: str, path: str | os.PathLike[str] = "") -> Path:
    """The file that holds the weights ``name``.

    Args:
      name: a key of ``PUBLISHED``.
      path: the file itself, wherever it is; empty looks in ``expected_path``.

    Raises:
      FileNotFoundError: it is not there; the message says where it is published and
        where to put it.
      ValueError: no such name.
    """
    expected = expected_path(name)
    file = Path(path).expanduser() if os.fspath(path) else expected
    if file.is_file():
        return file
    published = PUBLISHED[name]
    raise FileNotFoundError(
        f"no weights of {name} at {file}. They are not downloaded by themselves: "
        f"{published.file} is published on {published.url}. Put it at {expected}, or "
        "give its path. To look in another folder set the environment variable "
        "SCM_JAX_WEIGHTS"
    )


def sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
