import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scm_jax.cost import hardware, roofline
from scm_jax.cost.hardware import Hardware

# Round numbers: two devices to a node.
SMALL = Hardware("small", 1e12, 1e9, 1e9, 1e8, 2, 1e7)


def shape(*dims):
    return jax.ShapeDtypeStruct(dims, jnp.float32)


# --- Counts -------------------------------------------------------------------------


def test_contraction_bytes_of_a_stack_with_dead_code():
    def fn(w, x):
        def body(h, w):
            return jnp.tanh(h @ w), h @ w @ w  # the second output is not used

        return jax.lax.scan(body, x, w)[0]

    got = roofline.contraction_bytes(fn, shape(5, 4, 4), shape(3, 4))
    assert got == 5 * 4 * (12 + 16 + 12)


def test_contraction_bytes_of_a_convolution():
    def fn(x, w):
        return jax.lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    got = roofline.contraction_bytes(fn, shape(2, 8, 8, 3), shape(3, 3, 3, 5))
    assert got == 4 * (2 * 64 * 3 + 9 * 15 + 2 * 64 * 5)


def test_contraction_bytes_of_branches_are_those_of_the_larger():
    def fn(i, x):
        return jax.lax.switch(i, [lambda x: x, lambda x: x @ x], x)

    index = jax.ShapeDtypeStruct((), jnp.int32)
    assert roofline.contraction_bytes(fn, index, shape(4, 4)) == 3 * 64


@pytest.mark.parametrize("remat", [False, True])
def test_saved_bytes_are_what_the_backward_pass_needs(remat):
    def layer(w, x):
        return jnp.sin(x @ w)

    run = jax.checkpoint(layer) if remat else layer

    def loss(w, x):
        return jnp.sum(run(w, x))

    def count(batch):
        return roofline.saved_bytes(loss, shape(4, 8), shape(batch, 4))

    # x and cos(x @ w); recomputation keeps x and w instead
    fixed, slope = roofline.linear(count)
    assert (fixed, slope) == ((4 * 32, 4 * 4) if remat else (0, 4 * (4 + 8)))


# --- Communication ------------------------------------------------------------------


def transfers(data, fsdp, itemsize=2, **changes):
    settings = {"parameters": 1e6, "teacher_parameters": 0, "microbatches": 1}
    settings |= {"itemsize": itemsize, "gradient_bytes": 1e6 * itemsize, **changes}
    found = roofline.fsdp_transfers(data=data, fsdp=fsdp, **settings)
    return {t.kind: t for t in found}


@pytest.mark.parametrize("fsdp", [1, 2, 4, 8])
@pytest.mark.parametrize("itemsize", [2, 4])
def test_sharded_traffic_is_three_copies_in_the_compute_dtype(fsdp, itemsize):
    # forward, backward and the gradient; the tangent adds nothing
    found = transfers(1, fsdp, itemsize=itemsize)
    total = sum(t.received_bytes for t in found.values())
    assert total == pytest.approx(3e6 * itemsize * (fsdp - 1) / fsdp)


def test_teacher_is_gathered_once_and_microbatches_repeat():
    plain, taught = (transfers(1, 4, teacher_parameters=n) for n in (0, 1e6))
    more = taught["all-gather"].received_bytes - plain["all-gather"].received_bytes
    assert more == pytest.approx(2e6 * 3 / 4)
    twice = transfers(1, 4, microbatches=2)
    for kind, once in plain.items():
        assert twice[kind].received_bytes == 2 * once.received_bytes


def test_copies_sum_the_shards_of_the_gradient():
    found = transfers(4, 2)
    assert found["all-reduce"].received_bytes == pytest.approx(2 * 2e6 / 2 * 3 / 4)


def test_each_node_receives_every_array_once():
    # four nodes of two: sharded over all, or within the node and copied
    wide, mixed = transfers(1, 8), transfers(4, 2)
    per_node = {k: t.node_bytes(2) for k, t in wide.items()}
    assert per_node["all-gather"] == pytest.approx(4e6 * 3 / 4)
    assert per_node["reduce-scatter"] == pytest.approx(2e6 * 3 / 4)
    assert mixed["all-gather"].node_bytes(2) == 0
    # two shards in a node, each summed over four nodes
    assert mixed["all-reduce"].node_bytes(2) == pytest.approx(2 * 2e6 * 3 / 4)


