"""The experiment file for images of one's own: sizes, names, and what it builds."""

import itertools

import numpy as np
import pytest

from scm_jax import config as config_lib
from scm_jax import networks
from scm_jax.datasets.preparation import prepare
from scm_jax.datasets.preparation.readers.sources import open_items
from scm_jax.runs.setup import experiment as experiment_lib
from tests.experiments.test_experiments import MODULES, VARIANTS

IMAGES = MODULES["images"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A root with the prepared dataset ``flowers``: six 16x16 images, three classes."""
    folder = tmp_path_factory.mktemp("data")
    pixels = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    np.savez(folder / "raw.npz", images=pixels, labels=np.arange(6) % 3)
    items = open_items(folder / "raw.npz")
    prepare.prepare(items, folder / "flowers" / "1.0.0")
    return folder


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("quick", ["", ",quick"])
def test_a_prepared_dataset_says_shape_and_classes(root, variant, quick):
    c = IMAGES.get_config(f"{variant},name=flowers{quick}")
    assert c.is_locked and c.dataset.prepared == "flowers"
    c.dataset.root = str(root)
    built = experiment_lib.build_abstract(c)
    assert built.network.module.sample_shape == (16, 16, 3)
    assert built.network.module.num_classes == 3
    assert (built.teacher is not None) == (variant == "scd")
    plain = config_lib.to_dict(c)
    assert config_lib.to_dict(config_lib.from_dict(plain)) == plain


def test_sizes_are_the_presets():
    for family, sizes in IMAGES.SIZES.items():
        for variant, size in itertools.product(VARIANTS, sizes):
            c = IMAGES.get_config(f"{variant},family={family},size={size}")
            for key, value in networks.PRESETS[family][size].items():
                assert c.network[key] == value
    with pytest.raises(ValueError, match="size of family=unet = 'b'.*'xl'"):
        IMAGES.get_config("teacher,size=b")


def test_students_are_the_paper_s_and_start_at_their_teacher():
    teacher, sct, scd = (IMAGES.get_config(f"{v},name=flowers") for v in VARIANTS)
    assert sct.init.run == scd.init.run == scd.teacher.run == f"runs/{teacher.name}"
    rate = teacher.optimizer.learning_rate
    assert rate == pytest.approx(1e-2 * np.sqrt(256 / 2048))
    assert sct.optimizer.learning_rate == pytest.approx(rate / 100)
    assert (sct.objective.dx_dt, scd.objective.dx_dt) == ("data", "teacher")
    assert sct.objective.tangent_normalization == "l2"
    for c in (sct, scd):
        assert config_lib.objective_settings(c)["tangent_warmup_steps"] == 4_000
        assert (c.objective.P_mean, c.objective.P_std) == (-1.0, 1.6)


def test_without_a_name_only_a_smoke_run_is_built(tmp_path):
    c = IMAGES.get_config("teacher")
    c.dataset.root = str(tmp_path)
    with pytest.raises(ValueError, match=r"dataset\.prepared is the name"):
        experiment_lib.build_abstract(c)
    experiment_lib.build_abstract(IMAGES.get_config("teacher,quick"))


def test_the_file_says_how_to_run():
    assert "not yet measured" in IMAGES.__doc__
    for variant in VARIANTS:
        assert f"experiments/images.py:{variant},name=flowers" in IMAGES.__doc__
