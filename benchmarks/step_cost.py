"""What a consistency step costs over the diffusion step of the same network and batch.

    python -m benchmarks.step_cost [--quick] [--torch]

Three accounts of it: multiply-adds of published sizes (counted on the program), memory
for intermediate results (of the compiled program, batch 8), and time of the U-Net at
32x32 (in turns, on one core). With ``--torch`` the same network and steps run beside it
in PyTorch (eager, on the same core, tangent in a pass of its own, as public
implementations have it), if torch is installed; the package itself never needs it.
"""

from __future__ import annotations

import argparse
import functools
import os
from typing import Any

BATCH = 4
OBJECTIVES = {
    "diffusion": {},
    "sct": {"dx_dt": "data"},
    "scd": {"dx_dt": "teacher"},
    "scd_guided": {"dx_dt": "teacher", "label_dropout": 0.1},
}
MACS_LIMITS = {"sct": 1.36, "scd": 1.70, "scd_guided": 2.03}


def pin_to_one_core() -> None:
    """Before JAX starts its threads: times on one core compare best."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def make(case: Any, method: str) -> tuple[Any, Any, Any, Any]:
    """``(network, objective, step, init)`` with Adam and one average."""
    import jax
    import optax

    from scm_jax import networks, objectives, sampling
    from scm_jax.training import ema, state
    from scm_jax.training.step import make_train_step
    from scm_jax.types import Cond

    net = networks.build(
        case.network, case.sample_shape, case.num_classes, **case.settings
    )
    name = "diffusion" if method == "diffusion" else "consistency"
    objective = objectives.build(name, sigma_data=0.5, **OBJECTIVES[method])
    optimizer = optax.adam(1e-4)

    def teacher_fn(weights: Any, x: jax.Array, cond: Cond) -> jax.Array:
        fn = functools.partial(net.apply, weights)
        return (sampling.with_guidance(fn, 2.0) if "guided" in method else fn)(x, cond)

    step = make_train_step(
        objective,
        net.apply,
        optimizer,
        {"0.05": ema.PowerEma(0.05)},
        teacher_fn=teacher_fn if objective.needs_teacher else None,
        fold=net.fold,
        project=net.project,
    )

    def init() -> Any:
        key = jax.random.key(0)
        params = {"net": net.init(key), "objective": objective.init(key)}
        return state.init_state(params, optimizer, ("0.05",), key)

    return net, objective, step, init


def abstract_arguments(case: Any, method: str, batch: int) -> tuple[Any, tuple]:
    """A step, and shapes of its state, batch and teacher."""
    import jax
    import jax.numpy as jnp

    from scm_jax.types import Batch

    net, objective, step, init = make(case, method)
    state = jax.eval_shape(init)
    teacher = None
    if objective.needs_teacher:
        teacher = jax.eval_shape(net.fold, state.params["net"])
    x = jax.ShapeDtypeStruct((batch, *case.sample_shape), jnp.float32)
    label = jax.ShapeDtypeStruct((batch,), jnp.int32)
    return step, (state, Batch(x=x, label=label), teacher)


def multiply_adds() -> dict[str, float]:
    """Multiply-adds over the diffusion step: for each method, the worst backbone."""
    from benchmarks import common, shapes
    from scm_jax.cost import counts

    worst = dict.fromkeys(MACS_LIMITS, 0.0)
    for name, case in shapes.PUBLISHED.items():
        macs = {}
        for method in OBJECTIVES:
            step, arguments = abstract_arguments(case, method, BATCH)
            macs[method] = counts.count_macs(step, *arguments) / BATCH
        ratios = {m: macs[m] / macs["diffusion"] for m in MACS_LIMITS}
        worst = {m: max(worst[m], ratios[m]) for m in MACS_LIMITS}
        common.emit(
            account="multiply_adds",
            network=name,
            shape=case.sample_shape,
            diffusion_macs_per_image=macs["diffusion"],
            ratios=ratios,
        )
    return worst


def temporaries(batch: int = 8) -> float:
    """Bytes of intermediate results, sct over diffusion, worst backbone."""
    import jax

    from benchmarks import common, shapes

    worst = 0.0
    options = {"xla_backend_optimization_level": 0}  # buffers are assigned before it
    for name, case in {**shapes.SMALL, "unet": shapes.EDM2_A}.items():
        temp = {}
        for method in ("diffusion", "sct"):
            step, arguments = abstract_arguments(case, method, batch)
            lowered = jax.jit(step, donate_argnums=0).lower(*arguments)
            compiled = lowered.compile(compiler_options=options)
            temp[method] = compiled.memory_analysis().temp_size_in_bytes
        worst = max(worst, temp["sct"] / temp["diffusion"])
        common.emit(
            account="temporary_bytes",
            network=name,
            shape=case.sample_shape,
            batch=batch,
            **temp,
            ratio_to_diffusion=temp["sct"] / temp["diffusion"],
        )
    return worst


class Stepper:
    """A compiled step that can be called again and again."""

    def __init__(self, case: Any, method: str, batch: int):
        import jax
        import numpy as np

        from scm_jax.types import Batch

        net, objective, step, init = make(case, method)
        self.state = jax.jit(init)()
        self.teacher = None
        if objective.needs_teacher:
            self.teacher = jax.jit(lambda p: net.fold(p))(self.state.params["net"])
        rng = np.random.default_rng(0)
        x = 0.5 * rng.standard_normal((batch, *case.sample_shape), np.float32)
        label = np.arange(batch, dtype=np.int32) % case.num_classes
        self.batch = jax.device_put(Batch(x=x, label=label))
        self.step = jax.jit(step, donate_argnums=0)

    def __call__(self) -> Any:
        self.state, metrics = self.step(self.state, self.batch, self.teacher)
        return metrics


def times(repeats: int, with_torch: bool) -> dict[str, float]:
    """CPU time of the U-Net's steps and samples on one core, in turns."""
    import jax

    from benchmarks import common, shapes

    case = shapes.EDM2_A
    settings = {**case.settings, "modulation": "gain", "embedding": "fourier"}
    case = case._replace(settings=settings)
    steps = {m: Stepper(case, m, BATCH) for m in ("diffusion", "sct", "scd")}
    found = {}
    for method in ("sct", "scd"):
        pair = common.paired(steps[method], steps["diffusion"], repeats, clock="cpu")
        found[f"{method}/diffusion"] = pair.ratio
        common.emit(
            account="time",
            pair=f"{method}/diffusion",
            shape=case.sample_shape,
            batch=BATCH,
            seconds=[pair.a, pair.b],
            ratio_of_times=pair.ratio,
            quartiles=pair.spread,
        )
    if not with_torch:
        return found
    from benchmarks import torch_baseline

    ours = {**steps, "sample": sampler(case, jax.random.key(1))}
    theirs = torch_baseline.make(case, BATCH)
    for method, fn in theirs.items():
        pair = common.paired(ours[method], fn, repeats, clock="cpu")
        found[f"{method}/torch"] = pair.ratio
        common.emit(
            account="time",
            pair=f"{method}: jax/torch {torch_baseline.VERSION}",
            shape=case.sample_shape,
            batch=BATCH,
            seconds=[pair.a, pair.b],
            ratio_of_times=pair.ratio,
            quartiles=pair.spread,
        )
    return found


