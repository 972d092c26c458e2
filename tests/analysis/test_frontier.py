"""Fronts of points placed by hand."""

import numpy as np
import pandas as pd
import pytest

from scm_jax.analysis.laws.frontier import frontier, pareto_front, sampling_points


def test_points_that_another_beats_in_both_are_no_part():
    cost = [4, 1, 2, 3, 2, 5]
    quality = [4, 9, 7, 8, 6, 4]
    np.testing.assert_array_equal(pareto_front(cost, quality), [1, 4, 0])


def test_equal_points_count_once_and_nan_never():
    cost = [1.0, 1.0, np.nan, 2.0, 3.0]
    quality = [5.0, 5.0, 1.0, np.nan, 4.0]
    np.testing.assert_array_equal(pareto_front(cost, quality), [0, 4])
    assert pareto_front([], []).size == 0


def test_the_front_of_a_table():
    columns = {"flops": [3e12, 1e12, 2e12], "fid": [2.0, 5.0, 6.0]}
    frame = pd.DataFrame(columns, index=["a", "b", "c"])
    assert list(frontier(frame, "flops", "fid").index) == ["b", "a"]
    with pytest.raises(ValueError, match="no column 'macs'"):
        frontier(frame, "macs", "fid")
    with pytest.raises(ValueError, match="no row has both"):
        frontier(frame.assign(fid=np.nan), "flops", "fid")


def test_sampling_compute_is_parameters_times_evaluations():
    frame = pd.DataFrame(
        {
            "parameters": [1_500_000_000, 300_000_000, 300_000_000],
            "objective": ["scd", "sct", "diffusion"],
            "1_steps/fid": [2.3, 4.0, 9.0],
            "2_steps/fid": [1.9, np.nan, 8.0],
        },
        index=["xxl", "s", "teacher"],
    )
    points = sampling_points(frame, "fid")
    found = points[["run_id", "nfe", "sampling_compute", "fid"]].to_numpy().tolist()
    assert found == [["xxl", 1, 1.5, 2.3], ["s", 1, 0.3, 4.0], ["xxl", 2, 3.0, 1.9]]
    with pytest.raises(ValueError, match="no column N_steps/kid"):
        sampling_points(frame, "kid")
