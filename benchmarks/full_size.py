"""The whole path at the paper's sizes on a CPU: slow, but it is the real thing.

    python benchmarks/full_size.py step --variant=sct --size=s
    python benchmarks/full_size.py aot --variant=scd --size=xxl --devices=8
    python benchmarks/full_size.py aot --file=sd3 --arg=scd,model=d30 --dtype=bfloat16
    python benchmarks/full_size.py aot --file=wan --arg=scd,model=1p3b --mesh=2,4 \\
      --dtype=bfloat16
    python benchmarks/full_size.py sample --size=s

``step`` makes two training steps of ``experiments/imagenet512.py`` at batch 1 on random
latents; ``aot`` lowers and compiles a step for simulated devices, parameters sharded
over all of them, and allocates nothing; ``sample`` writes random weights under EDM2's
names, imports them as a run and draws a sample in two steps. Each prints one JSON line.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import pathlib
import resource
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent


def experiment_config(
    variant: str, size: str, batch: int, dtype: str, file="imagenet512", arg=""
):
    """The paper's experiment, or one of ``file``, at another batch."""
    path = ROOT / "experiments" / f"{file}.py"
    spec = importlib.util.spec_from_file_location(file, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(arg or f"{variant},size={size}")
    config.train.batch_size = batch
    config.network.dtype = dtype
    return config


def peak_gb() -> float:
    """The most memory this process has held, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def random_batch(experiment, batch: int):
    """Latents and labels without a data set."""
    import jax
    import jax.numpy as jnp

    from scm_jax.types import Batch

    info = experiment.dataset.info
    x = info.sigma_data * jax.random.normal(
        jax.random.key(1), (batch, *info.sample_shape)
    )
    return Batch(x=x, label=jnp.arange(batch, dtype=jnp.int32) % info.num_classes)


def step(args: argparse.Namespace) -> dict:
    """Two training steps at batch 1."""
    import jax

    from scm_jax.runs.setup import experiment as experiment_lib

    config = experiment_config(args.variant, args.size, 1, args.dtype)
    experiment = experiment_lib.build_abstract(config)
    started = time.perf_counter()
    state = jax.block_until_ready(jax.jit(experiment.init_state)())
    init_seconds = time.perf_counter() - started
    teacher = None
    if experiment.teacher is not None:
        teacher = jax.jit(experiment.teacher.network.init)(jax.random.key(2))
    batch = random_batch(experiment, 1)
    started = time.perf_counter()
    step_fn = jax.jit(experiment.train_step(), donate_argnums=0)
    lowered = step_fn.lower(state, batch, teacher)
    lower_seconds = time.perf_counter() - started
    compiled = lowered.compile()
    compile_seconds = time.perf_counter() - started - lower_seconds
    seconds, losses = [], []
    for _ in range(2):
        started = time.perf_counter()
        state, metrics = compiled(state, batch, teacher)
        losses.append(float(metrics["loss"]))
        seconds.append(time.perf_counter() - started)
        assert bool(metrics["finite"])
    return {
        "init_seconds": init_seconds,
        "lower_seconds": lower_seconds,
        "compile_seconds": compile_seconds,
        "step_seconds": min(seconds),
        "losses": losses,
        "temporary_gb": compiled.memory_analysis().temp_size_in_bytes / 1e9,
    }


def aot(args: argparse.Namespace) -> dict:
    """Lowers and compiles a sharded step; nothing is allocated."""
    from scm_jax.cost import collectives
    from scm_jax.runs.estimate import accounts
    from scm_jax.runs.setup import experiment as experiment_lib
    from scm_jax.training import sharding

    accounts.simulate_devices(args.devices)
    fsdp, _, tensor = args.mesh.partition(",")
    spec = sharding.MeshSpec(1, int(fsdp or args.devices), int(tensor or 1))
    batch = args.batch or args.devices
    config = experiment_config(
        *(args.variant, args.size, batch, args.dtype, args.file, args.arg)
    )
    experiment = experiment_lib.build_abstract(accounts.as_on_accelerator(config))
    mesh = sharding.make_mesh(spec)
    started, cpu = time.perf_counter(), time.process_time()
    lowered = accounts.lower_step(experiment, mesh)
    lower_seconds = time.perf_counter() - started
    compiled, _ = collectives.compile_partitioned(lowered)
    memory = compiled.memory_analysis()
    return {
        "devices": args.devices,
        "batch": batch,
        "lower_seconds": lower_seconds,
        "compile_seconds": time.perf_counter() - started - lower_seconds,
        "cpu_seconds": time.process_time() - cpu,
        "argument_gb_per_device": memory.argument_size_in_bytes / 1e9,
        "temporary_gb_per_device": memory.temp_size_in_bytes / 1e9,
    }


def sample(args: argparse.Namespace) -> dict:
    """Random weights in a file of EDM2's, imported, sampled in two steps."""
    import jax
    import numpy as np

    from scm_jax import networks
    from scm_jax.files import state_dict
    from scm_jax.networks.external import edm
    from scm_jax.runs import sample as generation
    from scm_jax.runs import transfer

    config = experiment_config("sct", args.size, 1, args.dtype)
    settings = dict(networks.PRESETS["unet"][args.size])
    settings |= {"modulation": "gain", "embedding": "fourier"}
    module = networks.build("unet", (64, 64, 4), 1000, **settings).module
    rng = np.random.default_rng(0)
    tree = {}
    for path, shape in edm.expected_shapes(module).items():
        node = functools.reduce(lambda n, k: n.setdefault(k, {}), path[:-1], tree)
        node[path[-1]] = rng.standard_normal(shape, dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder:
        file, run = pathlib.Path(folder) / "edm2.safetensors", f"{folder}/run"
        state_dict.write_state_dict(file, edm.export_weights(module, tree))
        del tree
        started = time.perf_counter()
        found = transfer.import_run(config, file, run)
        import_seconds = time.perf_counter() - started
        loaded = generation.load_generate(run)
        seconds = []
        for seed in range(2):
            started = time.perf_counter()
            x = loaded.generate(1, 2, seed, sampler="consistency")
            seconds.append(time.perf_counter() - started)
            assert x.shape == (1, 64, 64, 4) and np.isfinite(x).all()
    return {
        "parameters": found["parameters"],
        "import_seconds": import_seconds,
        "first_sample_seconds": seconds[0],
        "sample_seconds": seconds[1],
        "sample_std": float(x.std()),
        "jax": jax.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("step", "aot", "sample"))
    parser.add_argument("--variant", default="sct", choices=("teacher", "sct", "scd"))
    parser.add_argument("--size", default="s")
    parser.add_argument("--file", default="imagenet512", help="of aot")
    parser.add_argument("--arg", default="", help="of aot: the file's own argument")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--batch", type=int, default=0, help="of aot: one a device")
    parser.add_argument("--mesh", default="", help="of aot: fsdp,tensor")
    args = parser.parse_args()
    found = {"step": step, "aot": aot, "sample": sample}[args.what](args)
    row = {"what": args.what, "variant": args.variant, "size": args.size}
    row = {**row, "file": args.file, "arg": args.arg, **found}
    print(json.dumps({**row, "peak_gb": peak_gb()}))


if __name__ == "__main__":
    main()
