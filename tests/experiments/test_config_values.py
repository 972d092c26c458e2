"""Values that a run cannot use are refused before it begins, by every command."""

import functools
import math
import re

import numpy as np
import pytest

from scm_jax import config as config_lib
from scm_jax import evaluation, sampling
from scm_jax.datasets import DATASETS
from scm_jax.files.user_paths import real_number, whole_number, yes_or_no
from scm_jax.networks import NETWORKS
from scm_jax.objectives import OBJECTIVES
from scm_jax.runs import train
from scm_jax.runs.directory import layout, reading
from scm_jax.runs.estimate import describe
from scm_jax.runs.setup import config_values, evaluators, experiment, start
from scm_jax.sweeps.plan.resolve import resolve
from scm_jax.sweeps.plan.sweep_file import load_sweep
from scm_jax.types import check_seed

BAD = [
    ("eval.steps", ("one",), "whole number"),
    ("eval.steps", (1.5,), "whole number"),
    ("eval.steps", (True,), "whole number"),
    ("eval.steps", (0,), "at least 1"),
    ("eval.times", (1.1,), "write ((1.1,),)"),
    ("eval.times", ((0.5, 1.1),), "decreasing"),
    ("eval.times", ((2.0,),), "in (0, pi/2)"),
    ("eval.num_seeds", 0, "at least 1"),
    ("eval.num_samples", -1, "at least 0"),
    ("eval.evaluators", (3,), "text"),
    ("sampling.steps", 0, "at least 1"),
    ("sampling.guidance", math.nan, "finite"),
    ("seed", -1, "0..4294967295"),
    ("seed", 2**32, "0..4294967295"),
    ("train.duration_images", 0, "at least 1"),
    ("train.duration_images", -5, "at least 1"),
    ("train.batch_size", True, "whole number"),
    ("train.microbatches", 0, "at least 1"),
    ("optimizer.learning_rate", math.inf, "finite"),
    ("optimizer.learning_rate", -1e-3, "at least 0"),
    ("optimizer.b2", 1.0, "[0, 1)"),
    ("ema.rel_std", (0.05, "0.1"), "finite number"),
    ("ema.half_life_images", (0,), "above 0"),
    ("mesh.fsdp", 0, "or -1"),
    ("log.every_images", 0, "at least 1"),
    ("log.writers", ("jsonl", 1), "text"),
    ("checkpoint.max_to_keep", 1, "at least 2"),
    ("teacher.run", "None", "--config.teacher.run="),
    ("network.width", 0, "at least 1"),
    ("objective.P_std", 0.0, "above 0"),
    ("objective.label_dropout", 1.5, "[0, 1]"),
    ("dataset.means", ("a",), "finite number"),
]


def tiny(key=None, value=None):
    """A small config, with one value set unchecked."""
    config = config_lib.base_config("mlp", "diffusion", "mixture")
    config.eval.steps = (1,)
    config.sampling.sampler = "consistency"
    config.sampling.steps = 1
    if key:
        config_values.parent(config, key)[key.rpartition(".")[2]] = value
    return config


@pytest.mark.parametrize("key, value, words", BAD, ids=[f"{k}={v}" for k, v, _ in BAD])
def test_a_bad_value_is_named(key, value, words):
    with pytest.raises(ValueError) as error:
        experiment.build(tiny(key, value))
    assert str(error.value).startswith(f"{key} = ")
    assert words in str(error.value)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("dataset", DATASETS)
def test_every_default_is_legal_and_stays(network, objective, dataset):
    config = config_lib.base_config(network, objective, dataset)
    checked = config_values.checked(config)
    assert config_lib.to_dict(checked) == config_lib.to_dict(config)
    assert checked.is_locked


class TestConversions:
    @pytest.mark.parametrize(
        "key, value, plain",
        [
            ("train.duration_images", 1e6, 1_000_000),
            ("seed", np.int64(3), 3),
            ("optimizer.learning_rate", np.float32(0.5), 0.5),
            ("eval.steps", [1, np.int32(2)], (1, 2)),
            ("eval.steps", np.array([1, 2]), (1, 2)),
            ("eval.times", [(np.float64(1.25),)], ((1.25,),)),
            ("eval.times", ("",), ()),
            ("log.writers", ("",), ()),
        ],
    )
    def test_what_is_unambiguous_is_accepted(self, key, value, plain):
        config = tiny()
        config_values.set_value(config, key, value)
        found = config_values.parent(config, key)[key.rpartition(".")[2]]
        assert found == plain and type(found) is type(plain)
        if isinstance(plain, tuple):
            assert [type(v) for v in found] == [type(v) for v in plain]

    def test_none_on_the_command_line_is_none_where_that_is_legal(self):
        config = config_lib.base_config("mlp", "consistency", "mixture")
        config_values.set_value(config, "objective.guidance_range", (1.0, 2.0))
        config_values.set_value(config, "objective.guidance_range", (None,))
        assert config.objective.guidance_range is None
        with pytest.raises(ValueError, match="2 values"):
            config_values.set_value(config, "objective.guidance_range", (1.0,))

    def test_an_int_among_floats_keeps_its_text(self):
        # 500000 and 500000.0 have different hashes: a resumed run would be refused.
        config = tiny("ema.half_life_images", (500_000,))
        assert type(config_values.checked(config).ema.half_life_images[0]) is int

    def test_an_unknown_key_is_an_error_with_the_near_ones(self):
        with pytest.raises(ValueError, match=r"did you mean 'train\.batch_size'"):
            config_values.set_value(tiny(), "train.batchsize", 3)


