"""Which runs are worth their cost: the Pareto front of quality against compute.

Training FLOPs are paid once; sampling compute, billions of parameters times network
evaluations (arXiv 2410.11081v2, Fig. 1), with every sample.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from scm_jax.analysis import columns
from scm_jax.files.optional import require

if TYPE_CHECKING:
    import pandas as pd


def pareto_front(cost: ArrayLike, quality: ArrayLike) -> np.ndarray:
    """Indices of the points that no other beats in both, by growing cost.

    Small is good in both. The first of equal points counts; NaN never does.

    Example:
      >>> pareto_front([1.0, 2.0, 3.0, 4.0], [9.0, 5.0, 6.0, 4.0])
      array([0, 1, 3])
    """
    c, q = np.asarray(cost, float), np.asarray(quality, float)
    if c.shape != q.shape:
        raise ValueError(f"{c.size} costs for {q.size} qualities")
    order = np.lexsort((q, c))
    order = order[np.isfinite(c[order]) & np.isfinite(q[order])]
    if not order.size:
        return order
    before = np.concatenate([[np.inf], np.minimum.accumulate(q[order])[:-1]])
    return order[q[order] < before]


def frontier(frame: pd.DataFrame, cost: str, quality: str) -> pd.DataFrame:
    """The rows of a table that are worth their cost, by growing cost.

    Args:
      frame: such as ``load_runs`` (cost ``flops``, quality ``2_steps/...``) or
        ``load_results`` (cost ``sampling_compute`` or ``nfe``, quality its metric).
      cost, quality: columns, small is good.

    Raises:
      ValueError: a column is missing or holds text, or no row has both.
    """
    numbers = columns.numeric(frame, cost, quality)
    rows = pareto_front(numbers[cost], numbers[quality])
    if not rows.size:
        raise ValueError(f"no row has both {cost!r} and {quality!r}")
    return frame.iloc[rows]


def sampling_points(frame: pd.DataFrame, metric: str) -> pd.DataFrame:
    """One row per run and number of steps, from the columns ``{steps}_steps/metric``.

    For consistency models, which evaluate the network once a step, as guidance is an
    input. Rows of other samplers come from ``load_results``, which counts evaluations.

    Args:
      frame: one row per run, as ``load_runs`` returns it.
      metric: such as ``frechet_distance``.

    Returns:
      ``run_id``, ``parameters``, ``steps``, ``nfe``, ``sampling_compute``, the metric.

    Raises:
      ValueError: no column is of this metric.
    """
    pandas = require("pandas", "a table of samplings", "scm_jax[analysis]")
    suffix = f"_steps/{metric}"
    found = [c for c in map(str, frame.columns) if c.endswith(suffix)]
    if not found:
        raise ValueError(f"the table has no column N{suffix}")
    frame = columns.numeric(frame, "parameters", *found)
    parts = []
    for column in found:
        steps = int(column.removesuffix(suffix))
        rows = frame[frame[column].notna()]
        if "objective" in rows.columns:
            rows = rows[rows["objective"] != "diffusion"]
        size = rows["parameters"].to_numpy(float)
        part = {"run_id": rows.index, "parameters": size, "steps": steps, "nfe": steps}
        part["sampling_compute"] = size / 1e9 * steps
        parts.append(pandas.DataFrame({**part, metric: rows[column].to_numpy()}))
    return pandas.concat(parts, ignore_index=True)
