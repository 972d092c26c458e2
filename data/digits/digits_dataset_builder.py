"""The 8x8 handwritten digits that scikit-learn ships, as a tfds builder.

Nothing is downloaded: ``sklearn.datasets.load_digits`` reads a file of its own package.
The dataset card is README.md beside this file. Prepare it with::

    python -m scm_jax data prepare --dataset=digits
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

NUM_ITEMS = 1797
MAX_LEVEL = 16


class Builder(tfds.core.GeneratorBasedBuilder):
    """1,797 grey digits in their original order: 8x8x1 levels 0..16 and a class."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {
        "1.0.0": "All 1,797 images of scikit-learn's load_digits."
    }

    def _info(self) -> tfds.core.DatasetInfo:
        # features.Tensor rather than features.Image: encoding a PNG takes TensorFlow.
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Tensor(shape=(8, 8, 1), dtype=np.uint8),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://archive.ics.uci.edu/dataset/80",
            # Item i stays image i of load_digits, so that an error about an item and
            # a slice such as train[:90%] mean something outside this project, too.
            disable_shuffling=True,
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator]:
        del dl_manager  # nothing to download
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict]]:
        try:
            from sklearn.datasets import load_digits
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "the digits come with scikit-learn: pip install 'scm_jax[analysis]'"
            ) from error
        digits = load_digits()
        levels = digits.images
        if levels.shape != (NUM_ITEMS, 8, 8) or not _are_levels(levels):
            raise ValueError(
                f"load_digits gave {levels.shape} images with values in "
                f"[{levels.min()}, {levels.max()}]; expected {(NUM_ITEMS, 8, 8)} whole "
                f"numbers in 0..{MAX_LEVEL}"
            )
        images = levels.astype(np.uint8)[..., None]
        for index, (image, label) in enumerate(zip(images, digits.target, strict=True)):
            yield index, {"image": image, "label": int(label)}


def _are_levels(values: np.ndarray) -> bool:
    """True if all values are whole numbers in ``0..MAX_LEVEL``."""
    return bool(np.isin(values, np.arange(MAX_LEVEL + 1)).all())