def test_evaluators_need_something_to_measure():
    config = tiny("eval.steps", ())
    config_values.checked(config)
    config.eval.evaluators = ("validation",)
    with pytest.raises(ValueError, match=r"eval\.steps = \(\).*validation"):
        config_values.checked(config)
    config.eval.times = ((1.1,),)
    config_values.checked(config)


def test_times_are_refused_for_a_sampler_without_them():
    config = tiny("eval.times", ((1.1,),))
    config.sampling.sampler = "heun"
    with pytest.raises(ValueError, match=r"eval\.times: .*sampler 'heun'"):
        experiment.build(config)


@pytest.mark.parametrize(
    "key, value",
    [("eval.steps", (0,)), ("seed", 2**32), ("eval.evaluators", ("digts",))],
)
def test_dry_run_plan_and_training_refuse_alike(tmp_path, key, value):
    config = tiny(key, value)
    with pytest.raises(ValueError) as error:
        describe.dry_run(config)
    message = str(error.value)
    with pytest.raises(ValueError, match=re.escape(message)):
        train.train_and_evaluate(config, tmp_path / "run")
    sweep = tmp_path / "bad.py"
    sweep.write_text(
        "BASE = 'experiments/mixture.py:sct,quick'\n"
        f"def sweep(arg=''):\n    yield {{{key!r}: {value!r}}}\n"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        resolve(load_sweep(str(sweep)), tmp_path / "sweep")
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_config_that_was_refused_does_not_own_the_directory(tmp_path, monkeypatch):
    def refuse(*_):
        raise ValueError("the last thing that can be refused")

    config = tiny()
    config_lib.shrink(config, network={})
    monkeypatch.setattr(start, "load_teacher", refuse)
    with pytest.raises(ValueError, match="the last thing"):
        train.train_and_evaluate(config, tmp_path)
    other = config_lib.to_dict(config) | {"seed": 1}
    layout.RunDir(tmp_path).write_config(other)


def test_words_and_numbers_in_text():
    assert [yes_or_no(w) for w in ("", "yes", "TRUE", "On", "1")] == [True] * 5
    assert [yes_or_no(w) for w in ("no", "False", "off", "0")] == [False] * 4
    with pytest.raises(ValueError, match="'maybe' is not one of"):
        yes_or_no("maybe")
    assert whole_number("1e6") == 10**6 and type(whole_number("2.0")) is int
    for text in ("1.5", "one", "nan", "inf", "None", ""):
        with pytest.raises(ValueError, match="whole number"):
            whole_number(text)
    for text in ("nan", "inf", "None", "abc"):
        with pytest.raises(ValueError, match="finite number"):
            real_number(text)


def test_experiment_options_are_words_out_of_a_list():
    read = config_lib.parse_arg
    assert read("a,quick=yes", ("a",))[1] == {"quick": True}
    assert read("a,quick=off", ("a",))[1] == {"quick": False}
    with pytest.raises(ValueError, match="option quick = 'oui' is not one of"):
        read("a,quick=oui", ("a",))
    assert read("a,n=1e3", ("a",), n=1)[1]["n"] == 1000
    choices = {"size": ("s", "m"), "patch": (2, 4)}
    default = {"size": "s", "patch": 2, "quick": False}
    assert read("a", ("a",), **choices)[1] == default
    chosen = {"size": "m", "patch": 4, "quick": True}
    assert read("a,patch=4,size=m,quick", ("a",), **choices)[1] == chosen
    with pytest.raises(ValueError, match="option n = '1.5' is not a whole number"):
        read("a,n=1.5", ("a",), n=1)


@pytest.mark.parametrize("seed", [-1, 2**32, 2**64, 0.5, True])
def test_seeds_are_32_bits_everywhere(seed):
    for take in (
        check_seed,
        lambda seed: sampling.sample_keys(seed, np.arange(2)),
        lambda seed: reading.Run("x", lambda run: None).sample(1, seed=seed),
        *(functools.partial(evaluation.build, name) for name in evaluation.EVALUATORS),
    ):
        with pytest.raises(ValueError, match=r"0\.\.4294967295"):
            take(seed=seed)


def test_the_last_seed_of_a_set_counts_as_well():
    evaluation.build("raw_samples", seed=2**32 - 2, num_seeds=2)
    with pytest.raises(ValueError, match="last seed"):
        evaluation.build("raw_samples", seed=2**32 - 2, num_seeds=3)


def test_a_split_must_be_there_only_for_an_evaluator_that_reads_it(monkeypatch):
    def missing(config, split):
        raise FileNotFoundError(f"no split {split}")

    monkeypatch.setattr(evaluators, "build_dataset", missing)
    config = tiny("eval.split", "validation")
    config.eval.evaluators = ("raw_samples",)
    evaluators.check(config)
    config.eval.evaluators = ("raw_samples", "validation")
    with pytest.raises(FileNotFoundError, match="no split validation"):
        evaluators.check(config)
