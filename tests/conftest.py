"""Settings for all tests."""

import os

# Commands that tests start keep nothing in the user's folder.
os.environ.setdefault("JAX_ENABLE_COMPILATION_CACHE", "false")

import jax
import jax.numpy as jnp
import pytest

# (b,) * (b, 1) is a bug here, not a broadcast.
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_addoption(parser):
    parser.addoption(
        "--typecheck",
        action="store_true",
        help="check argument types of the maths rooms with jaxtyping and beartype",
    )


# Files that take minutes. Workers get whole files in this order, so that none is left
# with a long one at the end while the other is idle.
LONG_FILES = (
    "experiments/test_notebooks.py",
    "commands/test_commands.py",
    "sweeps/test_slurm_real.py",
    "multidevice/test_meshes.py",
    "multidevice/test_hosts.py",
    "experiments/test_experiments.py",
    "commands/test_weights.py",
    "analysis/test_bootstrap.py",
    "sweeps/test_kills.py",
    "commands/test_fid_commands.py",
)


def pytest_collection_modifyitems(items):
    def place(item):
        path = item.path.as_posix()
        named = (i for i, name in enumerate(LONG_FILES) if path.endswith(name))
        return next(named, len(LONG_FILES))

    items.sort(key=place)


def pytest_configure(config):
    if config.getoption("--typecheck"):
        from jaxtyping import install_import_hook

        rooms = ("scm_jax.trigflow", "scm_jax.objectives", "scm_jax.sampling")
        install_import_hook(rooms, "beartype.beartype")


@pytest.fixture
def float64():
    """Float64 on inside one test."""
    with jax.enable_x64(True):
        yield


class _Float64Numpy:
    """``jax.numpy`` where ``float32`` is float64."""

    float32 = jnp.float64

    def __getattr__(self, name):
        return getattr(jnp, name)


@pytest.fixture
def float64_islands(float64, monkeypatch):
    """Float64 everywhere, casts to float32 included.

    Time, norms, embeddings and sampling grids are float32 islands whatever their input;
    against a float32 result no reference could resolve more than 1e-7.
    """
    from scm_jax import sampling, trigflow
    from scm_jax.networks import attention, dit, embeddings, layers, magnitude
    from scm_jax.objectives import base, consistency

    rooms = (trigflow.algebra, sampling.samplers, attention, dit, layers, embeddings)
    for room in (*rooms, magnitude, base, consistency):
        monkeypatch.setattr(room, "jnp", _Float64Numpy())
    for room in (trigflow.conversions, sampling.guidance):
        monkeypatch.setattr(room, "jnp", _Float64Numpy())
