import importlib.util
from pathlib import Path

import pytest


def load(name):
    """A script in ``data/``, which is no module of the package."""
    path = Path(__file__).parents[2] / "data" / name
    spec = importlib.util.spec_from_file_location(path.stem, path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


@pytest.fixture(scope="session")
def training_script():
    return load("digits/train_classifier.py")


@pytest.fixture(scope="session")
def failures_script():
    return load("shapes/measure_failures.py")


@pytest.fixture(scope="session")
def digits(training_script):
    """Pixels ``(1797, 8, 8, 1)`` uint8 and labels of the real digits."""
    return training_script.load_pixels()


@pytest.fixture(scope="session")
def split(training_script, digits):
    """Indices of the images that the classifier saw, and of those it did not."""
    return training_script.split(digits[1])
