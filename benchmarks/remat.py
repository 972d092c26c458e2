"""Memory against work of a training step for every rematerialization policy.

    python -m benchmarks.remat [--quick] [--time] [--markdown]

The sct step at batch 8 in float32: bytes for intermediate results (of the compiled
program) and multiply-adds (counted on the program). ``--time`` adds the CPU time of the
transformer over that of ``none``, in turns on one core. Blocks of the U-Nets run in
loops, as on accelerators; XLA's CPU backend is about 20 times slower at gradients of
convolutions there, so they are not timed. ``--quick`` takes the transformer alone,
``--markdown`` writes the table to docs/remat.md. The last line is the bytes of
``blocks`` over those of ``none``, of the worst network.
"""

from __future__ import annotations

import argparse
import pathlib
from typing import Any

import jax

from benchmarks import common, shapes, step_cost
from scm_jax.cost import counts
from scm_jax.networks import layers

BATCH = 8
TIMED = "dit"
# Deep enough for a loop over its blocks.
_DEEP = shapes.SMALL[TIMED]._replace(
    settings={**shapes.SMALL[TIMED].settings, "depth": 8}
)
CASES = {TIMED: _DEEP, **{k: v for k, v in shapes.SMALL.items() if k != TIMED}}
CASES["unet, 32x32"] = shapes.EDM2_A
PAGE = pathlib.Path(__file__).parents[1] / "docs/remat.md"

# Buffers are assigned before LLVM: what it does with the code changes no size.
_CHEAP = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}


def with_policy(case: shapes.Case, remat: str) -> shapes.Case:
    """The case with a policy, and blocks in loops where this can be chosen."""
    loops = {} if case.network == "dit" else {"unroll": 1}
    return case._replace(settings={**case.settings, **loops, "remat": remat})


def measure(case: shapes.Case, timed: bool) -> dict[str, dict[str, Any]]:
    """Policy -> bytes, multiply-adds and, if ``timed``, CPU time over that of none."""
    found: dict[str, dict[str, Any]] = {}
    steppers = {}
    for remat in layers.REMAT:
        chosen = with_policy(case, remat)
        step, arguments = step_cost.abstract_arguments(chosen, "sct", BATCH)
        lowered = jax.jit(step, donate_argnums=0).lower(*arguments)
        compiled = lowered.compile(compiler_options={} if timed else _CHEAP)
        found[remat] = {
            "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
            "macs_per_image": counts.count_macs(step, *arguments) / BATCH,
        }
        if timed:
            steppers[remat] = step_cost.Stepper(chosen, "sct", BATCH)
            steppers[remat].step = compiled
    for remat, stepper in steppers.items():
        pair = common.paired(stepper, steppers["none"], 15, clock="cpu")
        found[remat]["cpu_time_over_none"] = pair.ratio
        found[remat]["quartiles"] = pair.spread
    return found


def page(rows: dict[str, dict[str, dict[str, Any]]]) -> str:
    """The page ``docs/remat.md``."""
    found = common.environment()
    versions = ", ".join(f"{k} {v}" for k, v in found["versions"].items())
    lines = [
        "# What a backward pass keeps: `network.remat`",
        "",
        "A gradient needs values of the forward pass: it keeps them in memory or",
        "computes them again, block by block.",
        "",
        "| policy | keeps of a block | computes again |",
        "|---|---|---|",
        "| `none` | every value that a gradient needs | nothing |",
        "| `dots` | results of products by weights, of convolutions and of attention, "
        "and the logits of `attention = 'einsum'` | norms, activations, softmax |",
        "| `attention` | the same without the logits: nothing is quadratic in tokens | "
        "besides, the logits |",
        "| `blocks` | its inputs | all of it |",
        "",
        "Where a mesh has an axis `fsdp`, blocks gather their weights again in the",
        "backward pass whatever the policy is, and `none` is `dots` there.",
        "",
        "## Measured",
        "",
        "Written by `python -m benchmarks.remat --markdown` "
        f"({found['device']}, {versions}, commit {found['commit'][:12]}).",
        f"The sct step at batch {BATCH} in float32; MB (1e6 bytes) of intermediate",
        "results of the compiled program and multiply-adds per image, in brackets over",
        "those of `none`. With `--time` besides: CPU time of a step over that of",
        "`none` on one core, median and quartiles of 15 turns, of the transformer.",
        "Blocks run in loops, where there are several of one shape, as on",
        "accelerators.",
        "",
        "| network | policy | intermediate MB | 1e6 multiply-adds | CPU time |",
        "|---|---|---|---|---|",
    ]
    for name, policies in rows.items():
        lines += [
            f"| {name} | `{remat}` | {_cells(row, policies['none'])} |"
            for remat, row in policies.items()
        ]
    return "\n".join(lines) + "\n"


def _cells(row: dict[str, Any], none: dict[str, Any]) -> str:
    cells = [
        f"{1e-6 * row[key]:.1f} ({row[key] / none[key]:.2f})"
        for key in ("temporary_bytes", "macs_per_image")
    ]
    if "quartiles" not in row:
        return " | ".join([*cells, "not timed"])
    low, high = row["quartiles"]
    return " | ".join(
        [*cells, f"{row['cpu_time_over_none']:.2f} ({low:.2f}-{high:.2f})"]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--time", action="store_true")
    parser.add_argument("--markdown", action="store_true")
    args = parser.parse_args()
    if args.time:
        step_cost.pin_to_one_core()
    rows = {}
    for name in [TIMED] if args.quick else list(CASES):
        rows[name] = measure(CASES[name], timed=args.time and name == TIMED)
        for remat, row in rows[name].items():
            common.emit(
                benchmark="remat",
                network=name,
                shape=CASES[name].sample_shape,
                batch=BATCH,
                remat=remat,
                **row,
            )
        if args.markdown:  # a run that is stopped leaves what it has
            PAGE.write_text(page(rows))
    shares: dict[str, Any] = {
        name: policies["blocks"]["temporary_bytes"]
        / policies["none"]["temporary_bytes"]
        for name, policies in rows.items()
    }
    common.ratio(
        "intermediate bytes of remat blocks/none, worst network",
        max(shares.values()),
        of_each=shares,
    )


if __name__ == "__main__":
    main()
