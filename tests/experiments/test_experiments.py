"""The paper's experiment files: its settings, its sizes, and that they run.

``PAPER`` is a second copy of the paper's settings (arXiv 2410.11081v2, App. G), laid
out as there: a row per setting, a column per size.
"""

import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from ml_collections import ConfigDict

from scm_jax.config import base_config, from_dict, objective_settings, to_dict
from scm_jax.cost import counts
from scm_jax.files.jsonl import flatten
from scm_jax.runs import sample, train
from scm_jax.runs.estimate import describe
from scm_jax.runs.setup import experiment, parts
from scm_jax.sweeps.plan.sweep_file import load_module

FILES = pathlib.Path(__file__).resolve().parents[2] / "experiments"
VARIANTS = ("teacher", "sct", "scd")
UNET_SIZES = {
    "imagenet64": ("s", "m", "l", "xl"),
    "imagenet512": ("s", "m", "l", "xl", "xxl"),
}
DIT_SIZES = ("s", "b", "l", "xl", "1p6b")
DATASETS = {"imagenet64": "imagenet64", "imagenet512": "imagenet512_latents"}

LEARNING_RATE = (1.0e-2, 9.0e-3, 8.0e-3, 7.0e-3, 6.5e-3)
STUDENT = {"learning_rate": [lr / 100 for lr in LEARNING_RATE], "ema": ("0.05",) * 5}
PAPER = {
    ("imagenet64", "teacher"): {
        "iterations": (1_048_000, 1_486_000, 761_000, 540_000),
        "learning_rate": LEARNING_RATE,
        "dropout": (0.0, 0.1, 0.1, 0.1),
        "proposal": (-0.8, 1.6),
        "ema": ("0.075", "0.06", "0.04", "0.04"),
    },
    ("imagenet64", "sct"): STUDENT
    | {"iterations": (400_000,) * 4, "dropout": (0.45,) * 4, "proposal": (-1.0, 1.6)},
    ("imagenet64", "scd"): STUDENT
    | {"iterations": (400_000,) * 4, "dropout": (0.0,) * 4, "proposal": (-1.0, 1.6)},
    ("imagenet512", "teacher"): {
        "iterations": (1_048_000, 1_048_000, 696_000, 598_000, 376_000),
        "learning_rate": LEARNING_RATE,
        "dropout": (0.0, 0.1, 0.1, 0.1, 0.1),
        "proposal": (-0.4, 1.0),
        "ema": ("0.025", "0.03", "0.015", "0.02", "0.015"),
    },
    ("imagenet512", "sct"): STUDENT
    | {"iterations": (100_000,) * 5, "proposal": (-0.8, 1.6)}
    | {"dropout": (0.25, 0.35, 0.35, 0.35, 0.35)},
    ("imagenet512", "scd"): STUDENT
    | {"iterations": (200_000,) * 5, "proposal": (-0.8, 1.6)}
    | {"dropout": (0.0, 0.1, 0.1, 0.1, 0.1)},
}
T_REF = {"imagenet64": 35_000, "imagenet512": 70_000}
ROWS = [
    (name, variant, size)
    for name, sizes in UNET_SIZES.items()
    for variant, size in itertools.product(VARIANTS, sizes)
]
# Capacities in millions, as the paper gives them for ImageNet 512.
CAPACITY = {"s": 280.2, "m": 497.8, "l": 777.6, "xl": 1119.4, "xxl": 1523.4}
# Exact counts of the students, and what the input of the guidance scale has of that:
# a layer from w to 4 w and its gain.
PARAMETERS = {
    "s": (280_360_130, 147_457),
    "m": (498_069_762, 262_145),
    "l": (777_907_522, 409_601),
    "xl": (1_119_873_410, 589_825),
    "xxl": (1_523_967_426, 802_817),
}


PUBLISHED = {
    "cifar10": ("2.15", "2.85", "2.06", "3.66", "2.52"),
    "imagenet64": ("1.70", "1.38", "2.93", "1.48", "2.44", "1.66"),
    "imagenet512": ("2.29", "1.73", "9.86", "3.76", "2.28", "1.88", "1.89"),
}
MODULES = {
    name: load_module(str(FILES / f"{name}.py"))
    for name in (*PUBLISHED, "images", "shapes")
}


def config(name, arg=""):
    return MODULES[name].get_config(arg)


def all_args(quick=False):
    """Every file, variant, size and family."""
    end = ",quick" if quick else ""
    for variant in VARIANTS:
        yield "cifar10", variant + end
        yield "cifar10", f"{variant},conditional{end}"
        for name, sizes in UNET_SIZES.items():
            xs = ("xs",) if name == "imagenet512" else ()
            for size in (*sizes, *xs):
                yield name, f"{variant},size={size}{end}"
            for size, patch in itertools.product(DIT_SIZES, (2, 4, 8)):
                yield name, f"{variant},family=dit,size={size},patch={patch}{end}"


