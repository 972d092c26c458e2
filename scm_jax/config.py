"""Every key of an experiment, declared once, with its unit.

Experiment files return ``base_config(...)`` with a few keys changed. The sections
``network``, ``objective`` and ``dataset`` hold the fields or arguments of what they
name; its docstring explains them.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict, config_dict

from scm_jax.datasets import DATASETS
from scm_jax.files.user_paths import real_number, whole_number, yes_or_no
from scm_jax.networks import NETWORKS
from scm_jax.objectives import OBJECTIVES
from scm_jax.objectives.presets import PRESETS
from scm_jax.training.state import OptimizerConfig
from scm_jax.types import lookup

# Given by the dataset, or derived from other keys: never set in a config.
_DERIVED = {
    *("parent", "name", "placement", "sigma_data"),
    *("sample_shape", "num_classes", "text"),
}
_STEPS_SUFFIX = "_steps"

# Networks of smoke runs, by key of NETWORKS: U-Nets of one level without attention, and
# transformers of two blocks.
_FLAT = {"width": 32, "channel_mult": (1,), "num_blocks": 1}
TINY_NETWORKS: dict[str, dict[str, Any]] = {
    "ddpmpp": {**_FLAT, "attention_resolutions": ()},
    "dit": {"width": 32, "depth": 2, "num_heads": 2},
    "mmdit": {"width": 32, "depth": 2, "num_heads": 2, "dual_attention_blocks": 0},
    "sana": {"width": 32, "depth": 2, "num_heads": 2, "patch": 2},
    "unet": {**_FLAT, "attention_resolutions": (), "head_channels": 32},
    "wan": {"width": 32, "depth": 2, "num_heads": 2, "hidden": 64},
}


def base_config(
    network: str = "dit", objective: str = "diffusion", dataset: str = "digits"
) -> ConfigDict:
    """A complete, locked config with every default.

    Args:
      network: a key of ``NETWORKS``; its fields become ``config.network``.
      objective: a key of ``OBJECTIVES``, whose fields become ``config.objective``; or
        a method by its name in the field, a key of ``objectives.presets.PRESETS``.
      dataset: a key of ``DATASETS``; its arguments become ``config.dataset``.
    """
    objective, changes = PRESETS.get(objective, (objective, {}))
    c = ConfigDict()
    c.name = ""  # shown in tables and reports
    c.seed = 0  # parameters, noise, data order

    c.dataset = ConfigDict(_arguments(lookup(DATASETS, dataset, "dataset.name")))
    c.dataset.name = dataset  # a key of DATASETS
    c.dataset.root = ""  # where prepared data lies; "" is the user's cache
    c.dataset.changed = "refuse"  # data that changed since the training began: | accept

    c.network = ConfigDict(
        {"name": network, **_fields(lookup(NETWORKS, network, "network.name"))}
    )
    c.parameterization = "trigflow"  # of the network: a key of PARAMETERIZATIONS
    c.objective = _section(objective)
    c.update(_second_player())

    c.teacher = ConfigDict()
    c.teacher.source = "none"  # none | run (a run directory) | exact (closed form)
    c.teacher.run = ""  # run directory, for source = run
    c.teacher.ema = ""  # which of its EMAs; "" is the one it samples with
    c.teacher.guidance = 1.0  # classifier-free guidance scale of its velocity

    c.init = ConfigDict()
    c.init.run = ""  # run directory whose EMA starts the network; "" is random
    c.init.ema = ""  # which of its EMAs

    c.optimizer = ConfigDict(dataclasses.asdict(OptimizerConfig()))

    c.ema = ConfigDict()
    c.ema.rel_std = (0.05, 0.10)  # power-function EMAs, relative to training length
    c.ema.half_life_images = ()  # EMAs of constant half-life, in images
    c.ema.sampling = ""  # the EMA that samples; "" is the first
    c.ema.snapshot_images = 0  # images between snapshots for post-hoc widths; 0: never

    c.train = ConfigDict()
    c.train.batch_size = 128  # images per optimizer step, over all devices
    c.train.duration_images = 256_000  # training length in images
    c.train.microbatches = 1  # parts whose gradients are accumulated

    # Devices along each axis; -1 takes the rest.
    c.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})
    c.mesh.sequence = False  # tensor splits the tokens of dit and wan, not weights
    c.mesh.rules = ()  # ((path pattern, tactic), ...) before the defaults

    c.sampling = ConfigDict()
    c.sampling.sampler = "heun"  # a key of SAMPLERS
    c.sampling.steps = 18
    c.sampling.shift = 0.0  # of a rectified flow's grid, for ddim and 2m; 0: EDM's grid
    c.sampling.gamma = 0.0  # share of new noise in each step of map sampling, 0..1
    c.sampling.batch_size = 512  # samples per compiled call
    c.sampling.decoder = ""  # of latents: weights file; "" is looked up; or none
    c.sampling.guidance = 1.0  # guidance scale: an input of guided students, else CFG

    c.eval = ConfigDict()
    c.eval.evaluators = ()  # keys of EVALUATORS
    c.eval.every_images = 0  # images between evaluations; 0: at the end only
    c.eval.steps = (18,)  # sampler steps, one result row each
    c.eval.times = ()  # besides: intermediate times, ((1.1,), (1.2, 0.6))
    c.eval.num_seeds = 1  # sets of samples; mean and spread are reported
    c.eval.num_samples = 0  # samples in a set; 0 is the evaluator's own choice
    c.eval.reference = ""  # file of reference statistics; "" measures the training data
    c.eval.split = ""  # held-out data for validation errors; "" is the training split

    c.update(_bookkeeping())
    c.lock().update_from_flattened_dict(changes)
    return c


# Fields of a second term that are those of the first one.
_SHARED = ("name", "guidance_range", "label_dropout", "first_frames")


def _bookkeeping() -> ConfigDict:
    """The sections of logs and checkpoints."""
    c = ConfigDict()
    c.log = ConfigDict()
    c.log.every_images = 12_800  # images between metric rows
    c.log.writers = ("jsonl", "tensorboard")  # keys of WRITERS

    c.checkpoint = ConfigDict()
    c.checkpoint.every_images = 128_000  # images between checkpoints
    c.checkpoint.max_to_keep = 2
    return c


def _second_player() -> ConfigDict:
    """The sections of a second term, and of a second network."""
    c = ConfigDict()
    # Distribution matching with a critic, see objectives/matching.py.
    c.matching = _section("matching")
    for shared in _SHARED:
        del c.matching[shared]
    c.matching.weight = 0.0  # of the term; 0: none, and then nothing else here counts
    c.critic = ConfigDict()  # of objectives that train one
    c.critic.learning_rate = 0.0  # reference of the optimizer's schedule; 0: the same
    c.critic.student_every = 1  # critic updates, one a step, for one of the student
    c.critic.half_life_images = 0.0  # of an EMA that scores samples; 0: no EMA
    return c


def _section(name: str) -> ConfigDict:
    """The fields of an objective; those in steps are given in images."""
    fields = _fields(lookup(OBJECTIVES, name, "objective.name"))
    section: dict[str, Any] = {"name": name}
    for field, default in fields.items():
        # The paper counts steps of 2048 images.
        scale = 2048 if field.endswith(_STEPS_SUFFIX) else None
        section[key_of(field)] = default * scale if scale else default
    return ConfigDict(section)


def key_of(field: str) -> str:
    """The config key of an objective's field; steps are given in images."""
    if field.endswith(_STEPS_SUFFIX):
        return field.removesuffix(_STEPS_SUFFIX) + "_images"
    return field


