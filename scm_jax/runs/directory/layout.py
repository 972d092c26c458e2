"""The run directory: what a run leaves behind (docs/architecture.md lists the files).

``config.json`` is written first and says whose directory it is; ``summary.json`` is
written last: the run is done. A directory has one writer.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scm_jax.files.atomic import write_atomically
from scm_jax.files.jsonl import append_row, canonical_json, write_json
from scm_jax.runs.directory import linked_runs
from scm_jax.runs.directory.run_configs import ADDED_KEYS, config_texts, is_neutral

# Packages whose versions can change numbers.
_PACKAGES = (
    *("scm_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy"),
    *("scipy", "grain", "tensorflow-datasets", "ml_collections"),
)


def _below(name: str) -> Any:
    return property(lambda run_dir: run_dir.path / name)


class RunDir:
    """The paths of a run directory, and its files that are written by name."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)

    config_path = _below("config.json")
    metrics_path = _below("metrics.jsonl")
    results_path = _below("results.jsonl")
    summary_path = _below("summary.json")
    data_path = _below("data.json")
    text_path = _below("text.json")
    checkpoints_dir = _below("checkpoints")
    ema_snapshots_dir = _below("ema_snapshots")
    nonfinite_dir = _below("nonfinite")

    @property
    def is_done(self) -> bool:
        """Whether the run has ended."""
        return self.summary_path.exists()

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Makes the directory and claims it for ``config``, before the first step.

        The same config again is a resume. ``NEUTRAL_KEYS`` may differ, and the places
        of other runs if they are the same runs: the file holds their newest values.

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
                f"{self.path} has checkpoints but no config.json, so their config is "
                "unknown: choose another work directory, or move them away"
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
        ours, theirs = (ADDED_KEYS | config_texts(c) for c in (config, found))
        differing = [
            f"  {key}: {theirs.get(key, '(absent)')} there, "
            f"{ours.get(key, '(absent)')} here"
            for key in sorted(ours.keys() | theirs.keys())
            if ours.get(key) != theirs.get(key)
            and not (is_neutral(key) or key in linked_runs.RUN_KEYS)
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
                + "\nChoose another work directory, or undo these changes to resume."
            )


def environment() -> dict[str, Any]:
    """Versions, commit (None outside a checkout), Python and devices."""
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
    """Key -> text of what the processes of one run must have in common.

    That is the config without the place of the data, the versions of Python and of the
    packages that compute, and a hash of each source file of this one.
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
    versions: dict[str, str | None] = dict.fromkeys(_PACKAGES)
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


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
