"""The three datasets called ImageNet 64x64: the same photographs, reduced differently.

FIDs of models, or against reference statistics, of different ones cannot be compared.
"""

from __future__ import annotations

from typing import NamedTuple


class Variant(NamedTuple):
    """One way in which ImageNet was reduced to 64x64."""

    folder: str  # name of the prepared dataset
    labelled: bool  # whether items have one of the 1,000 classes
    recipe: str  # in preparation.resize.RECIPES; "none" where the source has 64x64
    source: str  # what is published, for --source
    label_base: int  # the number of the first class in that source
    comparable: bool  # whether FIDs stand beside the published ones of ADM, EDM2, sCM
    how: str  # what was done to the photographs, by whom


IMAGENET64_VARIANTS = {
    "edm2": Variant(
        folder="imagenet64",
        labelled=True,
        recipe="center_crop_dhariwal",
        source="ILSVRC2012_img_train.tar",
        label_base=0,
        comparable=True,
        how="ILSVRC2012_img_train.tar: halved by averages, then bicubic until the "
        "shorter side is 64, centre cut out (ADM, EDM2; the default)",
    ),
    "resized": Variant(
        folder="imagenet64_resized",
        labelled=True,
        recipe="none",
        source="FOLDER_OF_BATCHES",
        label_base=1,
        comparable=False,
        how="Chrabaszcz et al., arXiv 1707.08819: the whole photograph to 64x64 with a "
        "box filter, proportions not kept (tfds imagenet_resized/64x64; `box` is the "
        "recipe that makes it from photographs)",
    ),
    "downsampled": Variant(
        folder="imagenet64_downsampled",
        labelled=False,
        recipe="none",
        source="train_64x64.tar",
        label_base=0,
        comparable=False,
        how="van den Oord et al., arXiv 1601.06759: train_64x64.tar, without classes "
        "(tfds downsampled_imagenet/64x64)",
    ),
}
