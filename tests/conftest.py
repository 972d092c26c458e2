"""Settings for all tests."""

import jax
import pytest

# (b,) * (b, 1) is a bug here, not a broadcast.
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_addoption(parser):
    parser.addoption(
        "--typecheck",
        action="store_true",
        help="check argument types of the maths rooms with jaxtyping and beartype",
    )


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
