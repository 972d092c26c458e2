"""Published results, as ``data/reference/published.csv`` has them.

They were measured by others with their own samplers, features and reference statistics:
something to draw beside one's own numbers, not to compute with them.
"""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

from scm_jax.cost.counts import effective_sampling_compute
from scm_jax.files import shipped

PATH = shipped.folder("data") / "reference" / "published.csv"


@dataclasses.dataclass(frozen=True)
class PublishedResult:
    """One number of a paper.

    Attributes:
      dataset: ``cifar10``, ``imagenet64`` or ``imagenet512``.
      method: such as ``scd``.
      size: name of the network's size, empty where there is one only.
      params: parameters of the network.
      steps: steps of the sampler.
      nfe: evaluations of the network, two each under classifier-free guidance.
      guidance: its scale; 1 for none.
      metric: ``fid`` or ``fd_dinov2``.
      value: the number.
      source: where it was published.
    """

    dataset: str
    method: str
    size: str
    params: int
    steps: int
    nfe: int
    guidance: float
    metric: str
    value: float
    source: str

    @property
    def sampling_compute(self) -> float:
        """Billions of parameters times evaluations."""
        return effective_sampling_compute(self.params, self.nfe)


def load_published(
    dataset: str = "", metric: str = "", path: Path = PATH
) -> list[PublishedResult]:
    """The published results of a data set and a metric, all where these are empty.

    Raises:
      FileNotFoundError: the table is not there: it is part of the repository, not of
        the installed package.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: published results are part of the repository; "
            "install a checkout with `pip install -e .`"
        )
    with path.open(newline="", encoding="utf-8") as file:
        found = [_result(row) for row in csv.DictReader(file)]
    return [r for r in found if dataset in ("", r.dataset) and metric in ("", r.metric)]


def _result(row: dict[str, str]) -> PublishedResult:
    return PublishedResult(
        dataset=row["dataset"],
        method=row["method"],
        size=row["size"],
        params=round(float(row["params_million"]) * 1e6),
        steps=int(row["steps"]),
        nfe=int(row["nfe"]),
        guidance=float(row["guidance"]),
        metric=row["metric"],
        value=float(row["value"]),
        source=row["source"],
    )
