"""The run directory: what a run leaves behind, and how it is loaded again.

    DIR/config.json      resolved config, written first: whose directory this is
    DIR/metrics.jsonl    one object a line, see ``writers.JsonlWriter``
    DIR/results.jsonl    one object per evaluated row
    DIR/data.json        which data it was trained on, see ``training_data``
    DIR/summary.json     written last and atomically: the run is done
    DIR/events/, checkpoints/, ema_snapshots/, samples/, nonfinite/

Analysis reads only these files. A directory has one writer.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
import html
import importlib.metadata
import io
import json
import numbers
import os
import platform
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scm_jax.files import user_paths
from scm_jax.files.atomic import write_atomically
from scm_jax.files.jsonl import (
    append_row,
    canonical_json,
    flatten,
    merge_steps,
    read_rows,
    to_frame,
    write_json,
)
from scm_jax.runs.directory import linked_runs
from scm_jax.runs.directory.run_configs import config_texts, is_neutral
from scm_jax.runs.directory.writers import image_grid
from scm_jax.types import check_seed

if TYPE_CHECKING:
    import ml_collections
    import pandas as pd
    import PIL.Image

# Packages whose versions can change numbers.
_PACKAGES = (
    "scm_jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "scipy",
    "grain",
    "tensorflow-datasets",
    "ml_collections",
)


@dataclasses.dataclass(frozen=True)
class RunDir:
    """The paths of a run directory and everything that is written there by name."""

    path: Path

    def __init__(self, path: str | os.PathLike):
        object.__setattr__(self, "path", Path(path))

    @property
    def config_path(self) -> Path:
        return self.path / "config.json"

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def results_path(self) -> Path:
        return self.path / "results.jsonl"

    @property
    def summary_path(self) -> Path:
        return self.path / "summary.json"

    @property
    def data_path(self) -> Path:
        return self.path / "data.json"

    @property
    def events_dir(self) -> Path:
        return self.path / "events"

    @property
    def checkpoints_dir(self) -> Path:
        return self.path / "checkpoints"

    @property
    def ema_snapshots_dir(self) -> Path:
        return self.path / "ema_snapshots"

    @property
    def samples_dir(self) -> Path:
        return self.path / "samples"

    @property
    def nonfinite_dir(self) -> Path:
        return self.path / "nonfinite"

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Makes the directory and claims it for ``config``, before the first step.

        Running the same config again is a resume and changes nothing. ``NEUTRAL_KEYS``
        may differ, and the places of other runs as long as they are the same runs: the
        file then holds their newest values.

        Raises:
          ValueError: the directory belongs to another config (the message lists the
            keys that differ, with both values), has checkpoints but no config, or
            ``config`` holds a value that JSON cannot carry.
        """
        text = canonical_json(config)
        self.check_config(config)
        self.path.mkdir(parents=True, exist_ok=True)
        linked_runs.write_links(self.path, config)
        if not self.config_path.exists() or (
            self.config_path.read_text(encoding="utf-8") != text
        ):
            write_atomically(self.config_path, text)

    def check_config(self, config: Mapping[str, Any]) -> None:
        """Raises ValueError where ``write_config`` would; writes nothing."""
        # In this order: another process may be making both just now, the config first.
        has_checkpoints = self.checkpoints_dir.is_dir() and any(
            path.name.isdigit() for path in self.checkpoints_dir.iterdir()
        )
        if self.config_path.exists():
            self._refuse_other_config(config)
        elif has_checkpoints:
            raise ValueError(
                f"{self.path} has checkpoints but no config.json, so nobody can tell "
                "whose they are: take another work directory, or move them away"
            )

    def read_config(self) -> dict[str, Any]:
        """The config as plain dicts and lists."""
        return json.loads(self.config_path.read_text(encoding="utf-8"))

    def append_result(self, row: Mapping[str, Any]) -> None:
        """Appends one evaluated row to ``results.jsonl``; NaN becomes null."""
        self.path.mkdir(parents=True, exist_ok=True)
        append_row(self.results_path, row)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes ``summary.json``: the mark that the run is done."""
        write_json(self.summary_path, summary)

    def _refuse_other_config(self, config: Mapping[str, Any]) -> None:
        try:
            found = self.read_config()
        except ValueError as error:
            raise ValueError(f"{self.config_path} is not JSON: {error}") from error
        ours, theirs = config_texts(config), config_texts(found)
        differing = [
            f"  {key}: {theirs.get(key, '(absent)')} there, "
            f"{ours.get(key, '(absent)')} here"
            for key in sorted(ours.keys() | theirs.keys())
            if ours.get(key) != theirs.get(key)
            and not is_neutral(key)
            and key not in linked_runs.RUN_KEYS
        ]
        here, there = map(linked_runs.run_places, (config, found))
        for key in linked_runs.RUN_KEYS:
            places = there.get(key, ""), here.get(key, "")
            if other := linked_runs.other_run(self.path, key, *places):
                differing.append(f"  {key}: {other}")
        if differing:
            raise ValueError(
                f"{self.path} belongs to another config; these keys differ:\n"
                + "\n".join(differing)
                + "\nTake another work directory, or undo these changes to resume."
            )


def environment() -> dict[str, Any]:
    """What ran: versions, commit (None outside a checkout), Python, devices."""
    import jax

    commit, dirty = _git_state()
    return {
        "versions": _versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "commit": commit,
        "dirty": dirty,
        "device": jax.devices()[0].device_kind,
        "backend": jax.default_backend(),
        "device_count": jax.device_count(),
        "process_count": jax.process_count(),
    }


def identity(config: Mapping[str, Any]) -> dict[str, str]:
    """Key -> text of all that the processes of one run must have in common.

    The config but for where the data lies, the versions of Python and of the packages
    that compute, and a hash of each source file of this one. Needs no device.
    """
    source = Path(__file__).parents[2]
    facts = {
        f"config.{k}": v for k, v in config_texts(config).items() if k != "dataset.root"
    }
    facts["python"] = platform.python_version()
    facts |= {f"version of {name}": str(v) for name, v in _versions().items()}
    for file in sorted(source.rglob("*.py")):
        digest = hashlib.sha256(file.read_bytes()).hexdigest()[:10]
        facts[f"code of {file.relative_to(source.parent).as_posix()}"] = digest
    return facts


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return versions


SampleFn = Callable[..., tuple[np.ndarray, np.ndarray | None]]


@dataclasses.dataclass(frozen=True, eq=False)
class Samples:
    """Samples of a run.

    Attributes:
      x: ``(n, *sample_shape)`` float32, in the scale of the training data.
      pixels: ``(n, h, w, c)`` uint8, or None where there is nothing to look at.
    """

    x: np.ndarray
    pixels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.x)

    def grid(
        self, columns: int | None = None, scale: int | None = None
    ) -> PIL.Image.Image:
        """The samples as one picture; small images are enlarged by default."""
        if self.pixels is None:
            raise ValueError(
                "these samples are vectors, not images: look at .x instead"
            )
        return image_grid(self.pixels, columns, scale or _scale(self.pixels))

    def save(self, path: str | os.PathLike, columns: int | None = None) -> None:
        """Writes ``.png`` (the grid) or ``.npy`` (``x``), by the ending of ``path``."""
        path = samples_file(path)
        try:
            if path.suffix == ".png":
                self.grid(columns).save(path)
            else:
                np.save(path, self.x)
        except OSError as error:  # a full disk; NumPy's does not name the file
            raise OSError(f"cannot write {path}: {error}") from error

    def _repr_png_(self) -> bytes | None:
        if self.pixels is None:
            return None
        buffer = io.BytesIO()
        self.grid().save(buffer, format="PNG")
        return buffer.getvalue()

    def _repr_html_(self) -> str:
        about = html.escape(f"{len(self)} samples of shape {self.x.shape[1:]}")
        png = self._repr_png_()
        if png is None:
            mean, std = float(np.mean(self.x)), float(np.std(self.x))
            return f"<p>{about}: mean {mean:.4g}, standard deviation {std:.4g}</p>"
        data = base64.b64encode(png).decode()
        return f'<img alt="{about}" src="data:image/png;base64,{data}">'


def samples_file(path: str | os.PathLike) -> Path:
    """``path`` of a file of samples, which can be written.

    Raises:
      ValueError: it ends neither in ``.png`` nor in ``.npy``.
      OSError: no file can be made there.
    """
    if Path(path).suffix not in (".png", ".npy"):
        raise ValueError(
            f"cannot save samples as {Path(path).name!r}: legal are .png, .npy"
        )
    return user_paths.writable(path)


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A run directory, read fresh at every access, so that a live run can be watched.

    Attributes:
      path: the directory.
      make_sampler: ``make_sampler(run)`` gives a function
        ``(num, *, steps, seed, label, ema) -> (x, pixels or None)``; handed in by the
        commands, since a run knows no network.
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

        Rows that a resumed run went back behind are dropped, and of two values for one
        step the later one counts.
        """
        return to_frame(merge_steps(read_rows(self.dir.metrics_path)))

    @property
    def results(self) -> pd.DataFrame:
        """Every row that an evaluation appended, in the order of evaluation."""
        return to_frame(read_rows(self.dir.results_path))

    @property
    def summary(self) -> dict[str, Any]:
        """The summary, empty as long as the run is not done."""
        path = self.dir.summary_path
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    @property
    def state(self) -> str:
        """``done``, ``nonfinite`` (stopped on NaN), ``started`` or ``new``."""
        if self.dir.summary_path.exists():
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
    ) -> Samples:
        """Draws samples from the newest checkpoint.

        Args:
          num: how many. Sample ``i`` depends on ``seed`` and ``i`` only.
          steps: sampling steps.
          seed: of the noise.
          label: class of all samples; None draws from all classes.
          ema: name of the averaged parameters; None takes the run's first.

        Example:
          >>> run = scm_jax.load_run("runs/demo/scd")  # doctest: +SKIP
          >>> run.sample(16, steps=2).save("grid.png")  # doctest: +SKIP
        """
        if num < 1 or steps < 1:
            raise ValueError(f"{num=} and {steps=} must be at least 1")
        check_seed(seed)
        x, pixels = self._sampler(num, steps=steps, seed=seed, label=label, ema=ema)
        return Samples(np.asarray(x, np.float32), pixels)

    @functools.cached_property
    def _sampler(self) -> SampleFn:
        if self.make_sampler is None:
            raise ValueError(
                f"run {self.name!r} was loaded without a sampler: load it with "
                "scm_jax.load_run"
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


def _git_state() -> tuple[str | None, bool | None]:
    """Commit and whether tracked files differ from it; None outside a checkout."""

    def git(*args: str) -> str | None:
        command = ["git", "-C", str(Path(__file__).parent), *args]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=10)
        except (FileNotFoundError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # An installed copy may lie inside somebody else's checkout: is it tracked there?
    if git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None, None
    status = git("status", "--porcelain", "--untracked-files=no")
    return git("rev-parse", "HEAD"), None if status is None else bool(status)


def _scale(pixels: np.ndarray) -> int:
    return max(1, 64 // max(pixels.shape[1:3]))


def _html_table(values: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><th style='text-align:left'>{html.escape(str(key))}</th>"
        f"<td style='text-align:left'>{html.escape(str(value))}</td></tr>"
        for key, value in values.items()
    )
    return f"<table>{rows}</table>"
