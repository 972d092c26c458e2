"""One prepared copy of the digits for all tests of this room."""

import pytest

from scm_jax.datasets import storage


@pytest.fixture(scope="session")
def digits_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("datasets")
    storage.prepare("digits", root)
    return root
