import pytest

from tests.preparation import made_items


@pytest.fixture(scope="session")
def plain(tmp_path_factory):
    """What one process stores without any trouble."""
    folder = made_items.run(made_items.arrays(), tmp_path_factory.mktemp("plain"))
    return made_items.contents(folder)