def test_network_time_is_that_of_the_slower_network():
    inside = transfers(1, 2).values()
    across = transfers(1, 8).values()
    share = roofline.BANDWIDTH_EFFICIENCY
    assert roofline.network_seconds(inside, SMALL) == pytest.approx(3e6 / 1e8 / share)
    assert roofline.network_seconds(across, SMALL) == pytest.approx(4.5e6 / 1e7 / share)


def test_network_that_is_not_known_is_refused():
    device = hardware.find("tpu-v5e")
    assert roofline.network_seconds(transfers(1, 256).values(), device) > 0
    with pytest.raises(ValueError, match="tpu-v5e.*256 devices"):
        roofline.network_seconds(transfers(1, 512).values(), device)


# --- Time and memory ----------------------------------------------------------------


STEP = {"macs_per_image": 1e9, "images": 100, "traffic": 1e8, "state_bytes": 5e7}
STEP |= {"network": 0.1, "hardware": SMALL, "efficiency": 0.5}


def test_roofline_of_a_step():
    time = roofline.step_time(**STEP)
    assert time.ideal == pytest.approx(0.2)
    assert time.compute == pytest.approx(0.4)
    assert time.memory == pytest.approx(0.1 / roofline.BANDWIDTH_EFFICIENCY)
    assert time.update == pytest.approx(0.1 / roofline.BANDWIDTH_EFFICIENCY)
    assert time.bound == "compute"
    assert time.overlapped == pytest.approx(0.525)  # the update cannot run beside it
    assert time.exposed == pytest.approx(0.625)
    assert time.utilization(time.exposed) == pytest.approx(0.32)


@pytest.mark.parametrize("efficiency", [0.0, -1.0, 1.1, math.nan])
def test_efficiency_is_a_share(efficiency):
    with pytest.raises(ValueError, match="efficiency"):
        roofline.step_time(**STEP | {"efficiency": efficiency})


def test_largest_batch_fills_the_usable_memory():
    fits = roofline.largest_batch(
        resident_bytes=1e8, bytes_per_image=1e7, hardware=SMALL
    )
    usable = SMALL.memory_bytes * roofline.USABLE_MEMORY
    assert 1e8 + fits * 1e7 <= usable < 1e8 + (fits + 1) * 1e7
    full = roofline.largest_batch(resident_bytes=2e9, bytes_per_image=1, hardware=SMALL)
    assert full == 0


def test_fixed_bytes_are_gradients_and_a_gathered_copy():
    assert roofline.fixed_bytes(100, 4, 2, 50) == 4 * 100 / 4 + 2 * 150


# --- Hardware -----------------------------------------------------------------------


def test_every_accelerator_is_balanced_within_reason():
    # FLOP per byte of memory and of links: a slip of a unit shows
    for device in hardware.HARDWARE.values():
        assert 100 < device.peak_flops / device.memory_bandwidth < 600
        assert 2 < device.memory_bandwidth / device.link_bandwidth < 12
        assert 1.5e10 < device.memory_bytes < 2e11
        if device.node_bandwidth is not None:
            per_device = device.node_bandwidth / device.node_devices
            assert 5 < device.link_bandwidth / per_device < 20


def test_unknown_accelerator_gets_a_hint():
    with pytest.raises(ValueError, match="did you mean 'h100'"):
        hardware.find("h10")
    assert np.all([hardware.find(name).name == name for name in hardware.HARDWARE])


@pytest.mark.parametrize(
    "images, fits, parts",
    [(32, 32, 1), (32, 31, 2), (32, 12, 4), (12, 5, 3), (7, 3, 7), (8, 0, None)],
)
def test_microbatches_are_equal_and_fit(images, fits, parts):
    assert roofline.microbatches(images, fits) == parts
