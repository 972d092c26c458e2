"""Published results, as ``data/reference/published.csv`` has them.

They were measured by others with their own samplers, features and reference statistics:
something to draw beside one's own numbers, not to compute with them.
"""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import Any

from scm_jax.cost.counts import effective_sampling_compute
from scm_jax.files import shipped

PATH = shipped.folder("data") / "reference" / "published.csv"


@dataclasses.dataclass(frozen=True)
class PublishedResult:
    """One number of a paper."""

    dataset: str  # cifar10, imagenet64 or imagenet512
    method: str  # such as scd
    size: str  # name of the network's size, empty where there is one only
    params: int  # parameters of the network
    steps: int  # of the sampler
    nfe: int  # network evaluations, two a step under classifier-free guidance
    guidance: float  # its scale; 1 for none
    metric: str  # fid or fd_dinov2
    value: float
    source: str  # where it was published

    @property
    def sampling_compute(self) -> float:
        """Billions of parameters times evaluations."""
        return effective_sampling_compute(self.params, self.nfe)


def load_published(
    dataset: str = "", metric: str = "", path: Path = PATH
) -> list[PublishedResult]:
    """The published results of a dataset and a metric; all where these are empty."""
    with path.open(newline="", encoding="utf-8") as file:
        found = [_result(row) for row in csv.DictReader(file)]
    return [r for r in found if dataset in ("", r.dataset) and metric in ("", r.metric)]


def _result(row: dict[str, str]) -> PublishedResult:
    values: dict[str, Any] = {"params": round(float(row["params_million"]) * 1e6)}
    values |= {key: int(row[key]) for key in ("steps", "nfe")}
    values |= {key: float(row[key]) for key in ("guidance", "value")}
    values |= {
        key: row[key] for key in ("dataset", "method", "size", "metric", "source")
    }
    return PublishedResult(**values)
