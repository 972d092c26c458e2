"""From the entries of a sweep file to runs: complete configs, ids and cost estimates.

Everything is checked before anything is sent; training steps are traced, not run.
"""

from __future__ import annotations

import dataclasses
import numbers
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from scm_jax import config as config_lib
from scm_jax.cost import counts
from scm_jax.files.jsonl import canonical_json, flatten
from scm_jax.runs.directory import layout, run_configs
from scm_jax.runs.directory.linked_runs import identity, run_places
from scm_jax.runs.estimate import work
from scm_jax.runs.setup import config_values, evaluators, experiment, parts
from scm_jax.sweeps.plan.combinators import OfDuration, RunDirOf
from scm_jax.sweeps.plan.planned import PlannedRun
from scm_jax.sweeps.plan.sweep_file import SweepFile, base_config
from scm_jax.types import lookup, num_steps

BUDGET = "train.flops"
RESERVED = ("base", "label", "tags", "resources", "depends_on", "max_attempts", BUDGET)

# Fields of an objective that change numbers only, not the program that is counted.
_NUMBERS_ONLY = ("P_mean", "P_std", "tangent_norm_eps", "tangent_warmup_images")


class _Cost(NamedTuple):
    parameters: int
    macs_per_image: int


_COSTS: dict[str, _Cost] = {}  # equal programs are traced once


def resolve(file: SweepFile, root: str | Path) -> list[PlannedRun]:
    """The runs of a sweep, in the order of its entries, each once.

    Entries with equal configs are one run. Its id is a function of the config alone,
    not of the root or the sweep; a teacher enters by its own id, not by its place.

    Args:
      file: the sweep file.
      root: directory of the sweep's runs, for the paths of teachers.

    Raises:
      ValueError: an unknown or reserved key, a bad value, a config that cannot be
        built, a label twice or unknown, entries that share an id but not a config. The
        message names file and entry.
      FileNotFoundError: an experiment file or a teacher's run does not exist.
    """
    resolver = _Resolver(file, Path(root))
    for number, entry in enumerate(file.entries):
        where = f"{file.text}, entry {number}"
        if label := entry.get("label"):
            where += f" ({label})"
        try:
            resolver.add(entry)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{where}: {error}") from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{where}: {error}") from error
    return list(resolver.runs.values())


class _Resolver:
    def __init__(self, file: SweepFile, root: Path):
        self.file = file
        self.root = root
        self.runs: dict[str, PlannedRun] = {}
        self._labels: dict[str, str] = {}  # label -> id

    def add(self, entry: Mapping[str, Any]) -> None:
        _check_reserved(entry)
        label = entry.get("label", "")
        if label in self._labels:
            raise ValueError(f"the label {label!r} appears in two entries")
        base, config = base_config(self.file, entry.get("base", ""))
        config = config.copy_and_resolve_references()
        changed = {k: v for k, v in entry.items() if k not in RESERVED}
        self._override(config, changed)
        # Key -> directory and config of the runs that this one starts or learns from.
        places = run_places(config_lib.to_dict(config))
        if config.teacher.source != "run":
            places.pop("teacher.run", None)
        linked = {key: self._config_at(key, place) for key, place in places.items()}
        if "init.run" in linked:
            _check_start(config, linked["init.run"])
        cost = _cost(config, linked.get("teacher.run"))
        _set_budget(config, entry, cost)
        _scale_schedules(config, changed)
        config = config_values.checked(config)
        evaluators.check(config, files=False)
        plain = config_lib.to_dict(config)
        steps = num_steps(config.train.duration_images, config.train.batch_size)
        images = steps * config.train.batch_size
        teacher = places.get("teacher.run")
        if BUDGET in entry:
            changed["train.duration_images"] = None  # resolved
        planned = PlannedRun(
            id=_run_id(plain, {k: self._hash_at(v) for k, v in places.items()}),
            sweep=self.file.name,
            file=self.file.text,
            base=base,
            label=label,
            config=plain,
            overrides={key: config_values.get_value(config, key) for key in changed},
            tags=_strings(entry, "tags"),
            resources=entry.get("resources", ""),
            depends_on=self._depends_on(entry, places),
            teacher_id=Path(teacher).name if teacher else None,
            parameters=cost.parameters,
            images=images,
            train_flops=2.0 * cost.macs_per_image * images,
            metrics=self.file.metrics,
            max_attempts=int(entry.get("max_attempts", 3)),
        )
        self._insert(planned)
        if label:
            self._labels[label] = planned.id

    def _insert(self, planned: PlannedRun) -> None:
        other = self.runs.get(planned.id)
        if other is None:
            self.runs[planned.id] = planned
            return
        if canonical_json(other.config) != canonical_json(planned.config):
            ours, theirs = flatten(planned.config), flatten(other.config)
            keys = sorted(k for k in ours if ours[k] != theirs[k])
            raise ValueError(
                f"duplicate id {planned.id}: this entry differs from an earlier one "
                f"only in {', '.join(keys)}, which cannot change a run's result"
            )
        both = dict.fromkeys((*other.tags, *planned.tags))
        self.runs[planned.id] = dataclasses.replace(other, tags=tuple(both))

    def _override(self, config: ConfigDict, changed: Mapping[str, Any]) -> None:
        for key, value in changed.items():
            config_values.parent(config, key, RESERVED)  # must exist
            if isinstance(value, RunDirOf):
                value = str(self.root / self._labelled(value.label))
            if not isinstance(value, OfDuration):  # resolved with the training length
                config_values.set_value(config, key, value)

    def _labelled(self, label: str) -> str:
        return lookup(self._labels, label, "label of an earlier entry")

    def _config_at(self, key: str, directory: str) -> ConfigDict:
        if planned := self._planned_at(directory):
            return config_lib.from_dict(planned.config)
        run = layout.RunDir(directory)
        if not run.config_path.is_file():
            raise FileNotFoundError(
                f"{key} = {directory!r}: there is no such run; train it first, or make "
                f'it an entry of this sweep with a label and write "{key}": '
                "run_dir(LABEL)"
            )
        return config_lib.from_dict(run.read_config())

    def _planned_at(self, directory: str) -> PlannedRun | None:
        path = Path(directory)
        same = path.parent == self.root or path.parent.resolve() == self.root.resolve()
        return self.runs.get(path.name) if same else None

    def _hash_at(self, directory: str) -> str:
        if planned := self._planned_at(directory):
            return planned.id.rpartition("-")[2]
        found = identity(directory)
        assert found is not None  # its config was read already
        return found

    def _depends_on(
        self, entry: Mapping[str, Any], places: Mapping[str, str]
    ) -> tuple[str, ...]:
        named = [self._labelled(label) for label in _strings(entry, "depends_on")]
        own = [self._planned_at(place) for place in places.values()]
        return tuple(dict.fromkeys((*named, *(run.id for run in own if run))))


