"""Text where numbers belong is named, whatever reads the table."""

import matplotlib
import numpy as np
import pandas as pd
import pytest

from scm_jax.analysis import columns
from scm_jax.analysis.ablation import compare
from scm_jax.analysis.laws import fit, frontier, law, ratio
from scm_jax.analysis.plots import curves, sampling
from scm_jax.analysis.plots import laws as law_plots

matplotlib.use("agg")

FID = "2_steps/fid"
TABLE = pd.DataFrame({"parameters": [1e6, 2e6, 4e6], "run_id": ["a", "b", "c"]}).assign(
    images=1e6, flops=1e12, flops_per_image=6e6, teacher_id="t", t=1.0, seed=0
)

READERS = {
    "fit_scaling": lambda f: fit.fit_scaling(f, FID),
    "frontier": lambda f: frontier.frontier(f, "flops", FID),
    "sampling_points": lambda f: frontier.sampling_points(f, "fid"),
    "ratio_by_size": lambda f: ratio.ratio_by_size(f, FID, "t"),
    "plot_frontier": lambda f: law_plots.plot_frontier(f, "flops", FID),
    "sampling_lines": lambda f: sampling.sampling_lines(f, FID, "nfe"),
    "run_curves": lambda f: curves.run_curves(f, FID, f, "images"),
    "spikes": lambda f: curves.spikes(f, FID),
    "compare": lambda f: compare.compare(f, FID),
}


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_text_in_a_column_of_numbers_is_named(reader):
    frame = TABLE.assign(**{FID: [3.0, "diverged", 4.0]})
    with pytest.raises(ValueError, match="'2_steps/fid' must hold numbers; 'diverged'"):
        reader(frame)


def test_numbers_as_text_and_gaps_are_numbers():
    frame = TABLE.assign(flops=["1e12", None, "2"])
    found = columns.numeric(frame, "flops")
    np.testing.assert_array_equal(found["flops"], [1e12, np.nan, 2])
    assert frame["flops"][0] == "1e12"


def test_text_in_an_array_is_named():
    with pytest.raises(ValueError, match="loss must be numbers: .*'bad'"):
        law.fit_chinchilla([1, 2, 3], [1, 2, 3], [1, "bad", 3])
