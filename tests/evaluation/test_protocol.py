"""What can be compared, what is refused, and numbers over seeds."""

import dataclasses
import json

import numpy as np
import pytest

from scm_jax.evaluation.protocol import (
    MEASURING,
    Measured,
    Protocol,
    measured_differently,
)

HASH = "0123456789abcdef" * 4
PROTOCOL = Protocol(
    metric="fid",
    extractor="inception_2015",
    extractor_sha256=HASH,
    resize="tf1_bilinear_299",
    quantization="x*127.5+128, truncated",
    reference="cifar10-train",
    reference_sha256=HASH[::-1],
    reference_count=50000,
    num_samples=50000,
    seeds=(0, 1, 2),
    sampler="consistency",
    steps=2,
    times=(1.1,),
    guidance=1.5,
    ema="0.05",
)
OTHER = {
    "metric": "sfid",
    "extractor": "dinov2",
    "extractor_sha256": "f" * 64,
    "resize": "pil_bicubic_224",
    "quantization": "(x+1)/2*255",
    "reference": "cifar10-test",
    "reference_sha256": "e" * 64,
    "reference_count": 10000,
    "num_samples": 5000,
    "seeds": (7,),
    "sampler": "heun",
    "steps": 18,
    "times": (1.2, 0.3),
    "guidance": 1.0,
    "ema": "",
    "source": "arXiv 2410.11081, Table 1",
}


def test_every_field_is_tried():
    assert set(OTHER) == {field.name for field in dataclasses.fields(Protocol)}


def test_lists_and_numpy_numbers_become_plain():
    seeds = np.arange(3)
    protocol = dataclasses.replace(PROTOCOL, seeds=seeds, times=np.array([1.1]))
    assert protocol == PROTOCOL
    assert json.loads(json.dumps(dataclasses.asdict(protocol)))["seeds"] == [0, 1, 2]


@pytest.mark.parametrize("name", sorted(set(OTHER) - {"source"}))
def test_another_way_of_measuring_is_seen_and_what_is_swept_may_differ(name):
    other = dataclasses.replace(PROTOCOL, **{name: OTHER[name]})
    pair = getattr(PROTOCOL, name), OTHER[name]
    expected = {name: pair} if name in MEASURING else {}
    assert measured_differently(PROTOCOL, other) == expected


def test_all_differences_are_listed():
    other = dataclasses.replace(PROTOCOL, **{**OTHER, "source": ""})
    expected = "metric extractor extractor_sha256 resize quantization"
    expected += " reference_sha256 num_samples"
    assert list(measured_differently(PROTOCOL, other)) == expected.split()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("extractor_sha256", "", "extractor_sha256 is ''"),
        ("extractor_sha256", "abc", "expected 64 hexadecimal"),
        ("reference_sha256", "none", "expected 64 hexadecimal"),
        ("sampler", "unknown", "sampler is 'unknown'"),
        ("steps", 0, "steps = 0"),
        ("seeds", (), "seeds is empty"),
    ],
)
def test_a_number_measured_here_knows_its_protocol(name, value, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(PROTOCOL, **{name: value})


def test_seeds_have_mean_and_spread():
    measured = Measured((2.0, 4.0, 9.0))
    assert measured.value == 5
    assert measured.std == pytest.approx(np.sqrt(13), rel=1e-12)
    assert Measured((3,)).std == 0


@pytest.mark.parametrize("values", [(), (1.0, float("nan"))])
def test_values_over_seeds_are_finite_numbers(values):
    with pytest.raises(ValueError, match="expected finite numbers"):
        Measured(values)
