"""Synthetic data with closed forms: draws without end from ``trigflow.exact``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from scm_jax.datasets.order import BatchIterator, process_rows
from scm_jax.trigflow.exact import Gaussian, GaussianMixture
from scm_jax.types import Batch, DatasetInfo, check_seed, lookup


@dataclasses.dataclass(frozen=True)
class SyntheticDataset:
    """Draws without end from a distribution; methods are those of ``Dataset``."""

    info: DatasetInfo
    closed_form: Gaussian | GaussianMixture
    stream: int = 0  # one of several independent streams of the same seed

    def iterator(
        self, batch_size: int, seed: int, process_index: int = 0, process_count: int = 1
    ) -> BatchIterator:
        check_seed(seed)
        rows = process_rows(batch_size, process_index, process_count)

        def batch_at(index: int) -> Batch:
            # The whole batch is drawn everywhere and cut: cheap, and the same for any
            # number of processes.
            rng = np.random.default_rng([seed, self.stream, index])
            x: Any = self.closed_form.sample(rng, batch_size)  # numpy, on the host
            return Batch(x=x[rows])

        return BatchIterator(batch_at)

    def to_batch(self, raw: Batch) -> Batch:
        return raw  # drawn as the training wants it

    def arrays(self) -> tuple[np.ndarray, np.ndarray | None]:
        raise ValueError(
            f"the dataset {self.info.name!r} is drawn without end and has no list of "
            "items; use iterator, or closed_form.sample"
        )


_STREAMS = {"train": 0, "test": 1}


def _make(
    name: str, split: str, closed_form: Gaussian | GaussianMixture, sigma_data: float
) -> SyntheticDataset:
    stream = lookup(_STREAMS, split, f"split of dataset {name!r}")
    if not sigma_data > 0:
        raise ValueError(
            f"sigma_data of dataset {name!r} must be positive: {sigma_data}"
        )
    info = DatasetInfo(
        name=name,
        sample_shape=(closed_form.dim,),
        num_classes=0,
        sigma_data=sigma_data,
        num_items=0,
        description=(
            f"{closed_form}, unscaled: standard deviation per element "
            f"{closed_form.element_std():.4g}; sigma_data {sigma_data:g} is the noise's"
        ),
    )
    return SyntheticDataset(info, closed_form, stream)


def make_gaussian(
    split: str = "train",
    *,
    mean: Sequence[float] = (0.25, -0.15),
    std: float = 0.3,
    sigma_data: float = 0.5,
) -> SyntheticDataset:
    """Normal data; mean not 0 and std not ``sigma_data``, since 0 and 1 hide faults."""
    closed_form = Gaussian(tuple(float(m) for m in mean), float(std))
    return _make("gaussian", split, closed_form, float(sigma_data))


def make_mixture(
    split: str = "train",
    *,
    weights: Sequence[float] = (0.4, 0.6),
    means: Sequence[float | Sequence[float]] = (-0.5, 0.4),
    stds: Sequence[float] = (0.1, 0.2),
    sigma_data: float = 0.5,
) -> SyntheticDataset:
    """A mixture, by default of two components in one dimension."""
    closed_form = GaussianMixture(
        weights=tuple(float(weight) for weight in weights),
        means=tuple(tuple(float(m) for m in np.atleast_1d(mean)) for mean in means),
        stds=tuple(float(std) for std in stds),
    )
    return _make("mixture", split, closed_form, float(sigma_data))
