import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def training_script():
    """``data/digits/train_classifier.py``, which is no module of the package."""
    root = Path(__file__).parents[2]
    path = root / "data" / "digits" / "train_classifier.py"
    spec = importlib.util.spec_from_file_location("train_classifier", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


@pytest.fixture(scope="session")
def digits(training_script):
    """Pixels ``(1797, 8, 8, 1)`` uint8 and labels of the real digits."""
    return training_script.load_pixels()


@pytest.fixture(scope="session")
def split(training_script, digits):
    """Indices of the images that the classifier saw, and of those it did not."""
    return training_script.split(digits[1])
