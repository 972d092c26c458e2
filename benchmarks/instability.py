"""Trains the variants of ``experiments/instability.py`` and draws Fig. 4 and 5 anew.

    python benchmarks/instability.py --workdir=runs/instability --out=docs

Fig. 4: the two parts of ``df/dt`` of diffusion models, ``df/dt = d_t f + grad_x f .
dx/dt``, as root mean squares over time. Fig. 5: sample quality of consistency models
during training. Writes ``instability_time.png``, ``instability_training.png`` and
``instability.md`` with the numbers. Finished runs are not trained again.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np

from scm_jax import trigflow
from scm_jax.runs import sample
from scm_jax.runs import train as training_run
from scm_jax.training import loop
from scm_jax.types import Cond

ROOT = pathlib.Path(__file__).resolve().parent.parent
TIMES = np.arctan(np.exp(np.linspace(np.log(0.02), np.log(80), 24)) / 0.5)
LABELS = {
    "trigflow": "TrigFlow, positional, double norm",
    "c_noise": "EDM's c_noise",
    "fourier16": "Fourier features, scale 16",
    "adaln": "plain AdaLN",
}
COLORS = dict(zip(LABELS, ("#1b9e77", "#d95f02", "#7570b3", "#e7298a"), strict=True))
TANGENTS = {"l2": "normalized (L2)", "clip": "clipped to [-1, 1]", "none": "raw"}
DASHES = {"l2": "-", "clip": "--", "none": ":"}


def configs(variant: str, quick: bool, **options: str):
    """A config of the laboratory."""
    path = ROOT / "experiments" / "instability.py"
    spec = importlib.util.spec_from_file_location("instability", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    arg = ",".join([variant, *(f"{k}={v}" for k, v in options.items())])
    return module.get_config(arg + (",quick" if quick else ""))


def train(workdir: pathlib.Path, variant: str, quick: bool, **options: str):
    """Trains one variant unless it is finished; returns its directory and its end."""
    name = "_".join([variant, *options.values()])
    config = configs(variant, quick, **options)
    if variant != "teacher":
        teacher = str(workdir / f"teacher_{options['network']}")
        config.init.run = teacher
        if variant == "scd":
            config.teacher.run = teacher
    try:
        training_run.train_and_evaluate(config, workdir / name, label=name)
    except loop.NonFiniteError as error:
        print(f"{name}: {error}", flush=True)
        return workdir / name, "stopped: not finite"
    return workdir / name, "trained"


def derivative_parts(loaded: sample.Loaded, x: np.ndarray, label: np.ndarray):
    """RMS of ``d_t f`` and of ``grad_x f . dx/dt`` at each of ``TIMES``.

    ``f`` is the denoiser of the network and ``dx/dt = sigma_data F`` its own flow.
    """
    sd = loaded.experiment.dataset.info.sigma_data
    net = loaded.experiment.network
    z = sd * np.random.default_rng(0).standard_normal(x.shape, np.float32)

    @jax.jit
    def parts(t: jax.Array):
        times = jnp.full(x.shape[:1], t)
        x_t = trigflow.interpolate(jnp.asarray(x), jnp.asarray(z), times)

        def F(x_t, times):
            cond = Cond(t=times, label=jnp.asarray(label))
            return net.apply(loaded.params, x_t / sd, cond)

        def f(x_t, times):
            return trigflow.f_from_F(x_t, F(x_t, times), times, sd)

        dx_dt = sd * F(x_t, times)
        zero, one = jnp.zeros_like(x_t), jnp.ones_like(times)
        along_t = jax.jvp(f, (x_t, times), (zero, one))[1]
        along_x = jax.jvp(f, (x_t, times), (dx_dt, 0 * one))[1]
        return [jnp.sqrt(jnp.mean(jnp.square(a))) for a in (along_t, along_x)]

    return np.array([parts(np.float32(t)) for t in TIMES])


def qualities(run: pathlib.Path, steps: int) -> list[tuple[float, float]]:
    """(images, Frechet distance) over the training, for a number of steps."""
    found = {}
    key = f"eval/{steps}_steps/frechet_distance"
    for line in (run / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        if key in row:
            found[row["images"]] = row[key]
    results = run / "results.jsonl"
    if results.is_file():
        for line in results.read_text().splitlines():
            row = json.loads(line)
            if row["steps"] == steps:
                found[row["images"]] = row["frechet_distance"]
    return sorted(found.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=pathlib.Path, default="runs/instability")
    parser.add_argument("--out", type=pathlib.Path, default="docs")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    started = time.monotonic()
    networks = list(LABELS)
    parts, teachers = {}, {}
    for network in networks:
        run, _ = train(args.workdir, "teacher", args.quick, network=network)
        loaded = sample.load_generate(run)
        x, label = loaded.experiment.dataset.arrays()
        parts[network] = derivative_parts(loaded, x[:256], label[:256])
        teachers[network] = dict(qualities(run, 18))
    students = {}
    for method in ("sct", "scd"):
        for network in networks:
            for tangent in TANGENTS if network == "trigflow" else ("l2",):
                key = (method, network, tangent)
                students[key] = train(
                    args.workdir, method, args.quick, network=network, tangent=tangent
                )
    args.out.mkdir(parents=True, exist_ok=True)
    draw_time(parts, args.out / "instability_time.png")
    draw_training(students, args.out / "instability_training.png")
    page = describe(parts, teachers, students)
    (args.out / "instability.md").write_text(page)
    print(page)
    print(f"{(time.monotonic() - started) / 60:.1f} minutes")


def _figure(columns: int):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, columns, figsize=(4.6 * columns, 3.6))
    for axis in axes:
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def draw_time(parts: dict[str, np.ndarray], path: pathlib.Path) -> None:
    """Fig. 4: both parts of df/dt over t."""
    figure, axes = _figure(2)
    titles = (r"$\|\partial_t f\|$", r"$\|\nabla_x f \cdot dx/dt\|$")
    for column, (axis, title) in enumerate(zip(axes, titles, strict=True)):
        for network, values in parts.items():
            axis.plot(TIMES, values[:, column], color=COLORS[network], marker=".")
        axis.set(title=title, xlabel="t", yscale="log")
    axes[0].set_ylabel("root mean square over pixels")
    figure.legend(
        [LABELS[n] for n in parts], ncols=2, loc="lower center", frameon=False
    )
    figure.tight_layout(rect=(0, 0.13, 1, 1))
    figure.savefig(path, dpi=130)


def draw_training(students: dict, path: pathlib.Path) -> None:
    """Fig. 5: Frechet distance of 1-step samples during training."""
    figure, axes = _figure(2)
    for axis, method in zip(axes, ("sct", "scd"), strict=True):
        for (name, network, tangent), (run, _) in students.items():
            if name != method or not (points := qualities(run, 1)):
                continue
            images, distance = zip(*points, strict=True)
            label = LABELS[network]
            if network == "trigflow":
                label += f", tangent {TANGENTS[tangent]}"
            axis.plot(
                np.array(images) / 1e3,
                distance,
                color=COLORS[network],
                linestyle=DASHES[tangent],
                marker=".",
                label=label,
            )
        axis.set(title=method, xlabel="thousand images", yscale="log")
    axes[0].set_ylabel("Frechet distance, 1 step")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, ncols=2, loc="lower center", frameon=False)
    figure.tight_layout(rect=(0, 0.2, 1, 1))
    figure.savefig(path, dpi=130)


def describe(parts: dict, teachers: dict, students: dict) -> str:
    """The page of numbers."""
    lines = [
        "# The instability laboratory",
        "",
        "Written by `python benchmarks/instability.py --workdir=runs/instability "
        f"--out=docs` (jax {jax.__version__}, {jax.default_backend()}, seed 0): 8x8",
        "digits, a transformer of width 64 and depth 3, 800 steps of 128 images each.",
        "",
        "## The two parts of the tangent (the paper's Fig. 4)",
        "",
        "![RMS of both parts over time](instability_time.png)",
        "",
        "Diffusion models; root mean squares over 256 real digits. `t = 1.5645` is "
        "`sigma = 80`.",
        "",
        "| network | Frechet distance | d_t f, t = 0.5 | t = 1.1 | t = 1.5645 "
        "| largest | grad_x f dx/dt, largest |",
        "|---|---|---|---|---|---|---|",
    ]
    at = [int(np.argmin(np.abs(TIMES - t))) for t in (0.5, 1.1, 1.5645)]
    for network, values in parts.items():
        quality = list(teachers[network].values())
        cells = [
            LABELS[network],
            f"{quality[-1]:.2f}" if quality else "-",
            *(f"{values[i, 0]:.2f}" for i in at),
            f"{values[:, 0].max():.2f}",
            f"{values[:, 1].max():.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "## Training with each of them (the paper's Fig. 5)",
        "",
        "![Frechet distance during training](instability_training.png)",
        "",
        "| method | network | tangent | Frechet distance, 1 step | 2 steps | |",
        "|---|---|---|---|---|---|",
    ]
    for (method, network, tangent), (run, end) in students.items():
        last = [qualities(run, steps) for steps in (1, 2)]
        cells = [method, LABELS[network], TANGENTS[tangent]]
        cells += [f"{q[-1][1]:.2f}" if q else "-" for q in last]
        lines.append("| " + " | ".join([*cells, end]) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
