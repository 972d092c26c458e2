"""The three datasets that are called ImageNet 64x64."""

from scm_jax.datasets.imagenet64_variants import IMAGENET64_VARIANTS
from scm_jax.datasets.preparation.readers.sources import SOURCES
from scm_jax.datasets.preparation.resize import RECIPES


def test_each_variant_can_be_prepared_and_keeps_apart():
    variants = IMAGENET64_VARIANTS.values()
    assert len({variant.folder for variant in variants}) == 3
    for variant in variants:
        assert variant.recipe in RECIPES and set(variant.kinds) <= set(SOURCES)


def test_the_first_is_the_one_of_published_figures():
    first, *others = IMAGENET64_VARIANTS.values()
    assert first.folder == "imagenet64" and first.labelled and first.comparable
    assert first.recipe == "center_crop_dhariwal"
    assert not any(variant.comparable for variant in others)
    assert [variant.labelled for variant in others] == [True, False]
