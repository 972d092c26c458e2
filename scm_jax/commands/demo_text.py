"""``scm demo --name=text``: prompts in, images out in two steps, measured and shown.

It samples from the packed runs in ``data/captioned_shapes``, where they are there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ml_collections import ConfigDict

from scm_jax.commands.shipped_models import TEACHER, Demo, measured, read_configs
from scm_jax.datasets.preparation import encode, prepare
from scm_jax.datasets.preparation.readers import sources
from scm_jax.datasets.shapes import CAPTIONED, ShapeSource
from scm_jax.files import shipped
from scm_jax.runs import latents, sample
from scm_jax.runs.directory.media import captioned_grid
from scm_jax.runs.sample import Loaded

if TYPE_CHECKING:
    import PIL.Image

# What a newcomer would type. No training image shows a red star or an orange circle.
PROMPTS = (
    "a big red star on blue dots",
    "a yellow moon, upper left",
    "a small green heart on pink stripes",
    "a large blue square and a tiny cyan circle on an orange gradient",
    "a purple hexagon on yellow checks, right",
    "an orange circle",
)
COLUMNS = ("method", "steps", "guidance", "nfe", "num_samples")
SHOWN = tuple(
    f"{share}_{kind}{end}"
    for share in ("agreement", "all_words")
    for kind in ("seen", "held_out")
    for end in ("", "_real")
)
NUM_IMAGES = 100_000  # of the training


def configs(workdir: Path, quick: bool) -> dict[str, ConfigDict]:
    """What is trained, after its latents were encoded."""
    found = read_configs("captions.py", workdir, quick)
    if not quick:
        encode_data(workdir / "data")
        for config in found.values():
            config.dataset.root = str(workdir / "data")
    return found


def encode_data(root: Path) -> None:
    """Prepares captioned shapes and their latents, unless they are there."""
    images = root / "captioned_shapes/1.0.0"
    prepare.prepare(ShapeSource("train", NUM_IMAGES, **CAPTIONED), images)
    items = sources.open_items(images, kind="tfds", split="train")
    weights = shipped.folder("data") / "captioned_shapes/autoencoder.safetensors"
    encoder = latents.make_encoder(weights, batch_size=64)
    target = root / "captioned_shapes_latents/1.0.0"
    encode.encode_dataset(items, encoder, target, dtype="float16")


def measure(workdir: Path, num_samples: int) -> list[dict[str, Any]]:
    """Rows of the teacher and of the student in 1 and 2 steps, guided by 1, 2 and 4."""
    student = workdir, "scd", num_samples, "captions"
    rows = [
        *measured(workdir, "teacher", num_samples, "captions", TEACHER["steps"]),
        *measured(*student, 1),
        *measured(*student, 2, (1.0, 2.0, 4.0)),
    ]
    return [{name: row[name] for name in (*COLUMNS, *SHOWN)} for row in rows]


def draw(
    workdir: Path, loaded: Mapping[str, Loaded], num: int = 16
) -> dict[str, PIL.Image.Image]:
    """Writes ``prompts.png``; samples of prompts, and of ``num`` captions a kind."""
    student = loaded["scd"]
    drawn = sample.draw(student, len(PROMPTS), 2, 0, prompt=PROMPTS)
    drawn.save(workdir / "prompts.png", columns=3)
    grids = {"prompts in, images out in two steps": drawn.grid(3)}
    for kind in ("seen", "held_out"):
        questions = student.experiment.dataset.info.questions
        assert questions is not None
        asked = questions(num, kind)
        made = sample.draw(student, num, 2, 0, prompt=asked.prompts)
        name = f"{kind.replace('_', ' ')} combinations"
        grids[f"{name}, two steps"] = made.grid(4)
        real = captioned_grid(np.asarray(asked.pixels), asked.prompts.texts, 4)
        grids[f"{name}, real"] = real
    return grids


DEMO = Demo(
    name="captioned_shapes",
    configs=configs,
    measure=measure,
    draw=draw,
    medium="text",
    title="Text to image in two steps: captioned shapes",
    intro="A network that reads captions",
    example=("Type a prompt", f'--prompt="{PROMPTS[0]}" --out=star.png'),
    num_samples=500,
    columns=(*COLUMNS, *SHOWN),
    legend=(
        "agreement: share of the eight words of a caption that a frozen network reads "
        "off the image; held_out: colours that the shape had in no training image; "
        "real: the same for real images of these captions, the ceiling."
    ),
)
