"""``scm demo --name=video``: clips in two steps, measured and shown.

It samples from the packed runs in ``data/moving_digits``, where they are there.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scm_jax import datasets
from scm_jax.commands.shipped_models import TEACHER, Demo, measured, read_configs
from scm_jax.datasets import moving_digits
from scm_jax.evaluation import clip_quality
from scm_jax.runs import sample
from scm_jax.runs.directory.media import image_grid
from scm_jax.runs.directory.reading import Samples
from scm_jax.runs.sample import Loaded

if TYPE_CHECKING:
    import PIL.Image

NAME = "moving_digits"
SHOWN_CLIPS = 10
FIRST = 2  # frames that are told
BEST = (4.0,), ((1.25,),)  # guidance and time of the second step, by `evaluate`
COLUMNS = ("clips", "steps", "times", "guidance", "nfe", "num_samples")
SHOWN = (
    *("frame_agreement", "all_frames_agree", "residual", "speed_distance"),
    *("frechet_distance", "path_error"),
)


def measure(workdir: Path, num_samples: int) -> Iterator[dict[str, Any]]:
    """Rows of teacher, student in 1 and 2 steps, continued clips, and broken ones."""

    def one(clips: str, variant: str, evaluator: str, *how: Any) -> dict[str, Any]:
        (row,) = measured(workdir, variant, num_samples, evaluator, *how)
        return {"clips": clips, **{k: row[k] for k in row if k in COLUMNS + SHOWN}}

    yield one("teacher", "teacher", NAME, TEACHER["steps"])
    for how in ((1,), (2,), (2, *BEST)):
        yield one("scd", "scd", NAME, *how)
    yield one(f"scd after {FIRST} frames", "scd", f"{NAME}_continued", 2)
    yield from broken_clips(num_samples)


def broken_clips(num: int) -> Iterator[dict[str, Any]]:
    """Rows of true clips and of what can be wrong with clips."""
    data = datasets.make_dataset(NAME, "test", num_items=2 * num)
    x, label = data.arrays()
    assert data.info.to_pixels is not None and label is not None
    pixels, rng = data.info.to_pixels(x), np.random.default_rng(0)
    real, clips, labels = pixels[num:], pixels[:num], label[:num]
    shuffled = np.stack([clip[rng.permutation(len(clip))] for clip in clips])
    frozen = clips[:, :1].repeat(clips.shape[1], axis=1)
    kinds = {"true": clips, "frozen": frozen, "shuffled": shuffled}
    source = moving_digits.ClipSource("test", 2 * num)
    kinds["random walk"] = moving_digits.wander(source, np.arange(num), rng)
    for name, made in kinds.items():
        yield {
            "clips": name,
            "num_samples": num,
            **clip_quality.measure(made, real, labels),
        }


def contact_sheet(shown: Mapping[str, Samples], num: int = 5) -> PIL.Image.Image:
    """The first clips of each kind, a row for each clip, two kinds side by side."""
    import PIL.Image
    import PIL.ImageDraw

    gap, line = 12, 14
    sheets = {}
    for name, samples in shown.items():
        assert samples.pixels is not None
        sheets[name] = image_grid(samples.pixels[:num], scale=2)
    width, height = next(iter(sheets.values())).size
    rows = -(-len(sheets) // 2)
    size = (2 * width + gap, rows * (height + line + gap) - gap)
    sheet = PIL.Image.new("RGB", size, "white")
    draw = PIL.ImageDraw.Draw(sheet)
    for i, (name, image) in enumerate(sheets.items()):
        x, y = i % 2 * (width + gap), i // 2 * (height + line + gap)
        draw.text((x, y), name, fill="black")
        sheet.paste(image, (x, y + line))
    return sheet


def draw(workdir: Path, loaded: Mapping[str, Loaded]) -> dict[str, Any]:
    """Writes ``clips.webp`` and ``clips.png``; clips that move, and their frames."""
    info = loaded["scd"].experiment.dataset.info
    data = datasets.make_dataset(NAME, "test", num_items=200)
    x, label = data.arrays()
    assert info.to_pixels is not None and label is not None
    some = [int(np.flatnonzero(label == k)[0]) for k in range(SHOWN_CLIPS)]
    true = Samples(x[some], info.to_pixels(x[some]), rate=info.frame_rate)
    assert true.pixels is not None
    shown = {"true clips": true}
    shown["teacher, 126 evaluations"] = sample.draw(
        loaded["teacher"], SHOWN_CLIPS, **TEACHER
    )
    (guidance,), (times,) = BEST
    for steps, name in ((2, "two steps"), (1, "one step")):
        how: dict[str, Any] = {"guidance": guidance}
        how |= {"times": times} if steps == 2 else {}
        shown[name] = sample.draw(loaded["scd"], SHOWN_CLIPS, steps, **how)
    shown["two steps"].save(workdir / "clips.webp", columns=5)
    contact_sheet(shown).save(workdir / "clips.png")
    told = true.pixels[:, :FIRST]
    shown[f"two steps, after {FIRST} frames of the true clips"] = sample.draw(
        loaded["scd"], SHOWN_CLIPS, 2, first=told
    )
    grids: dict[str, Any] = {name: clips.html(5) for name, clips in shown.items()}
    for name in ("true clips", "two steps"):
        grids[f"{name}, frame by frame"] = shown[name].grid()
    return grids


DEMO = Demo(
    name=NAME,
    configs=functools.partial(read_configs, "moving_digits.py"),
    measure=measure,
    draw=draw,
    medium="video",
    title="Video in two steps: moving digits",
    intro="A transformer over space and time",
    example=("Make clips", "--num=10 --out=clips.webp"),
    num_samples=1000,
    columns=(*COLUMNS, *SHOWN),
    legend=(
        "frame_agreement: share of frames on which a frozen network names the digit "
        "that was asked for; residual: median distance of the path from a straight "
        "line that bounces, pixels; speed_distance: from true clips, pixels a frame; "
        f"path_error: distance from the true path where {FIRST} frames are told; "
        "frechet_distance: larger for fewer clips (num_samples)."
    ),
    noun="a clip",
)