def sampler(case: Any, key: Any) -> Any:
    """A compiled two-step sampler on folded weights."""
    import jax
    import jax.numpy as jnp

    from scm_jax import sampling
    from scm_jax.types import Cond

    net, _, _, init = make(case, "sct")
    weights = jax.jit(lambda: net.fold(init().params["net"]))()
    run = sampling.make_sampler(
        lambda w: functools.partial(net.apply, w),
        "consistency",
        sampling.make_grid("consistency", 2, 0.5),
        case.sample_shape,
        0.5,
    )
    cond = Cond(t=jnp.zeros((BATCH,)), label=jnp.arange(BATCH) % case.num_classes)
    keys = jax.random.split(key, BATCH)
    return lambda: run(weights, keys, cond)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--torch", action="store_true")
    args = parser.parse_args()
    pin_to_one_core()
    from benchmarks import common

    macs = multiply_adds()
    memory = temporaries()
    timed = times(3 if args.quick else 9, args.torch)
    common.ratio(
        "multiply-adds of sct/diffusion, worst backbone",
        macs["sct"],
        limit=MACS_LIMITS["sct"],
        worst_macs=macs,
        macs_limits=MACS_LIMITS,
        temporary_bytes_sct_to_diffusion=memory,
        times=timed,
    )


if __name__ == "__main__":
    main()
