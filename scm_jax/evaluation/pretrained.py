"""FID and its relatives: metrics over the features of pretrained networks.

Samples become pixels, pixels features, and features are compared with a reference. All
of it streams: memory grows with the number of samples only where a metric needs the
features themselves.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from scm_jax.evaluation import dinov2, feature_metrics, frechet, inception_weights
from scm_jax.evaluation.extraction import FeatureNet, Outputs
from scm_jax.evaluation.feature_metrics import FeatureSet
from scm_jax.evaluation.gathering import all_processes
from scm_jax.evaluation.protocol import Measured, Protocol
from scm_jax.evaluation.references import (
    Reference,
    Space,
    read_reference,
    space_of,
    write_reference,
)
from scm_jax.evaluation.subject import Subject, require_positive
from scm_jax.types import lookup

# Loads a network: from a file, or from where published weights are kept.
FEATURE_NETS: dict[str, Callable[[str | None], FeatureNet]] = {
    "inception": inception_weights.load,
    "dinov2": dinov2.extractor,
}

# Output of a network -> name of the distance in it, for those with a name of their own.
SPACES = {
    "inception-2015-12-05": {"features": "fid", "spatial": "sfid"},
    "dinov2_vitl14": {"features": "fd_dinov2"},
}
# What other metrics of a network are called.
_SUFFIXES = {"inception-2015-12-05": "", "dinov2_vitl14": "_dinov2"}
# Metrics that need the features of both sides, and not only their moments.
_NEED_FEATURES = {"kid", "cmmd", "prdc", "sw", "mind"}

# Of a reference, for metrics that compare single items; ADM's evaluator keeps as many.
KEPT_FEATURES = 10_000
# Rows that are summed up at a time.
BLOCK = 1024


def spaces_of(net: FeatureNet) -> dict[str, str]:
    """Outputs of a network that distances are measured in, and their names."""
    return SPACES.get(net.name, {"features": f"fd_{net.name}"})


@functools.lru_cache(maxsize=2)
def load_net(network: str, weights: str = "") -> FeatureNet:
    """A pretrained network of ``FEATURE_NETS``, read once.

    Raises:
      FileNotFoundError: no weights; says where they are published and belong.
      ValueError: an unknown network, or another file.
    """
    return lookup(FEATURE_NETS, network, "feature network")(weights or None)


# --- Features of many images ----------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Collected:
    """What was kept of the outputs of a network, and how many images they are of."""

    count: int
    stats: dict[str, frechet.FeatureStats]
    outputs: dict[str, np.ndarray]

    def feature_set(self, name: str) -> FeatureSet:
        """For ``feature_metrics.compare``."""
        gaussians = {
            output: (stats.mean, stats.covariance)
            for output, stats in self.stats.items()
        }
        return FeatureSet(
            features=self.outputs.get("features"),
            logits=self.outputs.get("logits"),
            gaussian=gaussians.get("features"),
            spatial_gaussian=gaussians.get("spatial"),
            name=name,
        )


def collect(
    net: FeatureNet,
    images: Iterable[np.ndarray],
    moments: Sequence[str],
    kept: Sequence[str] = (),
    rows: np.ndarray | None = None,
) -> Collected:
    """Moments and, where asked for, rows of some outputs of a network.

    Args:
      net: the network.
      images: batches of uint8 ``(n, h, w, c)``.
      moments: outputs whose mean and covariance are accumulated in float64.
      kept: outputs that are kept.
      rows: numbers of the images whose outputs are kept, rising; None for all.
    """
    stats: dict[str, frechet.FeatureStats] = {}
    found: dict[str, list[np.ndarray]] = {name: [] for name in kept}
    count = 0
    for outputs in _in_blocks(net.batches(images)):
        before, count = count, count + len(outputs["features"])
        for name in moments:
            flat = outputs[name].reshape(len(outputs[name]), -1)
            part = frechet.feature_stats(flat)
            seen = stats.get(name, frechet.empty_stats(flat.shape[1]))
            stats[name] = frechet.merge_stats(seen, part)
        for name in kept:
            here: Any = slice(None)
            if rows is not None:
                here = rows[(rows >= before) & (rows < count)] - before
            found[name].append(outputs[name][here])
    outputs = {name: np.concatenate(parts) for name, parts in found.items() if parts}
    return Collected(count, stats, outputs)


def _in_blocks(batches: Iterable[Outputs]) -> Iterator[Outputs]:
    """Joins batches to blocks of ``BLOCK`` rows or more, but for the last.

    To merge the moments of a batch costs as much as the products of hundreds of rows.
    """
    held: list[Outputs] = []
    for batch in batches:
        held.append(batch)
        if sum(len(part["features"]) for part in held) >= BLOCK:
            yield _joined(held)
            held = []
    if held:
        yield _joined(held)


def _joined(parts: Sequence[Outputs]) -> Outputs:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def of_all_processes(part: Collected, widths: Mapping[str, int]) -> Collected:
    """Moments of what all processes collected; all must call it, and get the same.

    Args:
      part: of this process.
      widths: numbers per image of each output, for a process that had no images.
    """
    stats = {
        name: all_processes(part.stats.get(name, frechet.empty_stats(width)))
        for name, width in widths.items()
    }
    return Collected(stats["features"].count, stats, {})


# --- References -----------------------------------------------------------------------


def measure_reference(
    net: FeatureNet,
    images: Iterable[np.ndarray],
    num_images: int,
    path: str | os.PathLike,
    dataset: str,
    notes: dict[str, Any] | None = None,
) -> None:
    """Writes the statistics of real images in all feature spaces of a network.

    Args:
      net: the network.
      images: batches of uint8 ``(n, h, w, c)``.
      num_images: how many there are; of ``KEPT_FEATURES`` of them, evenly spaced, the
        features themselves are written, too.
      path: the file, ``.npz``; it appears whole or not at all.
      dataset: name of the set.
      notes: further entries of its protocol.
    """
    names = spaces_of(net)
    keep = min(num_images, KEPT_FEATURES)
    rows = np.arange(keep) * num_images // keep
    found = collect(net, images, list(names), ["features"], rows)
    if found.count != num_images:
        raise ValueError(f"{dataset}: {found.count} images came, not {num_images}")
    about = {
        "extractor": net.name,
        "extractor_sha256": net.weights_sha256,
        "resize": net.resize,
    }
    spaces: dict[str, Space] = {}
    for output, name in names.items():
        features = found.outputs.get(output)
        spaces[name] = space_of(found.stats[output], features, about)
    write_reference(path, spaces, dataset=dataset, notes=notes)


def _check_protocol(reference: Reference, net: FeatureNet, path: str) -> None:
    """A file that says how its features came to be must agree with the network."""
    said = reference.protocol or {}
    for key, ours in (
        ("extractor_sha256", net.weights_sha256),
        ("resize", net.resize),
    ):
        if said.get(key, ours) != ours:
            raise ValueError(
                f"{path}: its features have {key} {said[key]}, those of the samples "
                f"would have {ours}: the distance would mean nothing. Measure the "
                "reference again with `scm data stats`"
            )


# --- The evaluator --------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class PretrainedQuality:
    """Metrics of samples against a reference in the features of a pretrained network.

    Labels are all classes in turn. With several seeds every number is the mean over
    sets of samples, with ``_std`` and ``_values`` beside it; there is no best alone.
    Several processes share the work where the metrics need moments only.

    Attributes:
      network: a key of ``FEATURE_NETS``.
      metrics: keys of ``feature_metrics.METRICS``; ``fid`` is the Frechet distance of
        the network, whatever its name.
      reference: file of statistics in any known format; empty for those of the training
        data, which are measured the first time and kept.
      weights: file of the network; empty for where published weights are kept.
      steps: steps of the sampler.
      seed: of the first set of samples; the further ones use the integers after it.
      num_seeds: sets of samples.
      num_samples: size of a set; the published numbers are of 50,000.
    """

    network: str = "inception"
    metrics: tuple[str, ...] = ("fid",)
    reference: str = ""
    weights: str = ""
    steps: int = 2
    seed: int = 0
    num_seeds: int = 1
    num_samples: int = 50_000

    def __post_init__(self):
        lookup(FEATURE_NETS, self.network, "evaluator setting network")
        for metric in self.metrics:
            lookup(feature_metrics.METRICS, metric, "evaluator setting metrics")
        require_positive(self, "steps", "num_seeds")
        require_positive(self, "num_samples", least=2)

    def __call__(self, subject: Subject) -> dict[str, Any]:
        """The metrics, the sets they are of, and under ``protocol`` how.

        Raises:
          FileNotFoundError: no weights, or no such reference.
          ValueError: a missing part, or a reference of another network.
        """
        draw = subject.need("pixels", f"metrics of the network {self.network!r}")
        net = load_net(self.network, self.weights)
        path = self.reference or str(subject.need("reference_file", "a metric")(net))
        real, reference = self._reference(net, path)
        outputs = [o for o in spaces_of(net) if o == "features" or "sfid" in self._all]
        kept = ["features"] * bool(_NEED_FEATURES & self._all)
        kept += ["logits"] * ("is" in self._all)
        # Moments add up; what needs the rows themselves each process draws for itself.
        part = (0, 1) if kept else (jax.process_index(), jax.process_count())
        gaussians = {"features": real.gaussian, "spatial": real.spatial_gaussian}
        widths = {k: len(g[0]) for k, g in gaussians.items() if k in outputs and g}
        rows = []
        for seed in range(self.seed, self.seed + self.num_seeds):
            images = draw(self.num_samples, self.steps, seed, part)
            found = collect(net, images, outputs, kept)
            if part[1] > 1:
                found = of_all_processes(found, widths)
            if found.count != self.num_samples:
                raise ValueError(f"{found.count} samples came, not {self.num_samples}")
            fake = found.feature_set("the samples")
            rows.append(feature_metrics.compare(real, fake, self.metrics))
        row: dict[str, Any] = {}
        for key in rows[0]:
            measured = Measured(tuple(found[key] for found in rows))
            name = self._name(net, key)
            row[name] = measured.value
            if self.num_seeds > 1:
                row[f"{name}_std"] = measured.std
                row[f"{name}_values"] = list(measured.values)
        return row | {
            "num_samples": self.num_samples,
            "num_seeds": self.num_seeds,
            "seed": self.seed,
            "protocol": self._protocol(subject, net, path, reference),
        }

    @property
    def _all(self) -> set[str]:
        return set(self.metrics)

    def _name(self, net: FeatureNet, key: str) -> str:
        """The name of a number: ``fid`` of DINOv2 is ``fd_dinov2``."""
        if key == "fid":
            return spaces_of(net)["features"]
        return key + _SUFFIXES.get(net.name, f"_{net.name}")

    def _reference(self, net: FeatureNet, path: str) -> tuple[FeatureSet, Reference]:
        names = spaces_of(net)
        main = read_reference(path, names["features"])
        _check_protocol(main, net, path)
        spatial = None
        if "sfid" in self._all:
            found = read_reference(path, names.get("spatial", "sfid"))
            spatial = (found.mean, found.covariance)
        real = FeatureSet(
            features=main.features,
            gaussian=(main.mean, main.covariance),
            spatial_gaussian=spatial,
            name=f"the reference {path}",
        )
        return real, main

    def _protocol(
        self, subject: Subject, net: FeatureNet, path: str, reference: Reference
    ) -> dict[str, Any]:
        protocol = Protocol(
            metric=", ".join(feature_metrics.protocol_metric(m) for m in self.metrics),
            extractor=net.name,
            extractor_sha256=net.weights_sha256,
            resize=net.resize,
            quantization=subject.need("quantization", "a protocol")(),
            reference=os.path.basename(path),
            reference_sha256=reference.sha256,
            reference_count=reference.count or 0,
            num_samples=self.num_samples,
            seeds=tuple(range(self.seed, self.seed + self.num_seeds)),
            steps=self.steps,
            **subject.sampling,
        )
        return dataclasses.asdict(protocol)
