"""A run directory as an object: config, metrics, results and samples of a run."""

from __future__ import annotations

import dataclasses
import functools
import html
import json
import numbers
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scm_jax.files import user_paths
from scm_jax.files.atomic import write_atomically
from scm_jax.files.jsonl import flatten, merge_steps, read_rows, to_frame
from scm_jax.runs.directory.layout import RunDir
from scm_jax.runs.directory.media import (
    ANIMATIONS,
    animation,
    captioned_grid,
    data_uri,
    image_grid,
    players,
    png_bytes,
    png_uri,
    wav_bytes,
)
from scm_jax.runs.directory.run_configs import read_object, read_whole_object
from scm_jax.types import check_seed

if TYPE_CHECKING:
    import ml_collections
    import pandas as pd
    import PIL.Image


@dataclasses.dataclass(frozen=True, eq=False)
class Samples:
    """Samples of a run.

    Attributes:
      x: ``(n, *sample_shape)`` float32, in the scale of the training data.
      pixels: ``(n, h, w, c)`` uint8, of clips ``(n, t, h, w, c)``, or None where there
        is nothing to look at.
      texts: the prompt of each sample, where there are any.
      facts: how all of them were drawn.
      rate: frames per second of clips, samples per second of sound.
      sound: ``(n, samples)`` float32 in [-1, 1]; ``pixels`` are its spectrograms.
    """

    x: np.ndarray
    pixels: np.ndarray | None = None
    texts: tuple[str, ...] = ()
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    rate: float = 0.0
    sound: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        return f"Samples({len(self)} of shape {self.x.shape[1:]})"

    def grid(
        self, columns: int | None = None, scale: int | None = None
    ) -> PIL.Image.Image:
        """The samples as one image, with their prompts; small ones are enlarged.

        Clips are a contact sheet: a row for each, frame after frame.
        """
        if self.pixels is None:
            raise ValueError("these samples are vectors, not images: use .x instead")
        if self.texts:
            return captioned_grid(self.pixels, self.texts, columns)
        return image_grid(self.pixels, columns, scale or self._scale)

    @property
    def _moving(self) -> bool:
        return self.pixels is not None and self.pixels.ndim == 5 and self.rate > 0

    @property
    def _scale(self) -> int:
        assert self.pixels is not None
        return max(1, 64 // max(self.pixels.shape[-3:-1]))

    def animation(self, suffix: str = ".webp", columns: int | None = None) -> bytes:
        """The clips side by side as one file; ``suffix`` is a key of ``ANIMATIONS``."""
        if not self._moving:
            raise ValueError(
                f"samples of shape {self.x.shape[1:]} are no clips with a frame rate"
            )
        assert self.pixels is not None
        return animation(self.pixels, self.rate, suffix, columns, self._scale)

    def save(self, path: str | os.PathLike, columns: int | None = None) -> None:
        """Writes ``.png`` (the grid) or ``.npy`` (``x``), by the ending of ``path``.

        Clips are animated in ``.gif``, ``.webp``, ``.apng`` and, with the extra
        ``video``, ``.mp4``.

        Sound is written to ``.wav``: all clips with gaps between, and each by itself
        into a folder of the same name.

        With a prompt for each sample, ``.jsonl`` beside it has a line for each of them.
        """
        path = samples_file(path)
        try:
            if path.suffix == ".png":
                self.grid(columns).save(path)
            elif path.suffix == ".wav":
                self._save_sound(path)
            elif path.suffix in ANIMATIONS:
                path.write_bytes(self.animation(path.suffix, columns))
            else:
                np.save(path, self.x)
            if self.texts:
                lines = ({"sample": i, "prompt": t} for i, t in enumerate(self.texts))
                rows = (json.dumps({**line, **self.facts}) + "\n" for line in lines)
                write_atomically(path.with_suffix(".jsonl"), "".join(rows))
        except OSError as error:  # a full disk; NumPy's does not name the file
            raise OSError(f"cannot write {path}: {error}") from error

    def _save_sound(self, path: Path) -> None:
        if self.sound is None:
            raise ValueError(f"samples of shape {self.x.shape[1:]} are no sound")
        path.write_bytes(wav_bytes(self.sound, int(self.rate)))
        if len(self) > 1:
            folder = path.with_suffix("")
            folder.mkdir(exist_ok=True)
            for i in range(len(self)):
                one = wav_bytes(self.sound[i : i + 1], int(self.rate))
                (folder / f"{i:03d}.wav").write_bytes(one)

    def _repr_png_(self) -> bytes | None:
        return None if self.pixels is None else png_bytes(self.grid())

    def _repr_html_(self) -> str:
        if self.pixels is None:
            about = html.escape(f"{len(self)} samples of shape {self.x.shape[1:]}")
            mean, std = float(np.mean(self.x)), float(np.std(self.x))
            return f"<p>{about}: mean {mean:.4g}, standard deviation {std:.4g}</p>"
        return self.html()

    def html(self, columns: int | None = None) -> str:
        """HTML of the grid, of clips that move, or of sound with players."""
        if self.sound is not None:
            assert self.pixels is not None
            return players(self.pixels, self.sound, int(self.rate), self.texts)
        about = "; ".join(dict.fromkeys(self.texts))
        about = html.escape(about or f"{len(self)} samples of shape {self.x.shape[1:]}")
        if self._moving:
            source = data_uri(self.animation(columns=columns), "image/webp")
        else:
            source = png_uri(self.grid(columns))
        return f'<img alt="{about}" src="{source}">'


SampleFn = Callable[..., Samples]


def samples_file(path: str | os.PathLike) -> Path:
    """``path`` of a file of samples, after a check that it can be written.

    Raises:
      ValueError: it ends in none of ``.png``, ``.npy``, ``.wav`` and ``ANIMATIONS``.
      OSError: no file can be made there.
    """
    legal = (".png", ".npy", ".wav", *ANIMATIONS)
    if Path(path).suffix not in legal:
        raise ValueError(
            f"cannot save samples as {Path(path).name!r}: legal are {', '.join(legal)}"
        )
    return user_paths.writable(path)


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A run directory, read fresh at every access, so that a live run can be watched.

    Attributes:
      path: the directory.
      make_sampler: ``make_sampler(run)`` gives a function
        ``(num, *, steps, seed, label, ema, prompt, guidance) -> Samples``.
    """

    path: Path
    make_sampler: Callable[[Run], SampleFn] | None = None

    @property
    def dir(self) -> RunDir:
        return RunDir(self.path)

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @functools.cached_property
    def config(self) -> ml_collections.ConfigDict:
        """The resolved config with attribute access; tuples have become lists."""
        import ml_collections

        return ml_collections.ConfigDict(self.dir.read_config()).lock()

    @property
    def metrics(self) -> pd.DataFrame:
        """One row per logged step; lists are numpy arrays, null is NaN.

        A resume drops the rows beyond its step; a later value replaces an earlier one.
        """
        return to_frame(merge_steps(read_rows(self.dir.metrics_path)))

    @property
    def results(self) -> pd.DataFrame:
        """One row per evaluation, in their order."""
        return to_frame(read_rows(self.dir.results_path))

    @property
    def summary(self) -> dict[str, Any]:
        """The summary, empty until the run is done."""
        return read_whole_object(self.dir.summary_path)

    @property
    def state(self) -> str:
        """``done``, ``nonfinite`` (stopped on NaN), ``started`` or ``new``."""
        if self.dir.is_done:
            return "done"
        if self.dir.nonfinite_dir.exists() and any(self.dir.nonfinite_dir.iterdir()):
            return "nonfinite"
        return "started" if self.dir.metrics_path.exists() else "new"

    def sample(
        self,
        num: int,
        steps: int = 2,
        seed: int = 0,
        label: int | None = None,
        ema: str | None = None,
        prompt: str | Sequence[str] | None = None,
        guidance: float | None = None,
        first: np.ndarray | None = None,
    ) -> Samples:
        """Draws samples from the newest checkpoint.

        Args:
          num: number of samples. Sample ``i`` depends on ``seed`` and ``i`` only.
          steps: sampling steps.
          seed: seed of the noise.
          label: class of all samples; None draws from all classes.
          ema: name of the EMA; None takes the run's own choice.
          prompt: a caption, or several that are taken in turn; None takes examples of
            the data, if the run has learned from captions.
          guidance: guidance scale; None takes the run's.
          first: pixels of the first frames of all clips, ``(k, h, w, c)`` uint8, or of
            each, such as ``samples.pixels[:, -2:]`` to go on where clips ended.

        Example:
          >>> run = scm_jax.load_run("runs/demo/scd")  # doctest: +SKIP
          >>> run.sample(16, steps=2).save("grid.png")  # doctest: +SKIP
        """
        if num < 1 or steps < 1:
            raise ValueError(f"{num=} and {steps=} must be at least 1")
        check_seed(seed)
        options: dict[str, Any] = {"label": label, "ema": ema, "prompt": prompt}
        options |= {"guidance": guidance}
        if first is not None:
            options["first"] = first
        return self._sampler(num, steps=steps, seed=seed, **options)

    @functools.cached_property
    def _sampler(self) -> SampleFn:
        if self.make_sampler is None:
            raise ValueError(
                f"run {self.name!r} has no sampler: load it with scm_jax.load_run"
            )
        return self.make_sampler(self)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, state={self.state!r})"

    def _repr_html_(self) -> str:
        facts = {"state": self.state, "directory": str(self.path)}
        if "parameters" in self.summary:
            facts["parameters"] = f"{self.summary['parameters']:,}"
        metrics = self.metrics
        if len(metrics):
            last = metrics.drop(columns="wall_time").ffill().iloc[-1].items()
            facts |= {k: f"{v:.6g}" for k, v in last if isinstance(v, numbers.Real)}
        config = flatten(self.config.to_dict())
        return (
            f"<h4>{html.escape(self.name)}</h4>{_html_table(facts)}"
            f"<details><summary>config, {len(config)} keys</summary>"
            f"{_html_table(config)}</details>"
        )


def load_run(
    path: str | os.PathLike, make_sampler: Callable[[Run], SampleFn] | None = None
) -> Run:
    """Opens a run directory for reading.

    Raises:
      FileNotFoundError: there is no such directory, or it holds no ``config.json``; the
        message names the runs directly below it, if there are any.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"no run at {path}: there is no such directory")
    if not (path / "config.json").is_file():
        below = sorted(str(p.parent) for p in path.glob("*/config.json"))
        hint = f"; runs below it: {', '.join(below[:10])}" if below else ""
        raise FileNotFoundError(f"no run at {path}: it holds no config.json{hint}")
    return Run(path, make_sampler)


@dataclasses.dataclass(frozen=True)
class Salvaged:
    """A run as far as it can be read."""

    run: Run
    config: dict[str, Any]  # flat
    metrics: pd.DataFrame
    results: list[dict[str, Any]]
    summary: dict[str, Any]
    problems: list[str]  # what was left out, each with its file and line


def salvage(run: Run) -> Salvaged:
    """Reads what it can of ``run``; never fails for what it finds in files."""
    problems: list[str] = []
    files = run.dir
    rows = [
        row
        for row in read_rows(files.metrics_path, problems)
        if any(isinstance(row.get(key), int) for key in ("step", "resume_step"))
    ]
    return Salvaged(
        run,
        flatten(read_object(files.config_path, problems)),
        to_frame(merge_steps(rows)),
        read_rows(files.results_path, problems),
        read_object(files.summary_path, problems),
        problems,
    )


def _html_table(values: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><th style='text-align:left'>{html.escape(str(key))}</th>"
        f"<td style='text-align:left'>{html.escape(str(value))}</td></tr>"
        for key, value in values.items()
    )
    return f"<table>{rows}</table>"
