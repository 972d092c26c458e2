"""What training steps communicate on four simulated devices, as JSON lines.

python -m tests.multidevice.step_collectives NETWORK METHOD
"""

import json
import sys

import jax

from scm_jax import config
from scm_jax.cost import collectives, counts
from scm_jax.runs.estimate import accounts
from scm_jax.runs.setup import experiment as experiment_lib
from scm_jax.training import sharding

DEVICES = 4
SETTINGS = {
    "dit": {"width": 256, "depth": 5, "num_heads": 4, "patch": 2},
    "unet": {
        "width": 64,
        "channel_mult": (1,),
        "num_blocks": 2,
        "attention_resolutions": (8,),
        "head_channels": 16,
        "unroll": 1,
    },
}


def read(network, method):
    """Rows of ``collectives.summarize``, and the network's number of parameters."""
    objective = "diffusion" if method == "diffusion" else "consistency"
    sharding.FSDP_MIN_SIZE = 256  # or some weights of so small a network stay whole
    c = config.base_config(network, objective, "digits")
    c.update({"train": {"batch_size": 8}, "network": {"dtype": "bfloat16"}})
    c.network.update(SETTINGS[network])
    experiment = experiment_lib.build_abstract(c)
    mesh = sharding.make_mesh(sharding.MeshSpec(1, DEVICES, 1))
    lowered = accounts.lower_step(experiment, mesh)
    _, hlo = collectives.compile_partitioned(lowered)
    rows = collectives.summarize(collectives.read_collectives(hlo))
    net = experiment.abstract_params()["net"]
    return {"rows": rows, "parameters": counts.parameter_count(net)}


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", DEVICES)
    print(json.dumps(read(*sys.argv[1:])))