# --- settings -------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "variant", "size"), ROWS)
def test_settings_are_those_of_the_paper(name, variant, size):
    c = config(name, f"{variant},size={size}")
    paper = PAPER[name, variant]
    column = UNET_SIZES[name].index(size)
    assert c.dataset.name == DATASETS[name]
    assert c.network.name == "unet"
    assert c.network.width == 192 + 64 * column
    assert c.train.batch_size == 2048
    assert c.train.duration_images == paper["iterations"][column] * 2048
    assert c.optimizer.learning_rate == pytest.approx(paper["learning_rate"][column])
    assert (c.optimizer.name, c.optimizer.eps) == ("adam", 1e-11)
    assert (c.optimizer.b1, c.optimizer.b2) == (0.9, 0.99)
    assert c.optimizer.schedule == "inverse_sqrt"
    assert c.optimizer.decay_images == T_REF[name] * 2048
    assert c.optimizer.rampup_images == 10e6
    assert c.network.dropout == paper["dropout"][column]
    assert (c.objective.P_mean, c.objective.P_std) == paper["proposal"]
    assert f"{c.ema.rel_std[0]:g}" == paper["ema"][column]
    assert c.objective.learned_weighting
    teacher = variant == "teacher"
    assert c.network.dropout_max_resolution == (0 if teacher else 16)
    assert c.sampling.sampler == ("heun" if teacher else "consistency")
    assert c.sampling.steps == (32 if teacher else 2)
    assert c.eval.steps == ((32,) if teacher else (1, 2))
    if not teacher:
        assert c.objective.dx_dt == ("teacher" if variant == "scd" else "data")
        assert c.objective.tangent_normalization == "l2"
        assert c.objective.tangent_norm_eps == 0.1
        assert objective_settings(c)["tangent_warmup_steps"] == 10_000
        assert c.init.ema == PAPER[name, "teacher"]["ema"][column]
        assert c.init.run == f"runs/{name}_teacher_{size}"


@pytest.mark.parametrize(
    ("variant", "optimizer", "dropout", "proposal"),
    [
        ("teacher", ("adam", 1e-3, 0.9, 0.999, 1e-8), 0.13, (-1.2, 1.2)),
        ("sct", ("radam", 1e-4, 0.9, 0.99, 1e-8), 0.20, (-1.0, 1.4)),
        ("scd", ("radam", 1e-4, 0.9, 0.99, 1e-8), 0.0, (-1.0, 1.4)),
    ],
)
def test_settings_of_cifar10(variant, optimizer, dropout, proposal):
    c = config("cifar10", variant)
    o = c.optimizer
    assert (c.dataset.name, c.dataset.conditional) == ("cifar10", False)
    assert not c.dataset.flip and o.schedule == "constant"
    assert (o.name, o.learning_rate, o.b1, o.b2, o.eps) == optimizer
    assert c.network.dropout == dropout and c.network.dropout_max_resolution == 0
    assert (c.objective.P_mean, c.objective.P_std) == proposal
    assert c.ema.half_life_images == (500_000,) and c.ema.rel_std == ()
    assert c.train.batch_size == 512
    assert c.train.duration_images == 400_000 * 512
    if variant == "teacher":
        assert (c.sampling.sampler, c.sampling.steps) == ("heun", 18)  # NFE 35
    else:
        assert objective_settings(c)["tangent_warmup_steps"] == 10_000
        assert c.objective.tangent_norm_eps == 0.1
        assert (c.sampling.sampler, c.sampling.steps) == ("consistency", 2)


def test_guidance_of_imagenet512():
    for size in UNET_SIZES["imagenet512"]:
        teacher, sct, scd = (
            config("imagenet512", f"{v},size={size}") for v in VARIANTS
        )
        best = 1.4 if size == "s" else 1.2
        assert teacher.objective.label_dropout == 0.1
        assert not teacher.network.use_guidance and not sct.network.use_guidance
        assert scd.network.use_guidance and scd.objective.guidance_range == (1.0, 2.0)
        assert teacher.sampling.guidance == scd.sampling.guidance == best
        assert sct.sampling.guidance == 1.0 and sct.objective.guidance_range is None
        assert scd.teacher.run == scd.init.run and scd.teacher.ema == scd.init.ema
    c = config("imagenet64", "scd")
    assert not c.network.use_guidance and c.objective.guidance_range is None


