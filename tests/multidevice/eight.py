"""One process with eight simulated devices for all tests that need several."""

import functools
import importlib
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import jax

from tests.hang import HANG


def _start():
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    jax.config.update("jax_numpy_rank_promotion", "raise")


@functools.cache
def _pool():
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _start)


def _call(module, name, args, kwargs):
    return getattr(importlib.import_module(module), name).__wrapped__(*args, **kwargs)


def on_eight_devices(function):
    """Runs a test, or a part of one, there: arguments, result and errors travel."""

    @functools.wraps(function)
    def call(*args, **kwargs):
        place = function.__module__, function.__name__
        return _pool().submit(_call, *place, args, kwargs).result(HANG)

    return call
