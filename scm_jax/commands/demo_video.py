"""``scm demo --name=video``: clips in two steps, measured and shown.

It samples from the packed runs in ``data/moving_digits``, where they are there.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scm_jax import datasets
from scm_jax.commands.shipped_models import TEACHER, VARIANTS, Demo, read_configs
from scm_jax.datasets import moving_digits
from scm_jax.evaluation import clip_quality
from scm_jax.runs import evaluate, sample
from scm_jax.runs.directory import report
from scm_jax.runs.directory.media import image_grid
from scm_jax.runs.directory.reading import Samples
from scm_jax.runs.sample import Loaded

if TYPE_CHECKING:
    import PIL.Image

NAME = "moving_digits"
SHOWN_CLIPS = 10
FIRST = 2  # frames that are told
BEST = 4.0, ((1.25,),)  # guidance and time of the second step, found by `evaluate`
COLUMNS = ("clips", "steps", "times", "guidance", "nfe", "num_samples")
SHOWN = (
    *("frame_agreement", "all_frames_agree", "residual", "speed_distance"),
    *("frechet_distance", "path_error"),
)


def measure(workdir: Path, num_samples: int) -> Iterator[dict[str, Any]]:
    """Rows of teacher, student in 1 and 2 steps, continued clips, and broken ones.

    The teacher, whose samples take 126 evaluations, has a tenth of the samples.
    """

    def measured(
        variant: str,
        num: int,
        steps: int,
        evaluator: str = NAME,
        guidance: float = TEACHER["guidance"],
        times: Sequence[tuple[float, ...]] = (),
    ) -> dict[str, Any]:
        (row,) = evaluate.evaluate_run(
            workdir / variant,
            steps=(steps,),
            guidance=(guidance,),
            times=times,
            evaluators=(evaluator,),
            num_samples=num,
            rerun=True,
        )
        return {"clips": variant, **{k: row[k] for k in row if k in COLUMNS + SHOWN}}

    yield measured("teacher", num_samples // 10, TEACHER["steps"])
    for steps in (1, 2):
        yield measured("scd", num_samples, steps)
    yield measured("scd", num_samples, 2, NAME, *BEST)
    continued = measured("scd", num_samples, 2, f"{NAME}_continued")
    yield {**continued, "clips": f"scd after {FIRST} frames"}
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


def write_report(
    workdir: Path,
    loaded: Mapping[str, Loaded],
    rows: Sequence[dict[str, Any]],
    speed: str,
) -> None:
    """``clips.webp``, ``clips.png`` and ``report.html``."""
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
    guidance, (times,) = BEST
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
    report.write_report(
        workdir / "report.html",
        title="Video in two steps: moving digits",
        runs=[sample.load_run(workdir / v) for v in VARIANTS],
        results=[("", list(rows))],
        grids=grids,
        commands=[
            (
                "Make clips",
                f"python -m scm_jax sample --run={workdir / 'scd'} --steps=2 --num=10 "
                "--out=clips.webp",
            ),
            ("Train both again", "python -m scm_jax demo --name=video --train"),
        ],
        intro=(
            "A transformer over space and time, distilled from its diffusion teacher "
            f"with guidance as an input (sCD). {speed}."
        ),
    )


DEMO = Demo(
    name=NAME,
    configs=functools.partial(read_configs, "moving_digits.py"),
    measure=measure,
    write_report=write_report,
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
