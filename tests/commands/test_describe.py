"""``describe`` on a mesh: numbers that must agree, and what it compiles."""

import json
import logging
import os
import pathlib
import re
import subprocess
import sys

import jax
import pytest

from scm_jax import config as config_lib
from scm_jax.runs.estimate import accounts, describe
from scm_jax.training.sharding import MeshSpec
from tests.commands.in_process import scm

pytestmark = pytest.mark.filterwarnings("ignore:the load_module.*:DeprecationWarning")

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Small and quick to trace, with weights that are large enough to be cut.
CONFIG = ("--config=experiments/mixture.py:sct,quick", "--config.network.width=256")


def run(*args):
    """``describe`` in a process that simulates devices and says what it compiles."""
    program = ("-m", "tests.commands.compiles", *CONFIG, "--hardware=h100")
    env = {"PYTHONPATH": str(ROOT), "JAX_ENABLE_COMPILATION_CACHE": "false"}
    command = [sys.executable, *program, "--format=json", *args]
    how = {"cwd": ROOT, "env": {**os.environ, **env}, "capture_output": True}
    return subprocess.run(command, **how, text=True)


@pytest.fixture(scope="module")
def plain():
    """The cost estimate without a mesh, and what was compiled for it."""
    return run("--efficiency=0.25")


@pytest.fixture(scope="module")
def sharded():
    """The same on eight simulated devices."""
    return run("--mesh=data=2,fsdp=4")


def read(done, *keys):
    """The whole account, or some parts of it."""
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    return [found[key] for key in keys] if keys else found


def compiled_programs(lines):
    """Names of the programs with an argument that is not a scalar."""
    lines = [line for line in lines if "Compiling jit(" in line]
    assert lines, "nothing was logged: has the message of JAX changed?"
    large = [line for line in lines if re.search(r"\[\d[\d,]*\]", line)]
    return [re.search(r"Compiling (jit\(\w+\))", line)[1] for line in large]


def compilations(done):
    return int(done.stderr.rsplit("compilations: ", 1)[1])


def test_a_mesh_compiles_the_step_once_and_nothing_else(plain, sharded):
    assert compiled_programs(sharded.stderr.splitlines()) == ["jit(step)"]
    assert compilations(sharded) == compilations(plain) + 1


def test_without_a_mesh_nothing_is_compiled(plain):
    assert compiled_programs(plain.stderr.splitlines()) == []
    assert read(plain)["compiled"] == {}


@pytest.mark.parametrize("command", [("describe",), ("train", "--dry_run")])
def test_plain_describe_and_dry_run_compile_nothing(command, caplog, tmp_path):
    if command[0] == "train":
        command = (*command, f"--workdir={tmp_path}")
    with caplog.at_level(logging.WARNING), jax.log_compiles():
        jax.jit(lambda x: x + len(command))(0)  # something is logged
        said = scm(*command, *CONFIG).stdout
    assert compiled_programs(caplog.messages) == []
    assert ("state_bytes_per_device" in said) == (command[0] == "train")
    assert not list(tmp_path.iterdir())


def test_mesh_changes_what_a_device_holds_and_nothing_that_is_counted(plain, sharded):
    one, eight = read(plain), read(sharded)
    assert eight["stated"]["mesh"] == {"data": 2, "fsdp": 4, "tensor": 1}
    assert eight["stated"]["devices"] == 8
    measured = one["measured"]
    per_device = eight["measured"].pop("state_bytes_per_device")
    assert measured.pop("state_bytes_per_device") == measured["state_bytes"]
    assert measured == eight["measured"]
    # small leaves are copies, large ones are cut in four
    assert 1 / 4 < per_device / measured["state_bytes"] < 1
    compiled = eight["compiled"]
    batch = 4 * 1024 / 8  # one number in float32 for each image
    assert compiled["argument_bytes_per_device"] == pytest.approx(per_device + batch)
    assert compiled["temporary_bytes_per_device"] > 0
    kinds = {row["kind"] for row in compiled["collectives"]}
    assert "all-reduce" in kinds or "reduce-scatter" in kinds
    assert eight["modelled"]["images_per_device"] == 128