def test_vsd_is_scd_with_a_second_term_and_a_critic():
    """Everything that the paper's table does not name is as in the row of sCD."""
    vsd, scd = (config("imagenet512", f"{v},size=m") for v in ("scd_vsd", "scd"))
    before, after = (dict(flatten(to_dict(c))) for c in (scd, vsd))
    changed = {key: after[key] for key in after if after[key] != before[key]}
    assert changed == {
        "name": "imagenet512_scd_vsd_m",
        "train.duration_images": 20_000 * 2048,
        "critic.learning_rate": 9e-5,
        "matching.weight": 1.0,
        "sampling.guidance": 1.0,
    }
    built = experiment.build_abstract(config("imagenet512", "scd_vsd,quick"))
    assert built.critic is not None and built.objective.weight == 1.0
    rates = [
        row.phi_learning_rate for row in MODULES["imagenet512"].VSD_PRESETS.values()
    ]
    assert rates == pytest.approx([lr / 100 for lr in LEARNING_RATE])
    for size, row in MODULES["imagenet512"].VSD_PRESETS.items():
        assert row[:1] + row[3:] == (20_000, -0.8, 1.6, 0.4, 2.0, 1.0)
        assert row.phi_dropout == (0.0 if size == "s" else 0.1)


@pytest.mark.parametrize(
    ("name", "arg", "message"),
    [
        ("imagenet512", "scd,size=xxxl", r"size of family=unet = 'xxxl'.*'xxl'"),
        ("imagenet512", "scd,size=1p6b", r"'1p6b' is not one of \['l', 'm', 's', 'xl'"),
        ("imagenet64", "scd,size=xxl", r"'xxl' is not one of \['l', 'm', 's', 'xl'\]"),
        ("imagenet64", "sct,family=dit,size=m", r"family=dit = 'm' .*'1p6b', 'b'"),
        ("imagenet64", "sct,family=mlp", r"option family = 'mlp' .*\['dit', 'unet'\]"),
        ("imagenet64", "sct,family=dit,patch=3", r"option patch = '3' .*'2', '4', '8'"),
        ("imagenet64", "sdc", r"variant = 'sdc' .*\['scd', 'sct', 'teacher'\]"),
        ("cifar10", "sct,sizes=s", r"option = 'sizes' .*'conditional'"),
    ],
)
def test_mistakes_list_what_is_legal(name, arg, message):
    with pytest.raises(ValueError, match=message):
        config(name, arg)


def test_dataset_arguments_are_config_keys():
    c = base_config("unet", "diffusion", "imagenet512_latents")
    assert c.dataset.whitening == "sd_vae_ft_mse_pm1"
    c.dataset.whitening = "edm2"
    info = parts.build_dataset(c).info
    assert "edm2" in info.description
    with pytest.raises(AttributeError):
        c.dataset.mirror = True
    c.dataset.whitening = "edm"
    with pytest.raises(ValueError, match=r"dataset\.whitening = 'edm'"):
        parts.build_dataset(c)


@pytest.mark.parametrize("name", PUBLISHED)
def test_files_say_how_to_run_and_what_to_expect(name):
    text = MODULES[name].__doc__
    assert "Run" in text and "published, not measured here" in text
    for variant in VARIANTS:
        assert f"experiments/{name}.py:{variant}" in text
    assert all(number in text for number in PUBLISHED[name])


# --- what they build ------------------------------------------------------------------


@pytest.mark.parametrize("quick", [False, True])
def test_every_config_is_locked_repeats_and_builds(quick):
    names = set()
    for name, arg in all_args(quick):
        c = config(name, arg)
        assert isinstance(c, ConfigDict) and c.is_locked
        with pytest.raises(AttributeError):
            c.network.widht = 1
        assert to_dict(from_dict(to_dict(c))) == to_dict(c)
        built = experiment.build_abstract(c)
        conditional = name != "cifar10" or "conditional" in arg
        assert ("label" in built.network.consumes) == conditional
        assert (built.teacher is not None) == arg.startswith("scd")
        assert built.sampling_ema in built.ema_profiles
        names.add(c.name)
    assert len(names) == len(list(all_args()))


def test_students_start_at_an_average_that_their_teacher_has():
    for name, arg in all_args():
        c = config(name, arg)
        if not arg.startswith("teacher"):
            teacher = config(name, arg.replace(arg.split(",")[0], "teacher", 1))
            assert c.init.run == f"runs/{teacher.name}"
            profiles = parts.ema_profiles(teacher)
            assert (c.init.ema or next(iter(profiles))) in profiles


