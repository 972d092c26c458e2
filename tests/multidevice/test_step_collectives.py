"""The bytes of a sharded training step, as XLA's partitioner plans them."""

import jax
import pytest

from scm_jax import config
from scm_jax.cost import collectives, counts
from scm_jax.runs.estimate import accounts
from scm_jax.runs.setup import experiment as experiment_lib
from scm_jax.training import sharding
from tests.multidevice.eight import on_eight_devices
from tests.multidevice.test_meshes import UNET

DEVICES = 4
SETTINGS = {
    "dit": {"width": 256, "depth": 5, "num_heads": 4, "patch": 2},
    "unet": UNET | {"width": 64, "head_channels": 16},
}


def read(network, objective):
    """Received bytes of each kind of collective, over those of the whole weights."""
    c = config.base_config(network, objective, "digits")
    c.update({"train": {"batch_size": 8}, "network": {"dtype": "bfloat16"}})
    c.network.update(SETTINGS[network])
    experiment = experiment_lib.build_abstract(c)
    mesh = sharding.make_mesh(sharding.MeshSpec(1, DEVICES, 1), jax.devices()[:DEVICES])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "FSDP_MIN_SIZE", 256)  # or some weights stay whole
        lowered = accounts.lower_step(experiment, mesh)
    _, hlo = collectives.compile_partitioned(lowered)
    parameters = counts.parameter_count(experiment.abstract_params()["net"])
    whole = parameters * (DEVICES - 1) / DEVICES
    found = {}
    for row in collectives.summarize(collectives.read_collectives(hlo)):
        received = found.get(row["kind"], 0) + row["received_bytes"] / whole
        found[row["kind"]] = received
    return found


@pytest.mark.parametrize("network", sorted(SETTINGS))
@on_eight_devices
def test_consistency_training_moves_the_bytes_of_diffusion(network):
    """Weights are gathered in 16 bits, once for each direction; nothing else moves."""
    found, diffusion = read(network, "consistency"), read(network, "diffusion")
    assert found["all-gather"] == pytest.approx(4.0, rel=0.02)
    assert found["all-gather"] == diffusion["all-gather"]
    # 16 bits, 32 for what multiplies in float32.
    assert 2.0 <= found["reduce-scatter"] <= 4.0
    assert found["reduce-scatter"] == diffusion["reduce-scatter"]
    assert found.keys() <= {"all-gather", "reduce-scatter", "all-reduce"}
    # Metrics, norms, and the gradients of what is too small to cut.
    assert found["all-reduce"] < 0.02
