"""Writes docs/scaling.md: the paper's sizes and transformers on 1 to 256 devices.

    python benchmarks/scaling_page.py --out=docs/scaling.md
    python benchmarks/scaling_page.py --compiled=s.json --compiled=xxl.json

Counts come from tracing ``experiments/imagenet512.py``, which takes minutes and is kept
in ``--counts``; delete that file where a network or a loss has changed. All else is
``scm_jax/cost_model.py``.
``--compiled`` adds what ``scm describe --mesh=... --format=json`` printed.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import pathlib

import jax

from scm_jax import accounts, cost_model, describe, scaling, training_run
from scm_jax.hardware import Hardware, find

ROOT = pathlib.Path(__file__).resolve().parent.parent
UNETS, DITS = ("s", "m", "l", "xl", "xxl"), ("s", "b", "l", "xl", "1p6b")
MODELS = [f"unet,{size}" for size in UNETS] + [f"dit,{size}" for size in DITS]
DEVICES = (1, 8, 32, 64, 128, 256)
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
        experiment = describe.build_abstract(accounts.as_on_accelerator(config))
        found["macs"][variant] = training_run.train_macs(experiment, 4)
        found["images"][variant] = config.train.duration_images
        if variant == "sct":
            found |= memory_counts(experiment)
    return found


def memory_counts(experiment) -> dict:
    """Bytes of state, of activations and of contractions; those of sCT."""

    def traffic(batch: int) -> int:
        loss, args = training_run.training_loss(experiment, batch)
        return cost_model.contraction_bytes(jax.value_and_grad(loss), *args)

    def saved(batch: int) -> int:
        loss, args = training_run.training_loss(experiment, batch)
        return cost_model.saved_bytes(loss, *args)

    abstract = experiment.abstract_params()
    return {
        "parameters": scaling.parameter_count(abstract["net"]),
        "state_bytes": scaling.tree_bytes(
            jax.eval_shape(experiment.init_state, abstract)
        ),
        "saved": cost_model.linear(saved)[1],
        "traffic": cost_model.linear(traffic),
    }


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
    time: cost_model.StepTime

    @property
    def efficiency(self) -> float:
        """Share of the step that is not waiting for the network, all of it exposed."""
        return 1 - self.time.network / self.time.exposed


def plan(found: dict, variant: str, device: Hardware, data: int, fsdp: int) -> Plan:
    teacher = found["parameters"] if variant == "scd" else 0
    state = found["state_bytes"] / fsdp + teacher * 4 / fsdp
    fixed = state + cost_model.fixed_bytes(
        found["parameters"], fsdp, ITEMSIZE, teacher if fsdp > 1 else 0
    )
    fits = cost_model.largest_batch(
        resident_bytes=fixed, bytes_per_image=found["saved"], hardware=device
    )
    images = found["batch_size"] / (data * fsdp)
    parts = cost_model.microbatches(images, fits) or 1
    transfers = cost_model.fsdp_transfers(
        parameters=found["parameters"],
        teacher_parameters=teacher,
        data=data,
        fsdp=fsdp,
        hardware=device,
        itemsize=ITEMSIZE,
        microbatches=parts,
    )
    per_step, per_image = found["traffic"]
    time = cost_model.step_time(
        macs_per_image=found["macs"][variant],
        images=images,
        traffic=per_image * images + per_step * parts,
        state_bytes=state,
        network=cost_model.network_seconds(transfers, device),
        hardware=device,
    )
    return Plan(
        data=data,
        fsdp=fsdp,
        images=images,
        fits=fits,
        microbatches=parts,
        memory=fixed + found["saved"] * images / parts,
        received=sum(t.received_bytes for t in transfers),
        node_received=sum(t.node_bytes(device.node_devices) for t in transfers),
        time=time,
    )


def best_plan(found: dict, variant: str, device: Hardware, count: int) -> Plan | None:
    """The mesh with the fewest shards within 2 % of the fastest; None if none fits.

    Of those whose memory suffices for one image, with all communication exposed.
    """
    shards = [n for n in (2**k for k in range(9)) if count % n == 0 and n <= count]
    plans = [plan(found, variant, device, count // n, n) for n in shards]
    fitting = [p for p in plans if p.fits]
    fastest = min((p.time.exposed for p in fitting), default=0.0)
    near = (p for p in fitting if p.time.exposed <= 1.02 * fastest)
    return min(near, key=lambda p: p.fsdp, default=None)


# --- The page -------------------------------------------------------------------------


def label(model: str) -> str:
    family, size = model.split(",")
    return f"{'U-Net' if family == 'unet' else 'DiT'} {size.upper()}".replace(
        "1P6B", "1.6B"
    )


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return ["", *("| " + " | ".join(cells) + " |" for cells in lines), ""]


def networks_section(counts: dict) -> list[str]:
    rows = []
    for model, found in counts.items():
        flops = [f"{2 * found['macs'][v] / 1e12:.2f}" for v in found["macs"]]
        rows.append(
            [
                label(model),
                f"{found['parameters'] / 1e6:.1f}",
                *flops,
                f"{found['saved'] / 1e9:.2f}",
                f"{found['state_bytes'] / 1e9:.1f}",
            ]
        )
    return [
        "## Networks (measured)",
        "",
        "Counted on the traced step; FLOPs are twice the multiply-adds of loss and",
        "gradient. State: float32 parameters, two moments, two averages. Kept: what",
        "the backward pass of sCT keeps of each image, without recomputation, at",
        "64x64x4 in bfloat16 (DiT with patch 2: 1,024 tokens).",
        *table(
            [
                "network",
                "parameters, M",
                "teacher, TFLOP/image",
                "sct",
                "scd",
                "kept, GB/image",
                "state, GB",
            ],
            rows,
        ),
    ]


def plans_section(counts: dict, device: Hardware, variant: str) -> list[str]:
    rows = []
    for model, found in counts.items():
        cells = []
        for devices in DEVICES:
            p = best_plan(found, variant, device, devices)
            cells.append(
                f"{p.data}x{p.fsdp}, {p.microbatches}, {p.efficiency:.2f}"
                if p
                else "does not fit"
            )
        rows.append([label(model), *cells])
    return [
        f"### {variant} on {device.name} (modelled)",
        "",
        "Mesh as data x fsdp, microbatches, efficiency.",
        *table(["network", *(f"{n} devices" for n in DEVICES)], rows),
    ]


def traffic_section(counts: dict, devices: int) -> list[str]:
    """Memory, traffic and time on the chosen meshes."""
    device, rows = find("a100-80g"), []
    for model, found in counts.items():
        for variant in ("sct", "scd"):
            p = best_plan(found, variant, device, devices)
            rows.append(
                [
                    f"{label(model)} {variant}",
                    f"{p.data}x{p.fsdp}",
                    f"{p.memory / 1e9:.1f}",
                    f"{p.received / 1e9:.1f}",
                    f"{p.node_received / 1e9:.1f}",
                    f"{1e3 * p.time.compute:.0f}",
                    f"{1e3 * p.time.memory:.0f}",
                    f"{1e3 * p.time.update:.0f}",
                    f"{1e3 * p.time.network:.0f}",
                    f"{100 * p.time.utilization(p.time.exposed):.0f} %",
                    f"{100 * p.time.utilization(p.time.overlapped):.0f} %",
                ]
            )
    return [
        f"### Memory, traffic and time on {devices} A100-80GB (modelled)",
        "",
        "Per device: memory in GB, received GB per step; GB that a node receives from",
        "others; ms of products, of their memory traffic, of the update and of the",
        "network; utilization with the network exposed and hidden. The teacher's",
        "passes of scd are in the products, not in their memory traffic.",
        *table(
            [
                "training",
                "mesh",
                "memory",
                "received",
                "node",
                "products",
                "traffic",
                "update",
                "network",
                "exposed",
                "hidden",
            ],
            rows,
        ),
    ]


def reasons_section(counts: dict) -> list[str]:
    """Every mesh of one case, so that the choice can be followed."""
    device, rows = find("a100-80g"), []
    model = [name for name in counts if name.startswith("unet")][-1]
    for fsdp in (1, 2, 4, 8, 16, 64, 256):
        p = plan(counts[model], "scd", device, 256 // fsdp, fsdp)
        row = [f"{p.data}x{p.fsdp}", f"{p.memory / 1e9:.1f}", str(p.fits)]
        if p.fits:
            row += [str(p.microbatches), f"{1e3 * p.time.update:.0f}"]
            row += [f"{1e3 * p.time.network:.0f}", f"{1e3 * p.time.exposed:.0f}"]
        rows.append(row + ["-"] * (7 - len(row)))
    return [
        "## Why these meshes (modelled)",
        "",
        f"{label(model)}, scd, 256 A100-80GB, 8 images a device, by width of sharding:",
        *table(
            [
                "data x fsdp",
                "memory, GB",
                "images that fit",
                "microbatches",
                "update, ms",
                "network, ms",
                "step, ms",
            ],
            rows,
        ),
        "- The state must fit: copies on every device take room from images.",
        "- Shard within a node first: gathers then run over its own links, and between",
        "  nodes only the shards of the gradient are summed, 8 bytes a parameter. Full",
        "  sharding sends the gathers between nodes as well.",
        "- What is not sharded, every device updates for itself: parameters, moments",
        "  and averages are read and written once a step.",
        "- Wider sharding pays only where memory for activations is short: it saves",
        "  microbatches, each of which gathers the parameters once more.",
        "- `fsdp` is the inner axis of the mesh, so its groups are neighbours.",
    ]


def balance_section(counts: dict) -> list[str]:
    rows = []
    for name in HARDWARE:
        device = find(name)
        for model, found in counts.items():
            p = best_plan(found, "sct", device, 256)
            once = plan(found, "sct", device, p.data, p.fsdp)
            per_image = (
                2 * found["macs"]["sct"] / device.peak_flops / cost_model.EFFICIENCY
            )
            rows.append(
                [
                    name,
                    label(model),
                    f"{p.data}x{p.fsdp}",
                    f"{once.time.network / once.microbatches / per_image:.1f}",
                ]
            )
    return [
        "## Images a device needs (modelled)",
        "",
        "Images per device and microbatch at which the network takes as long as the",
        "products of sct on 256 devices; with overlap, more images hide it. Within a",
        "family it hardly depends on the size: both sides grow with the parameters.",
        *table(["hardware", "network", "data x fsdp", "images"], rows),
    ]


def recipes_section(counts: dict) -> list[str]:
    rows = []
    unets = {name: found for name, found in counts.items() if name.startswith("unet")}
    for model, found in unets.items():
        cells = []
        for name in HARDWARE:
            for variant in found["macs"]:
                p = best_plan(found, variant, find(name), 64)
                steps = found["images"][variant] / found["batch_size"]
                cells.append(f"{p.time.exposed * steps * 64 / 3600:,.0f}")
        rows.append([label(model), *cells])
    model, found = list(unets.items())[-1]
    variants = list(found["macs"])
    lengths = ", ".join(
        f"{variant} {found['images'][variant] // found['batch_size']:,}"
        for variant in variants
    )
    return [
        "## The paper's recipes in device hours (modelled)",
        "",
        "`experiments/imagenet512.py`, batch 2,048, on 64 devices, network exposed.",
        f"Optimizer steps of {label(model)}: {lengths}.",
        "The paper states neither its hardware nor its hours; of its compute it says",
        "that an iteration of sCD costs about two of the teacher's.",
        *table(
            ["network", *(f"{name}: {v}" for name in HARDWARE for v in variants)], rows
        ),
    ]


def compiled_section(paths: list[pathlib.Path]) -> list[str]:
    if not paths:
        return []
    rows = []
    for path in paths:
        found = json.loads(path.read_text())
        stated, compiled = found["stated"], found["compiled"]
        kinds = {}
        for row in compiled["collectives"]:
            kinds[row["kind"]] = kinds.get(row["kind"], 0.0) + row["received_bytes"]
        model = {
            r["kind"]: r["received_bytes"] for r in found["modelled"]["collectives"]
        }
        cells = [
            f"{kinds.get(kind, 0) / 1e9:.2f} / {model.get(kind, 0) / 1e9:.2f}"
            for kind in ("all-gather", "reduce-scatter", "all-reduce", "all-to-all")
        ]
        mesh = f"{stated['mesh']['data']}x{stated['mesh']['fsdp']}"
        temporaries = [
            compiled["temporary_bytes_per_device"],
            found["modelled"]["temporary_bytes_per_device"],
        ]
        rows.append(
            [
                f"{stated['name']}, batch {stated['batch_size']}",
                mesh,
                f"{compiled['argument_bytes_per_device'] / 1e9:.2f}",
                " / ".join(f"{n / 1e9:.1f}" for n in temporaries),
                *cells,
            ]
        )
    return [
        "## Model against compiler (compiled / modelled)",
        "",
        "GB per device and step, read from the step that XLA compiles for simulated",
        "CPU devices. The model is what fully sharded training must move; what the",
        "compiler adds to it is room for improvement. XLA's CPU backend computes",
        "16-bit convolutions in 32 bits, which its temporaries include.",
        *table(
            [
                "config",
                "data x fsdp",
                "state and batch",
                "temporaries",
                "all-gather",
                "reduce-scatter",
                "all-reduce",
                "all-to-all",
            ],
            rows,
        ),
    ]


def page(counts: dict, compiled: list[pathlib.Path]) -> str:
    lines = [
        "# From 1 to 256 devices",
        "",
        "Written by `python benchmarks/scaling_page.py --out=docs/scaling.md`.",
        "Nothing on this page was run on an accelerator. It says of every table",
        "whether its numbers are measured (counted exactly on the program), compiled",
        "(read from what XLA makes of it) or modelled (`scm_jax/cost_model.py`). Data",
        "sheets stand in `scm_jax/hardware.py`; nodes are 8 GPUs, or a whole slice of",
        "TPUs. Assumed: products reach "
        f"{cost_model.EFFICIENCY:.0%} of the peak, memory and network",
        f"{cost_model.BANDWIDTH_EFFICIENCY:.0%} of their bandwidths; arrays fill at "
        f"most {cost_model.USABLE_MEMORY:.0%} of a device; gradients are",
        f"reduced in {cost_model.GRADIENT_BYTES} bytes, parameters gathered in "
        f"{ITEMSIZE}. The same for any config:",
        "",
        "```",
        "scm describe --config=experiments/imagenet512.py:scd,size=xxl \\",
        "  --mesh=data=4,fsdp=8 --hardware=a100-80g",
        "```",
        "",
        *networks_section(counts),
        "## Meshes for a batch of 2,048",
        "",
        "The mesh whose step is shortest with all communication exposed (of those",
        "within 2 %, that with the fewest shards), the microbatches that its memory",
        "asks for without recomputation, and its efficiency: the share of a step that",
        "is not spent waiting for the network.",
        "Communication that overlaps fully with computation is hidden wherever the",
        "network's time is the shorter one, as in every row here: the efficiency is 1.",
        "",
    ]
    for name in HARDWARE:
        for variant in ("sct", "scd"):
            lines += plans_section(counts, find(name), variant)
    lines += traffic_section(counts, 256)
    lines += [*reasons_section(counts), ""]
    lines += balance_section(counts)
    lines += recipes_section(counts)
    lines += compiled_section(compiled)
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "docs/scaling.md")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--counts", type=pathlib.Path, default=COUNTS)
    parser.add_argument(
        "--compiled", type=pathlib.Path, action="append", default=[], metavar="JSON"
    )
    args = parser.parse_args()
    args.out.write_text(page(all_counts(args.models, args.counts), args.compiled))


if __name__ == "__main__":
    main()
