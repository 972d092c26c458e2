"""Files of runs as data: which config keys decide a result, and their hash."""

from __future__ import annotations

import fnmatch
import functools
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scm_jax.files.jsonl import canonical_json, flatten

# Config keys (patterns over dotted names) that cannot change the result of a run: they
# are left out of its hash, and a resumed run may change them.
NEUTRAL_KEYS = (
    "name",
    "dataset.root",
    "dataset.changed",
    "log.*",
    "checkpoint.*",
    # What is measured on the way and how samples are drawn changes no parameter.
    "eval.*",
    "sampling.*",
    # Another layout over devices changes rounding only, and a run may move to others.
    "mesh.*",
)

# Keys that were added later, with the value that means what was done before: at this
# value they are left out of the hash, so that the ids of runs do not change.
ADDED_KEYS = {
    "network.space_to_depth": "1",
    "network.tower_width": "128",
    "network.tower_depth": "2",
    "network.cross_attention": "true",
    "dataset.captioned": "false",
    "dataset.states": '""',
    "network.qk_norm": '"pixel"',
    "network.use_frames": "false",
    "dataset.frame_rate": "0.0",
    "objective.first_frames": "0",
    "network.activation": '"silu"',
    "network.positions": '"learned"',
    "network.factorized": "false",
    "network.patch_sides": "[]",
    "objective.segments": "1",
    "matching.form": '"vsd"',
    "matching.P_mean": "0.4",
    "matching.P_std": "2.0",
    "matching.critic_P_mean": "-0.8",
    "matching.critic_P_std": "1.6",
    "matching.simulated": "1",
    "matching.learned_weighting": "true",
    "matching.weight": "0.0",
    "optimizer.base_width": "0",
    "critic.learning_rate": "0.0",
    "critic.student_every": "1",
    "critic.half_life_images": "0.0",
}

# Config keys that hold the run directory of another run.
RUN_KEYS = ("init.run", "teacher.run")


def read_whole_object(path: str | os.PathLike) -> dict[str, Any]:
    """A JSON object; empty where there is no file.

    Raises:
      ValueError: it is not JSON, or no object.
    """
    try:
        found = json.loads(Path(path).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a {type(found).__name__}, not an object")
    return found


def read_object(path: Path, problems: list[str] | None = None) -> dict[str, Any]:
    """A JSON object; empty where there is none, which is told to ``problems``."""
    try:
        return read_whole_object(path)
    except (OSError, ValueError) as error:
        if problems is not None:
            problems.append(str(error))
        return {}


def config_hash(config: Mapping[str, Any]) -> str:
    """Ten hexadecimal digits of SHA-256 over all keys but ``NEUTRAL_KEYS``.

    ``ADDED_KEYS`` count only at other values.
    """
    texts = {
        key: text
        for key, text in config_texts(config).items()
        if not is_neutral(key) and ADDED_KEYS.get(key) != text
    }
    return hashlib.sha256(canonical_json(texts).encode()).hexdigest()[:10]


def config_texts(config: Mapping[str, Any]) -> dict[str, str]:
    """Dotted key -> JSON text of its value, so that 1 and 1.0 stay different."""
    return flatten(json.loads(canonical_json(config)), leaf=json.dumps)


@functools.cache
def is_neutral(key: str) -> bool:
    """Whether a dotted config key is one of ``NEUTRAL_KEYS``."""
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in NEUTRAL_KEYS)


def ema_names(ema: Mapping[str, Any]) -> list[str]:
    """Names of the EMAs that the section ``ema`` of a config keeps, in its order.

    Example:
      >>> ema_names({"rel_std": (0.05, 0.10), "half_life_images": (500_000,)})
      ['0.05', '0.1', 'half_life_500000']
    """
    half_lives = [f"half_life_{n:g}" for n in ema.get("half_life_images") or ()]
    return [f"{rel_std:g}" for rel_std in ema.get("rel_std") or ()] + half_lives


def sampling_ema(ema: Mapping[str, Any]) -> str:
    """Name of the EMA that samples: ``ema.sampling``, or the first, or ""."""
    return ema.get("sampling") or next(iter(ema_names(ema)), "")
