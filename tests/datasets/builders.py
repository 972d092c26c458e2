"""Builders as users write them, given by path."""

import numpy as np

BUILDER = """
import pathlib
import numpy as np
import tensorflow_datasets as tfds

ITEMS = dict(np.load(pathlib.Path(__file__).parent / "items.npz"))

class Builder(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = tfds.features.FeaturesDict({FEATURES})
        return self.dataset_info_from_configs(features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for index in range(NUM):
            yield index, {name: ITEMS[f"{name}_{index}"] for name in FIELDS}
"""


def write_builder(folder, name, shapes=None, **fields):
    """A builder of items, given as ``field=[value of item 0, ...]``; its folder."""
    folder = folder / "builder" / name
    folder.mkdir(parents=True)
    (folder / "README.md").write_text("A few items.")
    items = {f"{f}_{i}": v for f, vs in fields.items() for i, v in enumerate(vs)}
    np.savez(folder / "items.npz", **items)
    specs = [
        f"{f!r}: tfds.features.Tensor(shape={(shapes or {}).get(f, np.shape(v[0]))}, "
        f"dtype=np.{np.asarray(v[0]).dtype})"
        for f, v in fields.items()
    ]
    text = BUILDER.replace("FEATURES", ", ".join(specs))
    text = text.replace("FIELDS", repr(tuple(fields)))
    text = text.replace("NUM", str(len(next(iter(fields.values())))))
    (folder / f"{name}_dataset_builder.py").write_text(text)
    return folder
