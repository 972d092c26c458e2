"""Writes docs/scaling.md: the paper's sizes and transformers on 1 to 256 devices.

    python -m benchmarks.scaling_page

Delete the file of ``--counts`` where a network or a loss has changed: it is made again.
"""

from __future__ import annotations

import argparse
import pathlib

from benchmarks import common
from benchmarks.scaling_plans import (
    COUNTS,
    DEVICES,
    HARDWARE,
    ITEMSIZE,
    MODELS,
    ROOT,
    all_counts,
    best_plan,
    plan,
)
from scm_jax.cost import roofline
from scm_jax.cost.hardware import Hardware, find

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
        rows.append(
            [
                label(model),
                f"{found['parameters'] / 1e6:.1f}",
                *(f"{2 * found['macs'][v] / 1e12:.2f}" for v in found["macs"]),
                f"{found['kept']['whole'] / 1e9:.2f}",
                f"{found['kept']['gathered'] / 1e9:.2f}",
                f"{found['state_bytes'] / 1e9:.1f}",
            ]
        )
    return [
        "## Networks (counted)",
        "",
        "Params: millions. Teacher, sct, scd: TFLOP per image of loss and",
        "gradient, twice",
        "the multiply-adds. Kept: GB per image that the backward pass of sct",
        "keeps of a",
        "latent of 64x64x4 in bfloat16 (DiT with patch 2: 1,024 tokens). Dots:",
        "the same",
        "with `network.remat=dots`, which keeps results of products and",
        "computes the rest",
        "again; where weights are gathered (`fsdp` > 1), `none` is `dots`.",
        "State: GB of",
        "float32 parameters, two moments, two EMAs.",
        *table(
            [
                "network",
                "params",
                "teacher",
                "sct",
                "scd",
                "kept",
                "dots",
                "state",
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
        *table(["network", *(f"{n} devices" for n in DEVICES)], rows),
    ]


def meshes_section(counts: dict) -> list[str]:
    lines = [
        "## Meshes for a batch of 2,048",
        "",
        "A cell is `data x fsdp, microbatches, efficiency`. The mesh: of those",
        "whose step",
        "is within 2 % of the shortest, that with the fewest shards, while the device",
        "waits for all communication. The microbatches: as few as leave room",
        "for all that",
        "is kept without recomputation. The efficiency: the share of a step",
        "that is not",
        "spent waiting. Where XLA runs all communication beside computation,",
        "it is 1 in",
        "every row: the network takes less time than the device's own work.",
        "",
    ]
    for name in HARDWARE:
        for variant in ("sct", "scd"):
            lines += plans_section(counts, find(name), variant)
    return lines


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
                    f"{1e3 * p.time.update:.0f}",
                    f"{1e3 * p.time.network:.0f}",
                    f"{100 * p.time.utilization(p.time.exposed):.0f} %",
                ]
            )
    return [
        f"### Memory, traffic and time on {devices} A100-80GB (modelled)",
        "",
        "Memory: GB of a device that are in use. In: GB that a device receives",
        "per step.",
        "Node in: GB that a node of 8 receives from others. Products, update, network:",
        "ms. MFU: share of the peak over a whole step whose communication is",
        "waited for;",
        f"the {roofline.EFFICIENCY:.0%} assumed of products are its limit.",
        *table(
            [
                "training",
                "mesh",
                "memory",
                "in",
                "node in",
                "products",
                "update",
                "network",
                "MFU",
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
            row += [f"{1e3 * p.time.update:.0f}", f"{1e3 * p.time.network:.0f}"]
            row += [f"{1e3 * p.time.exposed:.0f}"]
        rows.append(row + ["-"] * (6 - len(row)))
    return [
        "## Why these meshes (modelled)",
        "",
        f"{label(model)}, scd, 256 A100-80GB, 8 images a device in one microbatch, by",
        "width of sharding:",
        *table(
            [
                "mesh",
                "memory, GB",
                "fitting images",
                "update, ms",
                "network, ms",
                "step, ms",
            ],
            rows,
        ),
        "- The state must fit: copies on every device take room from images.",
        "- Shard within a node first. Gathers then run over its own links, and between",
        "  nodes only shards of the gradient are summed. Sharding over nodes sends the",
        "  gathers between them as well.",
        "- What is not sharded, every device updates for itself: parameters, moments",
        "  and EMAs are read and written once a step.",
        "- Wider sharding pays only where memory for activations is short: it saves",
        "  microbatches, each of which gathers the parameters once more.",
        "- `fsdp` is the inner axis of the mesh, so its groups are neighbours.",
    ]


def balance_section(counts: dict) -> list[str]:
    rows = []
    for model, found in list(counts.items())[::3]:
        cells = []
        for name in HARDWARE:
            device = find(name)
            p = best_plan(found, "sct", device, 256)
            seconds = 2 * found["macs"]["sct"] / device.peak_flops / roofline.EFFICIENCY
            images = p.time.network / p.microbatches / seconds
            cells += [f"{p.data}x{p.fsdp}", f"{images:.1f}"]
        rows.append([label(model), *cells])
    return [
        "## Images a device needs (modelled)",
        "",
        "Images per device and microbatch at which the network takes as long as the",
        "products of sct, on 256 devices: with more, communication can be",
        "hidden. Within",
        "a family it hardly depends on the size (every third network is shown): both",
        "sides grow with the parameters.",
        *table(
            ["network", *(c for name in HARDWARE for c in (name, "images"))],
            rows,
        ),
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
        "`experiments/imagenet512.py`, batch 2,048, on 64 devices, all communication",
        "waited for. Optimizer steps, from the paper's table, of",
        f"{label(model)}: {lengths}; teachers of S to",
        "XL train for longer. The paper states neither its hardware nor its hours;",
        "of its compute it says that an iteration of sCD costs about two of the",
        "teacher's.",
        *table(
            [
                "network",
                *(
                    f"{name} {v}" if not i else v
                    for name in HARDWARE
                    for i, v in enumerate(variants)
                ),
            ],
            rows,
        ),
    ]


def checked_section() -> list[str]:
    """One compiled step against the model, as printed on 2026-11-22 with jax 0.10."""
    return [
        "## Checked on one compiled step (compiled)",
        "",
        "Printed by `scm describe --config=experiments/imagenet512.py:sct,size=xs`",
        "`--config.train.batch_size=64 --mesh=fsdp=8` on 2026-11-22, for 125 million",
        "parameters: a device receives 436 MB in all-gathers (model: 436 MB), 230",
        "MB in reduce-scatters (2.1 bytes per parameter, the model's figure for the",
        "other U-Nets) and 0.05 MB in all-reduces. No larger size and no scd was",
        "compiled for this page. Peak temporaries were 2.7 GB for 8 images a device.",
        "The model with everything kept, which the meshes above leave room for, says",
        "3.35 GB; with `dots`, about 1 GB (scaled from the other U-Nets, whose",
        "counts are proportional to the width). XLA's CPU backend computes",
        "16-bit convolutions in 32 bits, which is in the compiled number.",
        "",
    ]


def summary_section(counts: dict) -> list[str]:
    """What is recommended, from the worst of the chosen meshes."""
    device = find("a100-80g")
    plans = {
        (devices, family): [
            best_plan(found, variant, device, devices)
            for model, found in counts.items()
            for variant in ("sct", "scd")
            if model.startswith(family)
        ]
        for devices in DEVICES
        for family in ("unet", "dit")
    }
    widest = max(p.fsdp for found in plans.values() for p in found)
    worst = {key: 1 - min(p.efficiency for p in found) for key, found in plans.items()}
    return [
        "## In short",
        "",
        "- Begin with `--config.mesh.data=-1 --config.mesh.fsdp=1`: every device holds",
        "  the whole state. Double `fsdp` while the state leaves too little room for",
        "  images, or while the optimizer's update takes a noticeable part of a step.",
        f"  No row for A100 has more than {widest} shards.",
        "- Set `train.microbatches` to what memory asks for. Each gathers and reduces",
        "  once more, so with many of them another device saves communication as well.",
        "- If nothing overlaps, the network costs a step on A100 at most",
        f"  {worst[64, 'unet']:.0%} (U-Net) and {worst[64, 'dit']:.0%} (DiT) on "
        "64 devices, "
        f"{worst[256, 'unet']:.0%} and {worst[256, 'dit']:.0%} on 256.",
        "- Not in the model: latency of collectives, elementwise work and what",
        "of it is",
        "  computed twice, loading of data, slow devices. The times are lower",
        "bounds at",
        "  the efficiency assumed; `scm describe` gives them for any config and mesh:",
        "",
        "```",
        "scm describe --config=experiments/imagenet512.py:scd,size=xxl \\",
        "  --mesh=data=4,fsdp=8 --hardware=a100-80g",
        "```",
        "",
    ]


def page(counts: dict) -> str:
    per_parameter = [f["gradient_bytes"] / f["parameters"] for f in counts.values()]
    least, most = min(per_parameter), max(per_parameter)
    lines = [
        "# From 8 to 256 devices",
        "",
        "Written by `python -m benchmarks.scaling_page` for the settings of",
        "`experiments/imagenet512.py`. Nothing here was run on an accelerator,",
        "no time was",
        "measured. Every heading says how its numbers are known:",
        "",
        "- counted: on the traced program and its shapes, exact;",
        "- compiled: read from what XLA makes of the step for simulated CPU devices;",
        "- modelled: formulas of `scm_jax/cost/roofline.py` over counts and the data",
        "  sheets in `scm_jax/cost/hardware.py`.",
        "",
        f"Assumed: products reach {roofline.EFFICIENCY:.0%} of the peak, memory and "
        f"network {roofline.BANDWIDTH_EFFICIENCY:.0%} of their",
        f"bandwidths; arrays fill at most {roofline.USABLE_MEMORY:.0%} of a device; "
        "nodes are 8 GPUs, or a whole",
        f"slice of TPUs. Parameters are gathered in {ITEMSIZE} bytes, twice a step (a "
        "teacher's",
        f"once). Gradients are reduced in {ITEMSIZE}, those of layers that "
        "multiply in float32 "
        "in 4:",
        f"{least:.1f} bytes on average in the U-Nets, {most:.1f} in the DiTs. "
        "On a mesh `data x "
        "fsdp`,",
        "each of `data` groups holds the whole state, cut into `fsdp` pieces;",
        "the batch",
        "is split over all devices.",
        "",
        *summary_section(counts),
        *networks_section(counts),
        *meshes_section(counts),
        *traffic_section(counts, 256),
        *reasons_section(counts),
        "",
        *balance_section(counts),
        *recipes_section(counts),
        *checked_section(),
    ]
    return "\n".join(common.wrapped(lines)).rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "docs/scaling.md")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--counts", type=pathlib.Path, default=COUNTS)
    args = parser.parse_args()
    args.out.write_text(page(all_counts(args.models, args.counts)))


if __name__ == "__main__":
    main()
