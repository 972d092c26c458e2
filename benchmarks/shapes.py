"""Network sizes and sample shapes that tests and benchmarks share.

``TINY`` is what the tests compile by the dozen; ``SMALL`` computes long enough to be
timed on a CPU. ``EDM2_A`` is a U-Net of the paper's kind at the size at which the CPU
time of a step was compared with other implementations.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from scm_jax.networks import PRESETS
from scm_jax.types import TextInfo


class Case(NamedTuple):
    """A network's settings with the data it is built for.

    Attributes:
      network: a key of ``NETWORKS``.
      sample_shape: shape of one sample, channels last.
      num_classes: number of labels.
      settings: for ``networks.build``.
    """

    network: str
    sample_shape: tuple[int, ...]
    num_classes: int
    settings: dict[str, Any]


# Captions that published transformers read: states of encoders.
SD3_TEXT = TextInfo(154, width=4096, pooled=2048)
WAN_TEXT = TextInfo(512, width=4096)
_TINY_TEXT = TextInfo(3, width=6, pooled=4)

_TINY_U_NET = {
    "width": 16,
    "channel_mult": (1, 1),
    "num_blocks": 2,
    "attention_resolutions": (4,),
}
# One of every backbone. The U-Nets have two levels, attention, and groups of several
# blocks.
TINY = {
    name: Case(name, (8, 8, 2), 3, settings)
    for name, settings in {
        "ddpmpp": _TINY_U_NET,
        "dit": {"width": 16, "depth": 1, "num_heads": 2, "patch": 2, "mlp_ratio": 2},
        "mlp": {"width": 16, "depth": 1},
        "mmdit": {"width": 16, "depth": 2, "num_heads": 2, "mlp_ratio": 2}
        | {"text": _TINY_TEXT},
        "sana": {
            **{"width": 16, "depth": 1, "num_heads": 2, "patch": 2},
            **{"head_channels": 16, "mlp_ratio": 1.5},
        },
        "unet": {**_TINY_U_NET, "head_channels": 8},
        "wan": {
            **{"width": 16, "depth": 1, "num_heads": 2, "hidden": 24},
            "patch_sides": (2, 2),
        },
    }.items()
}

_SMALL_U_NET = {
    "width": 32,
    "channel_mult": (1, 2),
    "num_blocks": 2,
    "attention_resolutions": (8,),
}
SMALL = {
    name: Case(name, (16, 16, 4), 10, settings)
    for name, settings in {
        "ddpmpp": _SMALL_U_NET,
        "dit": {"width": 64, "depth": 4, "num_heads": 4},
        "mmdit": {"width": 64, "depth": 4, "num_heads": 4, "text": _TINY_TEXT},
        "sana": {"width": 64, "depth": 4},
        "unet": {**_SMALL_U_NET, "head_channels": 32},
        "wan": {"width": 64, "depth": 4, "num_heads": 4, "patch_sides": (2, 2)},
    }.items()
}

EDM2_A = Case(
    "unet",
    (32, 32, 4),
    10,
    {
        "width": 64,
        "channel_mult": (1, 2, 3, 4),
        "num_blocks": 1,
        "attention_resolutions": (16, 8),
    },
)

# A transformer of 5 million parameters on 64 tokens.
DIT_A = Case(
    "dit", (32, 32, 4), 10, {"width": 256, "depth": 4, "num_heads": 4, "patch": 4}
)

# Sizes that are trained; only counted here, never allocated. The transformer sees 256
# tokens: with more of them attention, whose tangent costs 5/3, weighs more.
PUBLISHED = {
    "ddpmpp": Case("ddpmpp", (32, 32, 3), 10, PRESETS["ddpmpp"]["cifar10"]),
    "dit": Case("dit", (32, 32, 4), 1000, {**PRESETS["dit"]["xl"], "patch": 2}),
    "mmdit": Case(
        "mmdit", (64, 64, 16), 0, {**PRESETS["mmdit"]["sd3_medium"], "text": SD3_TEXT}
    ),
    "sana": Case(
        "sana", (32, 32, 32), 0, {**PRESETS["sana"]["0p6b"], "use_guidance": True}
    ),
    "unet": Case("unet", (64, 64, 4), 1000, PRESETS["unet"]["s"]),
    "wan": Case(
        "wan", (21, 60, 104, 16), 0, {**PRESETS["wan"]["1p3b"], "text": WAN_TEXT}
    ),
}
