"""The flags of commands that several processes can run as one."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from absl import flags

from scm_jax.commands import cli

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from scm_jax.training.processes.peers import Peers


def define() -> None:
    """Declares the flags."""
    flags.DEFINE_enum(
        "distributed",
        "auto",
        ["auto", "off"],
        "auto: join the processes that flags, SLURM, TPU or Kubernetes name; off: no.",
    )
    flags.DEFINE_string("coordinator", None, "HOST:PORT where process 0 listens.")
    cli.integer("num_processes", None, "Number of processes that train together.", 1)
    cli.integer("process_id", None, "Index of this process, from 0.", 0)
    flags.DEFINE_float("join_timeout", 45.0, "Seconds to wait for all processes.")


def processes(config: ConfigDict) -> AbstractContextManager[Peers | None]:
    """The other processes of this training, as a context."""
    from scm_jax import config as config_lib
    from scm_jax.runs.directory import layout
    from scm_jax.training.processes import cluster, multihost

    f = flags.FLAGS
    found = cluster.find_cluster(
        os.environ,
        distributed=f.distributed,
        coordinator=f.coordinator,
        num_processes=f.num_processes,
        process_id=f.process_id,
    )
    identity = {} if found is None else layout.identity(config_lib.to_dict(config))
    return multihost.joined(found, identity, cli.explain, timeout=f.join_timeout)
