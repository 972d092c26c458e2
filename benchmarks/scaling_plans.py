"""Counts of the paper's sizes and transformers, and the mesh that suits each best.

Counts come from tracing ``experiments/imagenet512.py``, which takes minutes and is kept
in ``docs/scaling_counts.json``; all else is ``scm_jax/cost/roofline.py``.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import pathlib

import jax

from scm_jax.cost import counts as scaling
from scm_jax.cost import roofline
from scm_jax.cost.hardware import Hardware
from scm_jax.runs.estimate import accounts, work
from scm_jax.runs.setup import experiment as experiment_lib

ROOT = pathlib.Path(__file__).resolve().parent.parent
UNETS, DITS = ("s", "m", "l", "xl", "xxl"), ("s", "b", "l", "xl", "1p6b")
MODELS = [f"unet,{size}" for size in UNETS] + [f"dit,{size}" for size in DITS]
DEVICES = (8, 32, 64, 256)
HARDWARE = ("a100-80g", "tpu-v5p")
COUNTS = ROOT / "docs" / "scaling_counts.json"
ITEMSIZE = 2  # the experiments compute in bfloat16


def experiment_module():
    spec = importlib.util.spec_from_file_location(
        "imagenet512", ROOT / "experiments" / "imagenet512.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- Counts ---------------------------------------------------------------------------


def count(model: str) -> dict:
    """Exact counts of one network for all three trainings."""
    family, size = model.split(",")
    module = experiment_module()
    found = {"macs": {}, "images": {}, "batch_size": module.BATCH}
    for variant in module.VARIANTS:
        config = module.get_config(f"{variant},family={family},size={size}")
        experiment = experiment_lib.build_abstract(accounts.as_on_accelerator(config))
        found["macs"][variant] = work.train_macs(experiment, 4)
        found["images"][variant] = config.train.duration_images
        if variant == "sct":
            found |= memory_counts(experiment)
            found["kept"] = kept(config)
    return found


def memory_counts(experiment) -> dict:
    """Bytes of state and of contractions; those of sCT."""

    def traffic(batch: int) -> int:
        loss, args = work.training_loss(experiment, batch)
        return roofline.contraction_bytes(jax.value_and_grad(loss), *args)

    abstract = experiment.abstract_params()
    return {
        "parameters": scaling.parameter_count(abstract["net"]),
        "state_bytes": scaling.tree_bytes(
            jax.eval_shape(experiment.init_state, abstract)
        ),
        "traffic": roofline.linear(traffic),
        "gradient_bytes": accounts.gradient_bytes(experiment),
    }


def kept(config) -> dict[str, float]:
    """Bytes per image that a backward pass keeps, by how the weights are stored."""
    found = {}
    for name, gathers in (("whole", False), ("gathered", True)):
        there = accounts.as_on_accelerator(config, gathers=gathers)
        experiment = experiment_lib.build_abstract(there)

        def saved(batch: int, experiment=experiment) -> int:
            loss, args = work.training_loss(experiment, batch)
            return roofline.saved_bytes(loss, *args)

        found[name] = roofline.linear(saved)[1]
    return found


def all_counts(models: list[str], path: pathlib.Path) -> dict:
    """Counts of some models, from the file where they are in it."""
    found = json.loads(path.read_text()) if path.exists() else {}
    for model in models:
        if model not in found:
            found[model] = count(model)
            path.write_text(json.dumps(found, indent=1))
            print(model, flush=True)
    return {model: found[model] for model in models}


# --- Plans ----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Plan:
    """A mesh for a training, and what a step costs on it."""

    data: int
    fsdp: int
    images: float
    fits: int
    microbatches: int
    memory: float
    received: float
    node_received: float
    time: roofline.StepTime

    @property
    def efficiency(self) -> float:
        """Share of the step that is not waiting for the network, all of it exposed."""
        return 1 - self.time.network / self.time.exposed


def plan(found: dict, variant: str, device: Hardware, data: int, fsdp: int) -> Plan:
    """With room for all that a backward pass without recomputation keeps.

    Gathered weights imply ``remat=dots``, which keeps less; what XLA needs besides, the
    compiled steps say, takes up most of the difference.
    """
    teacher = found["parameters"] if variant == "scd" else 0
    state = found["state_bytes"] / fsdp
    kept = found["kept"]["whole"]
    # Weights of a teacher are rounded once, when they are loaded.
    fixed = state + teacher * ITEMSIZE / fsdp
    fixed += roofline.fixed_bytes(
        found["parameters"], fsdp, ITEMSIZE, teacher if fsdp > 1 else 0
    )
    fits = roofline.largest_batch(
        resident_bytes=fixed, bytes_per_image=kept, hardware=device
    )
    images = found["batch_size"] / (data * fsdp)
    parts = roofline.microbatches(images, fits) or 1
    transfers = roofline.fsdp_transfers(
        parameters=found["parameters"],
        teacher_parameters=teacher,
        data=data,
        fsdp=fsdp,
        itemsize=ITEMSIZE,
        gradient_bytes=found["gradient_bytes"],
        microbatches=parts,
    )
    per_step, per_image = found["traffic"]
    time = roofline.step_time(
        macs_per_image=found["macs"][variant],
        images=images,
        traffic=per_image * images + per_step * parts,
        state_bytes=state,
        network=roofline.network_seconds(transfers, device),
        hardware=device,
    )
    return Plan(
        data=data,
        fsdp=fsdp,
        images=images,
        fits=fits,
        microbatches=parts,
        memory=fixed + kept * images / parts,
        received=sum(t.received_bytes for t in transfers),
        node_received=sum(t.node_bytes(device.node_devices) for t in transfers),
        time=time,
    )


def best_plan(found: dict, variant: str, device: Hardware, count: int) -> Plan | None:
    """The mesh with the fewest shards within 2 % of the fastest; None if none fits.

    A mesh fits if its memory suffices for one image. All communication is exposed.
    """
    shards = [n for n in (2**k for k in range(9)) if count % n == 0 and n <= count]
    plans = [plan(found, variant, device, count // n, n) for n in shards]
    fitting = [p for p in plans if p.fits]
    fastest = min((p.time.exposed for p in fitting), default=0.0)
    near = (p for p in fitting if p.time.exposed <= 1.02 * fastest)
    return min(near, key=lambda p: p.fsdp, default=None)
