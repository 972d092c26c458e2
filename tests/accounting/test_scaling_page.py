import json
import pathlib

import pytest

from benchmarks import scaling_page
from benchmarks import scaling_plans as script
from scm_jax.cost import counts as scaling
from scm_jax.cost.hardware import find
from scm_jax.runs.estimate import accounts, work
from scm_jax.runs.setup import experiment as experiment_lib

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def counts():
    return json.loads(script.COUNTS.read_text())


def test_page_is_what_the_script_writes(counts):
    text = (ROOT / "docs" / "scaling.md").read_text()
    assert text == scaling_page.page(counts)


def test_page_is_short_and_fits_a_terminal():
    lines = (ROOT / "docs" / "scaling.md").read_text().splitlines()
    assert len(lines) <= 230
    assert [line for line in lines if len(line) > 80] == []


def test_counts_are_those_of_the_code(counts):
    config = script.experiment_module().get_config("sct,family=dit,size=s")
    experiment = experiment_lib.build_abstract(accounts.as_on_accelerator(config))
    found = counts["dit,s"]
    assert work.train_macs(experiment, 4) == found["macs"]["sct"]
    assert script.kept(config) == found["kept"]
    assert accounts.gradient_bytes(experiment) == found["gradient_bytes"]
    parameters = experiment.abstract_params()["net"]
    assert scaling.parameter_count(parameters) == found["parameters"]
    assert list(counts) == script.MODELS


@pytest.mark.parametrize("variant", ["sct", "scd"])
def test_large_networks_are_sharded_and_fit(counts, variant):
    device = find("a100-80g")
    for model, found in counts.items():
        p = script.best_plan(found, variant, device, 256)
        assert p.data * p.fsdp == 256 and p.memory <= 0.9 * device.memory_bytes
        assert p.images / p.microbatches <= p.fits
        # what the page says: no network takes longer than the device's own work
        assert p.time.network < p.time.busy, model
    wide = script.plan(counts["unet,xxl"], variant, device, 256, 1)
    best = script.best_plan(counts["unet,xxl"], variant, device, 256)
    assert 1 < best.fsdp <= 8 and best.time.exposed < wide.time.exposed


def test_gathered_weights_imply_that_elementwise_results_are_forgotten():
    config = script.experiment_module().get_config("sct,quick,family=dit")
    kept = script.kept(config)
    assert 0 < kept["gathered"] < kept["whole"]
    config.network.remat = "blocks"  # what is asked for stays
    assert accounts.as_on_accelerator(config, gathers=True).network.remat == "blocks"


def test_a_teacher_is_read_and_never_updated():
    found = {
        "parameters": 1e9,
        "state_bytes": 2e10,
        "batch_size": 64,
        "macs": {"sct": 1e12, "scd": 1e12},
        "gradient_bytes": 2e9,
        "traffic": [0, 0],
        "kept": {"whole": 2e9, "gathered": 1e9},
    }
    device = find("a100-80g")
    sct, scd = (script.plan(found, v, device, 1, 8) for v in ("sct", "scd"))
    assert sct.time.update == scd.time.update
    # its shard, and it gathered, in two bytes
    assert scd.memory - sct.memory == pytest.approx(2e9 / 8 + 2e9)
    assert scd.received - sct.received == pytest.approx(2e9 * 7 / 8)