@pytest.mark.parametrize("size", ["s", "m", "l", "xl"])
def test_parameters_of_imagenet512(size):
    c = config("imagenet512", f"scd,size={size}")
    shapes = experiment.build_abstract(c).abstract_params()["net"]
    count, guidance = PARAMETERS[size]
    assert counts.parameter_count(shapes) == count
    assert count / 1e6 == pytest.approx(CAPACITY[size], abs=0.9)
    added = {name: p for name, p in shapes.items() if "guidance" in name}
    assert counts.parameter_count(added) == guidance == 4 * c.network.width**2 + 1


def test_describe_of_the_largest():
    accounts = describe.describe(config("imagenet512", "scd,size=xxl"))
    assert accounts["parameters"] == PARAMETERS["xxl"][0]
    assert accounts["parameters"] / 1e6 == pytest.approx(CAPACITY["xxl"], abs=0.9)
    assert accounts["nfe"] == 2
    assert accounts["effective_sampling_compute"] == pytest.approx(3.05, abs=0.005)
    assert accounts["steps"] == 200_000
    # EDM2 gives 552 billion for a network without the paper's changes.
    assert accounts["forward_macs_per_image"] / 552e9 == pytest.approx(1, abs=0.02)
    # Forward, tangent, backward and a guided teacher: 6 forward passes against 3.
    assert accounts["train_macs_ratio_to_diffusion"] == pytest.approx(2, abs=0.01)


def test_describe_doubles_the_evaluations_of_a_guided_teacher():
    c = config("cifar10", "teacher,conditional,quick")
    plain = describe.describe(c)
    c.sampling.guidance = 2.0
    guided = describe.describe(c)
    for key in ("nfe", "effective_sampling_compute"):
        assert guided[key] == 2 * plain[key]


def test_parameters_of_cifar10():
    shapes = experiment.build_abstract(config("cifar10")).abstract_params()["net"]
    assert counts.parameter_count(shapes) == 60_066_563


# --- that they run --------------------------------------------------------------------


def arrays_like(shapes):
    """Small random arrays: a start that needs no compiled initialization."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda s: jnp.asarray(0.1 * rng.standard_normal(s.shape), s.dtype), shapes
    )


TRAINED = [("cifar10", "teacher"), ("imagenet64", "sct"), ("shapes", "teacher")]
TRACED = [*set(itertools.product(MODULES, VARIANTS)) - {*TRAINED}]


@pytest.mark.parametrize(
    "name, variant", [*sorted(TRACED), ("images", "sct,family=dit")]
)
def test_quick_steps_have_the_shapes_of_the_state(name, variant):
    built = experiment.build_abstract(config(name, f"{variant},quick"))
    state = jax.eval_shape(built.init_state, built.abstract_params())
    teacher = built.teacher and parts.abstract_init(built.teacher.network)
    step, batch = built.train_step(), built.example_batch(8)
    after, metrics = jax.eval_shape(step, state, batch, teacher)
    shapes = [jax.tree.map(lambda a: a.shape, tree) for tree in (after, state)]
    assert shapes[0] == shapes[1] and metrics["loss"].shape == ()


@pytest.mark.parametrize("name, variant", TRAINED)
def test_quick_unets_train(name, variant):
    built = experiment.build_abstract(config(name, f"{variant},quick"))
    state = built.init_state(arrays_like(built.abstract_params()))
    options = {"xla_backend_optimization_level": 0}  # half the time to compile
    step = jax.jit(built.train_step(), compiler_options=options)
    data = built.dataset.iterator(8, seed=0)
    for _ in range(3):
        batch = built.dataset.to_batch(next(data))
        before = state.params
        state, metrics = step(state, batch, None)
        assert np.isfinite(metrics["loss"])
        moved = jax.tree.map(lambda a, b: (a != b).any(), before, state.params)
        assert moved["net"]["in"]["kernel"]


def test_quick_distillation_of_a_quick_teacher(tmp_path):
    """Teacher, student with guidance input, samples: as a user would run them."""
    runs = {}
    for variant in ("teacher", "scd"):
        c = config("imagenet512", f"{variant},family=dit,size=s,patch=4,quick")
        c.train.duration_images = 3 * c.train.batch_size
        c.sampling.steps = 2
        # These change nothing here but the time to compile.
        c.network.depth = 1
        c.network.dtype = "float32"
        if variant == "scd":
            assert c.teacher.run == "runs/imagenet512_teacher_dit_s_4_quick"
            c.teacher.run = c.init.run = str(runs["teacher"])
        runs[variant] = tmp_path / variant
        assert train.train_and_evaluate(c, runs[variant]) == "done"
    losses = sample.load_run(runs["scd"]).metrics["loss"].dropna()
    assert len(losses) == 2 and np.isfinite(losses).all()
    (path,) = runs["scd"].rglob("*.png")  # drawn with the guidance of the config
    with PIL.Image.open(path) as grid:
        assert min(grid.size) >= 4 * 16