def _fields(cls: type) -> dict[str, Any]:
    """Field -> default of a dataclass or Flax module, without derived fields."""
    # None does not show the type; a placeholder takes any tuple.
    return {
        f.name: config_dict.placeholder(tuple) if f.default is None else f.default
        for f in dataclasses.fields(cls)
        if f.name not in _DERIVED
    }


def _arguments(build: Callable[..., Any]) -> dict[str, Any]:
    """Argument -> default of a dataset's builder function, without the common ones."""
    parameters = inspect.signature(build).parameters.values()
    common = ("split", "root", "prepare")
    return {p.name: p.default for p in parameters if p.name not in common}


def matching_settings(config: ConfigDict) -> dict[str, Any]:
    """``config.matching`` as constructor arguments, with what both terms share."""
    own = {k: v for k, v in config.matching.items() if k != "weight"}
    return own | {k: config.objective.get(k) for k in _SHARED if k != "name"}


def objective_settings(config: ConfigDict) -> dict[str, Any]:
    """``config.objective`` as constructor arguments, images turned into steps."""
    fields = _fields(lookup(OBJECTIVES, config.objective.name, "objective.name"))
    settings = {}
    for field in fields:
        value = config.objective[key_of(field)]
        in_steps = field.endswith(_STEPS_SUFFIX)
        settings[field] = round(value / config.train.batch_size) if in_steps else value
    return settings


