"""Conventions of pixels, against the published rules written out."""

import jax
import numpy as np
import pytest

from scm_jax.datasets import pixels

LEVELS = np.arange(256, dtype=np.uint8)


def test_rgb_is_truncated_from_halves():
    """``127.5 x + 128``: a level is reached half a level early, and comes back."""
    x = pixels.pm1_from_uint8(LEVELS)
    assert x[0] == -1 and x[255] == 1
    np.testing.assert_array_equal(pixels.pm1_to_uint8(x), LEVELS)
    between = (LEVELS[:-1] + 0.49) / 127.5 - 1
    np.testing.assert_array_equal(pixels.pm1_to_uint8(between), LEVELS[:-1])
    between = (LEVELS[:-1] + 0.51) / 127.5 - 1
    np.testing.assert_array_equal(pixels.pm1_to_uint8(between), LEVELS[1:])


def test_decoded_latents_are_truncated_from_whole_levels():
    """``255 clamp(x, 0, 1)``: all that is below a level is the one before."""
    for part in (0.01, 0.5, 0.99):
        x = (LEVELS[:-1] + part) / 255
        np.testing.assert_array_equal(pixels.unit_to_uint8(x), LEVELS[:-1])
    assert pixels.unit_from_uint8(LEVELS)[255] == 1


@pytest.mark.parametrize("name", ["pm1", "unit"])
def test_values_outside_are_clipped_inside_jit(name):
    to_uint8 = pixels.PIXEL_RANGES[name].to_uint8
    found = jax.jit(to_uint8)(np.array([-9.0, 9.0], np.float32))
    assert found.dtype == np.uint8 and found.tolist() == [0, 255]
