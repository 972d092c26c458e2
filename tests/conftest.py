"""Settings for all tests."""

import atexit
import os
import resource
import shutil
import tempfile
from importlib import metadata

# One compile cache a run: workers and the commands that tests start inherit it, and
# nothing is kept in the user's folder. A worker's environment already names it.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    compiled = tempfile.mkdtemp(prefix="scm_jax_compiled_")
    atexit.register(shutil.rmtree, compiled, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
# Compiling takes most of the time; nightly, programs are optimized as users have them.
if "SCM_JAX_NIGHTLY" not in os.environ:
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
    # A program in one piece takes a tenth less to compile than one in 32. With fusion
    # emitters the suite took 32 minutes of processor time, without 23.5; jaxlib 0.12
    # has no flag for them, and ends at one that it does not know.
    flags = "--xla_cpu_parallel_codegen_split_count=1"
    if metadata.version("jaxlib") < "0.12":
        flags += " --xla_cpu_use_fusion_emitters=false"
    os.environ.setdefault("XLA_FLAGS", flags)

import jax
import jax.numpy as jnp
import pytest

PEAKS = pytest.StashKey[list]()
KEPT_BYTES = 2 * 2**30

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
    "multidevice/test_hosts.py",
    "multidevice/test_meshes.py",
    "experiments/test_experiments.py",
    "multidevice/test_multidevice.py",
    "multidevice/test_step_collectives.py",
    "sweeps/test_kills.py",
    "experiments/test_sweep_files.py",
    "commands/test_fid_commands.py",
)


def pytest_collection_modifyitems(items):
    def place(item):
        path = item.path.as_posix()
        named = (i for i, name in enumerate(LONG_FILES) if path.endswith(name))
        return next(named, len(LONG_FILES))

    items.sort(key=place)


def pytest_runtest_teardown(item, nextitem):
    # Compiled programs of finished files stay in the worker's memory up to a limit: the
    # next files have many small ones in common with them.
    last = nextitem is None or nextitem.path != item.path
    if last and _resident_bytes() > KEPT_BYTES:
        jax.clear_caches()


def _resident_bytes():
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:  # not on Linux
        return KEPT_BYTES + 1


def pytest_sessionfinish(session):
    if (output := getattr(session.config, "workeroutput", None)) is not None:
        kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        output["peak"] = f"{kilobytes / 1e6:.2f} GB"


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """Peak memory of each worker, read by ``pytest_terminal_summary``."""
    peak = getattr(node, "workeroutput", {}).get("peak", "unknown")
    node.config.stash.setdefault(PEAKS, []).append(f"{node.gateway.id} {peak}")


def pytest_terminal_summary(terminalreporter, config):
    if peaks := config.stash.get(PEAKS, []):
        terminalreporter.write_line(f"peak memory of workers: {', '.join(peaks)}")


def pytest_configure(config):
    if config.getoption("--typecheck"):
        from jaxtyping import install_import_hook

        rooms = ("scm_jax.trigflow", "scm_jax.objectives", "scm_jax.sampling")
        install_import_hook(rooms, "beartype.beartype")


@pytest.fixture(scope="module")
def optimized():
    """Optimizes as users do: for tests that compare the bits of different programs.

    XLA's flags are read once a process: there are no fusion emitters here, either.
    """
    name = "jax_disable_most_optimizations"
    before = jax.config.read(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(name.upper(), "false")  # for child processes
        jax.config.update(name, False)
        yield
        jax.config.update(name, before)


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
    from scm_jax.objectives import base, consistency, two_times

    rooms = (trigflow.algebra, sampling.samplers, attention, dit, layers, embeddings)
    for room in (*rooms, magnitude, base, consistency, two_times):
        monkeypatch.setattr(room, "jnp", _Float64Numpy())
    for room in (trigflow.conversions, sampling.guidance):
        monkeypatch.setattr(room, "jnp", _Float64Numpy())
