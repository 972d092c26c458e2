"""Where runs of a sweep can be sent: one module each, and its line here."""

from __future__ import annotations

from scm_jax.sweeps.launchers import kubernetes, local, printed, slurm
from scm_jax.sweeps.launchers.options import Launcher
from scm_jax.types import lookup

LAUNCHERS: dict[str, Launcher] = {
    "local": local,
    "slurm": slurm,
    "k8s": kubernetes,
    "print": printed,
}


def get(name: str) -> Launcher:
    """The launcher of this name.

    Raises:
      ValueError: there is none; the message lists the legal names.
    """
    return lookup(LAUNCHERS, name, "--launcher")
