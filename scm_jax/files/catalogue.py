"""Published weights that the repository does not ship: where they are, what they hold.

Nothing is downloaded. A file is found under one of the names it is published with, in
``ROOT/NAME/FILE``: ``ROOT`` is ``$SCM_JAX_WEIGHTS``, then ``~/.cache/scm_jax/weights``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from scm_jax.files import user_paths
from scm_jax.types import lookup

# Network -> accepted files, the most usual first, all with the same numbers, and where
# each is published.
PUBLISHED: dict[str, dict[str, str]] = {
    "dinov2": {
        "dinov2_vitl14_pretrain.pth": "https://dl.fbaipublicfiles.com/dinov2/"
        "dinov2_vitl14/dinov2_vitl14_pretrain.pth",
        "model.safetensors": "https://huggingface.co/facebook/dinov2-large/resolve/"
        "main/model.safetensors",
    },
    "inception": {
        "pt_inception-2015-12-05-6726825d.pth": "https://github.com/mseitzer/"
        "pytorch-fid/releases/download/fid_weights/"
        "pt_inception-2015-12-05-6726825d.pth",
        "weights-inception-2015-12-05-6726825d.pth": "https://github.com/toshas/"
        "torch-fidelity/releases/download/v0.2.0/"
        "weights-inception-2015-12-05-6726825d.pth",
        "inception-2015-12-05.safetensors": "the tensors of a .pth above, as "
        "scm_jax.files.state_dict.write_state_dict writes them",
        "inception-2015-12-05.npz": "likewise",
    },
    "sd-vae-ft-mse": {
        "diffusion_pytorch_model.safetensors": "https://huggingface.co/stabilityai/"
        "sd-vae-ft-mse",
    },
}


def roots() -> list[Path]:
    """Folders to look in, in this order; an empty variable counts as not set."""
    named = os.environ.get("SCM_JAX_WEIGHTS")
    folders = [user_paths.expand(named) if named else None]
    folders.append(user_paths.cache_folder("weights"))
    return [folder for folder in folders if folder is not None]


def accepted_paths(name: str) -> Iterator[Path]:
    """Every place where weights ``name`` are looked for, the first choice first."""
    files = lookup(PUBLISHED, name, "weights")
    return (root / name / file for root in roots() for file in files)


def find_weights(name: str, path: str | os.PathLike[str] | None = None) -> Path:
    """The file that holds the weights of a network.

    Args:
      name: a key of ``PUBLISHED``.
      path: the file itself; None or empty takes the first of ``accepted_paths`` that is
        there.

    Raises:
      FileNotFoundError: it is not there; the message has ``where_to_get``.
    """
    places = list(accepted_paths(name))
    missing = f"no weights of {name}"
    if path is not None and os.fspath(path):
        places = [user_paths.expand(path)]
        missing += f" at {places[0]}"
    for place in places:
        if place.is_file():
            return place
    raise FileNotFoundError(f"{missing}. {where_to_get(name)}")


def where_to_get(name: str) -> str:
    """Lines for a user: which files are accepted, from where, and where they belong."""
    files = lookup(PUBLISHED, name, "weights")
    lines = ["They are not downloaded by themselves. Put one of these files"]
    lines += [f"  {file}: {published}" for file, published in files.items()]
    lines += ["into one of these folders, or give its path:"]
    lines += [f"  {root / name}" for root in roots()]
    if not os.environ.get("SCM_JAX_WEIGHTS"):
        lines += [f"  $SCM_JAX_WEIGHTS/{name}, a variable that is not set"]
    return "\n".join(lines)
