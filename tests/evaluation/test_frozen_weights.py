"""Small frozen networks are the recorded ones; other weights are refused."""

import numpy as np
import pytest

from scm_jax.evaluation.features import (
    clips_reader,
    digits_classifier,
    shapes_classifier,
    shapes_reader,
    speech_reader,
)
from scm_jax.files.tensors import tensors_sha256

# Network -> bytes that its file may have, and the dtype in which it computes.
NETWORKS = {
    clips_reader: (410_000, np.float32),
    digits_classifier: (100_000, np.float64),
    shapes_classifier: (300_000, np.float32),
    shapes_reader: (900_000, np.float32),
    speech_reader: (230_000, np.float32),
}


@pytest.mark.parametrize("network", NETWORKS, ids=lambda n: n.WEIGHTS_PATH.stem)
def test_frozen_file_is_small_and_has_the_recorded_hash(network):
    weights, (most, dtype) = network.load_weights(), NETWORKS[network]
    assert network.WEIGHTS_PATH.stat().st_size < most
    assert tensors_sha256(weights) == network.WEIGHTS_SHA256
    assert {array.dtype for array in weights.values()} == {np.dtype(dtype)}


@pytest.mark.parametrize("network", NETWORKS, ids=lambda n: n.WEIGHTS_PATH.stem)
def test_changed_weights_are_refused(network, tmp_path):
    stored = {k: a.astype(np.float32) for k, a in network.load_weights().items()}
    np.savez(tmp_path / "same.npz", **stored)
    network.load_weights(tmp_path / "same.npz")
    name = next(name for name in stored if name.endswith("bias"))
    stored[name] = np.nextafter(stored[name], np.float32(9))
    path = tmp_path / network.WEIGHTS_PATH.name
    np.savez(path, **stored)
    where = rf"WEIGHTS_SHA256 of .*{path.stem}\.py"
    with pytest.raises(ValueError, match=f"expected {network.WEIGHTS_SHA256}.*{where}"):
        network.load_weights(path)


def test_other_files_are_refused(tmp_path):
    path, weights = tmp_path / "weights.npz", digits_classifier.load_weights()
    np.savez(path, **weights, extra=np.zeros(2))
    with pytest.raises(ValueError, match=r"'extra': \(2,\)"):
        digits_classifier.load_weights(path)
    for keep in (0, 10, 50_000):
        path.write_bytes(digits_classifier.WEIGHTS_PATH.read_bytes()[:keep])
        with pytest.raises(ValueError, match="damaged"):
            digits_classifier.load_weights(path)