def _cost(config: ConfigDict, teacher: ConfigDict | None) -> _Cost:
    built = experiment.build_abstract(config, teacher)
    key = _program_key(config, teacher)
    if key not in _COSTS:
        parameters = counts.parameter_count(built.abstract_params()["net"])
        _COSTS[key] = _Cost(parameters, work.train_macs(built))
    return _COSTS[key]


def _set_budget(config: ConfigDict, entry: Mapping[str, Any], cost: _Cost) -> None:
    """``train.flops`` as a whole number of steps."""
    if BUDGET not in entry:
        return
    if "train.duration_images" in entry:
        raise ValueError(f"{BUDGET} and train.duration_images exclude each other")
    per_step = 2.0 * cost.macs_per_image * config.train.batch_size
    steps = round(entry[BUDGET] / per_step)
    if steps < 1:
        raise ValueError(
            f"{BUDGET} = {entry[BUDGET]:g} is less than one step, which takes "
            f"{per_step:.3g}"
        )
    config.train.duration_images = steps * config.train.batch_size


def _scale_schedules(config: ConfigDict, changed: Mapping[str, Any]) -> None:
    for key, value in changed.items():
        if isinstance(value, OfDuration):
            images = value.fraction * config.train.duration_images
            if type(config_values.get_value(config, key)) is int:
                images = round(images)
            config_values.set_value(config, key, images)


def _check_reserved(entry: Mapping[str, Any]) -> None:
    for key in ("base", "label", "resources"):
        if not isinstance(entry.get(key, ""), str):
            raise ValueError(f"{key} = {entry[key]!r}: must be text")
    attempts = entry.get("max_attempts", 1)
    if not isinstance(attempts, numbers.Integral) or attempts < 1:
        raise ValueError(f"max_attempts = {attempts!r}: must be at least 1")
    budget: Any = entry.get(BUDGET, 1.0)
    if not isinstance(budget, numbers.Real) or not 0 < float(budget) < float("inf"):
        raise ValueError(f"{BUDGET} = {budget!r}: must be a number above 0")


def _strings(entry: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = entry.get(key, ())
    value = (value,) if isinstance(value, str) else tuple(value)
    if any(not isinstance(v, str) for v in value):
        raise ValueError(f"{key} = {value!r}: must be strings")
    return value


def _run_id(config: dict[str, Any], hashes: Mapping[str, str]) -> str:
    """``NAME-HASH``; other runs enter by their hashes, not by their directories."""
    named = {section: dict(config[section]) for section in ("init", "teacher")}
    for key, digits in hashes.items():
        section, _, name = key.partition(".")
        named[section][name] = digits
    slug = re.sub(r"[^A-Za-z0-9_.]+", "_", config["name"]).strip("._") or "run"
    return f"{slug}-{run_configs.config_hash({**config, **named})}"


def _program_key(config: ConfigDict, teacher: ConfigDict | None) -> str:
    """Text that is equal where the traced training program is."""
    plain = config_lib.to_dict(config)
    objective = {k: v for k, v in plain["objective"].items() if k not in _NUMBERS_ONLY}
    sections = ("dataset", "network", "parameterization", "matching", "critic")
    program = {key: plain[key] for key in sections}
    program |= {"objective": objective, "teacher": dict(plain["teacher"], run="")}
    if teacher is not None:
        program["teacher_network"] = config_lib.to_dict(teacher)["network"]
    return canonical_json(program)


def _check_start(config: ConfigDict, start: ConfigDict) -> None:
    """Raises ValueError where ``init.run`` has weights of other shapes."""
    dataset = parts.build_dataset(config)
    networks = (parts.build_network(c, dataset) for c in (config, start))
    ours, theirs = (flatten_dict(parts.abstract_init(n), sep=".") for n in networks)
    for name, array in theirs.items():
        here = ours[name].shape if name in ours else "absent"
        if here != array.shape:
            raise ValueError(
                "init.run: its network has other shapes than this one's: "
                f"{name} is {array.shape} there and {here} here"
            )