def parse_arg(
    arg: str | None, variants: tuple[str, ...], **options: Any
) -> tuple[str, dict[str, Any]]:
    """Reads an experiment argument such as ``scd,quick`` or ``scd,size=xxl``.

    Args:
      arg: comma-separated: a variant, then flags and ``key=value`` pairs. Empty is the
        first variant.
      variants: legal variants.
      **options: other legal keys besides ``quick``, with their default or with a tuple
        of all legal values, the default first.

    Returns:
      The variant, and a dict of ``options`` with ``quick``.

    Raises:
      ValueError: anything unknown, with the legal values.

    Example:
      >>> parse_arg("scd,quick", ("teacher", "scd"))
      ('scd', {'quick': True})
    """
    legal = {k: d for k, d in options.items() if isinstance(d, tuple)}
    values = {**options, **{k: d[0] for k, d in legal.items()}, "quick": False}
    first, *rest = [part.strip() for part in (arg or variants[0]).split(",")]
    lookup(dict.fromkeys(variants), first, "experiment variant")
    for part in rest:
        key, _, text = part.partition("=")
        default = lookup(values, key, "experiment option")
        if key in legal:
            by_text = {str(value): value for value in legal[key]}
            values[key] = lookup(by_text, text, f"experiment option {key}")
        else:
            kinds = {bool: yes_or_no, int: whole_number, float: real_number}
            try:
                values[key] = kinds.get(type(default), str)(text)
            except ValueError as error:
                raise ValueError(f"experiment option {key} = {error}") from error
    return first, values


def shrink(
    config: ConfigDict,
    *,
    batch_size: int = 8,
    network: Mapping[str, Any] | None = None,
    writers: Sequence[str] = ("jsonl",),
) -> None:
    """Makes an experiment a smoke run of six steps, in place.

    It writes metric rows after every second step and checkpoints after every third; no
    schedule warms up for longer than four.

    Args:
      config: the experiment.
      batch_size: images per step.
      network: changes to ``config.network``; default is that of ``TINY_NETWORKS``.
      writers: ``config.log.writers``.

    Raises:
      ValueError: no tiny network is known, and none is given.

    Example:
      >>> c = base_config("unet", "consistency")
      >>> shrink(c)
      >>> c.network.width, c.train.batch_size, c.train.duration_images
      (32, 8, 48)
    """
    if network is None:
        network = lookup(TINY_NETWORKS, config.network.name, "network.name")
    config.network.update(network)
    config.train.batch_size = batch_size
    config.train.duration_images = 6 * batch_size
    config.optimizer.rampup_images = 2.0 * batch_size
    if config.optimizer.schedule == "inverse_sqrt":
        config.optimizer.decay_images = 4.0 * batch_size
    if "tangent_warmup_images" in config.objective:
        config.objective.tangent_warmup_images = 4 * batch_size
    config.log.every_images = 2 * batch_size
    config.log.writers = tuple(writers)
    config.checkpoint.every_images = 3 * batch_size
    config.sampling.batch_size = 16


def to_dict(config: ConfigDict) -> dict[str, Any]:
    """The resolved config as plain, JSON-ready data; tuples become lists."""
    return _convert(config.to_dict(), list)


def from_dict(saved: Mapping[str, Any]) -> ConfigDict:
    """The config of a run directory, completed with defaults for newer keys.

    Raises:
      ValueError: a key that this version does not know.
    """
    names = (saved[section]["name"] for section in ("network", "objective", "dataset"))
    config = base_config(*names)

    def fill(target: ConfigDict, values: Mapping[str, Any], path: str) -> None:
        for key, value in values.items():
            lookup(dict.fromkeys(target.keys()), key, f"config key {path}".strip())
            if isinstance(value, dict):
                fill(target[key], value, f"{path}{key}.")
            else:
                target[key] = _convert(value, tuple)

    fill(config, saved, "")
    return config


def as_saved(saved: dict[str, Any]) -> ConfigDict:
    """The config of a run directory with exactly its keys, to resume that run."""
    return ConfigDict(_convert(saved, tuple)).lock()


def _convert(value: Any, sequence: type) -> Any:
    if isinstance(value, dict):
        return {key: _convert(v, sequence) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return sequence(_convert(v, sequence) for v in value)
    return value