def test_times_follow_from_what_is_stated(plain):
    measured, modelled, stated = read(plain, "measured", "modelled", "stated")
    flops = 2 * measured["train_macs_per_image"] * stated["batch_size"]
    assert stated["efficiency"] == 0.25
    assert modelled["compute_seconds"] == pytest.approx(flops / 989e12 / 0.25)
    assert modelled["network_seconds"] == 0
    step = modelled["step_seconds_exposed"]
    utilization = modelled["model_flops_utilization_exposed"]
    assert utilization == pytest.approx(flops / step / 989e12)
    assert modelled["device_hours"] == pytest.approx(step * stated["steps"] / 3600)


def test_largest_batch_covers_what_the_compiled_step_holds(sharded):
    measured, compiled, modelled = read(sharded, "measured", "compiled", "modelled")
    fixed = (4 / 4 + 4) * measured["parameters"]  # gradient's shard, a gathered copy
    images = modelled["images_per_device"]
    free = 0.9 * 80e9 - compiled["argument_bytes_per_device"] - fixed
    largest = modelled["largest_images_per_device"]
    assert largest <= free / measured["saved_bytes_per_image"]
    excess = (compiled["temporary_bytes_per_device"] - fixed) / images
    assert largest * excess <= free
    assert (largest + 1) * max(excess, measured["saved_bytes_per_image"]) > free


def test_table_says_how_each_number_is_known(sharded):
    lines = describe.format_accounts(accounts.Accounts(**read(sharded)))
    lines = lines.splitlines()
    assert max(map(len, lines)) <= 80
    assert "data=2,fsdp=4,tensor=1 of h100" in lines[0]
    body = "\n".join(lines)
    for known in ("measured", "compiled", "modelled", "stated"):
        assert re.search(rf"  {known}$", body, re.M), known
    assert re.search(r"share of peak in matrix products +40.0 % +stated", body)
    assert re.search(r"all-gather +\d+ +[\d.]+ MB +[\d.]+ MB", body)


def test_a_table_is_the_default_for_named_hardware(monkeypatch):
    simulated = []
    monkeypatch.setattr(accounts, "simulate_devices", simulated.append)
    assert "of a100-80g" in scm("describe", *CONFIG, "--hardware=a100-80g").stdout
    assert simulated == [1]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"hardware": "a100_80g"}, "did you mean 'a100-80g'"),
        ({"efficiency": 2.0}, "efficiency = 2.0 is not in (0, 1]"),
        ({"mesh": MeshSpec(4, 2, 1)}, "8 devices; 1 are present"),
    ],
)
def test_account_refuses_before_it_counts(changes, message, monkeypatch):
    monkeypatch.setattr(accounts, "measure", lambda experiment: pytest.fail("counted"))
    config = config_lib.base_config("mlp", "diffusion", "gaussian")
    with pytest.raises(ValueError, match=re.escape(message)):
        accounts.account(config, **changes)


@pytest.mark.parametrize(
    "text, spec",
    [
        ("data=2,fsdp=4", MeshSpec(2, 4, 1)),
        ("fsdp=8", MeshSpec(1, 8, 1)),
        (" tensor=2 , data=3", MeshSpec(3, 1, 2)),
    ],
)
def test_parse_mesh(text, spec):
    assert accounts.parse_mesh(text) == spec


BAD_SIZES = ("data=0", "data=-1", "data=2.0", "data=two", "data=²")


@pytest.mark.parametrize(
    "text, message",
    [(text, "axis of --mesh") for text in ("", "data:2", "data=2,")]
    + [(text, repr(text)) for text in BAD_SIZES]
    + [("data=2,data=4", "twice")],
)
def test_parse_mesh_refuses(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        accounts.parse_mesh(text)
