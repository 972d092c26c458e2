"""Statistics of several processes, simulated and of this one."""

import numpy as np

from scm_jax.evaluation.metrics.frechet import empty_stats, feature_stats, merge_stats
from scm_jax.evaluation.references.gathering import all_processes


def shards(sizes, dim=5):
    rng = np.random.default_rng(0)
    return [rng.standard_normal((n, dim)) * 1e-3 + 7.1 for n in sizes]


def run_processes(parts):
    """What every process gets, from one pass to collect and one to answer."""
    sent = []

    def collect(bits):
        assert bits.dtype == np.uint32
        sent.append(bits)
        return bits[None]

    for part in parts:
        all_processes(part, collect)
    together = np.stack(sent)
    return [all_processes(part, lambda bits: together) for part in parts]


def test_all_processes_get_the_same_union():
    data = shards([40, 1, 0, 23])
    parts = [feature_stats(x) for x in data]
    results = run_processes(parts)
    merged = parts[0]
    for part in parts[1:]:
        merged = merge_stats(merged, part)
    for result in results:
        assert result.count == 64
        np.testing.assert_array_equal(result.mean, merged.mean)
        np.testing.assert_array_equal(result.scatter, merged.scatter)
    whole = feature_stats(np.concatenate(data))
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-14)
    error = np.abs(merged.scatter - whole.scatter).max()
    assert error < 1e-10 * np.abs(whole.scatter).max()


def test_one_process_keeps_its_bits():
    stats = feature_stats(shards([9])[0])
    result = all_processes(stats)
    assert result.count == 9
    np.testing.assert_array_equal(result.mean, stats.mean)
    np.testing.assert_array_equal(result.scatter, stats.scatter)
    assert all_processes(empty_stats(3)).count == 0
