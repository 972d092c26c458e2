"""FID and its relatives: metrics over the features of pretrained networks.

Memory grows with the number of samples only where a metric needs the features
themselves, and not only their moments.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any

import jax

from scm_jax.evaluation.features import dinov2, inception_weights
from scm_jax.evaluation.features.extraction import FeatureNet
from scm_jax.evaluation.metrics import feature_metrics
from scm_jax.evaluation.metrics.feature_metrics import FeatureSet
from scm_jax.evaluation.protocol import Measured, protocol_of
from scm_jax.evaluation.references.accumulate import (
    collect,
    of_all_processes,
    spaces_of,
)
from scm_jax.evaluation.references.statistics import Reference, read_reference
from scm_jax.evaluation.subject import Subject, require_positive, require_seeds
from scm_jax.files.catalogue import PUBLISHED, find_weights
from scm_jax.types import lookup

# Loads a network: from a file, or from where published weights are kept.
FEATURE_NETS: dict[str, Callable[[str | None], FeatureNet]] = {
    "inception": inception_weights.load,
    "dinov2": dinov2.extractor,
}

# What other metrics of a network are called.
_SUFFIXES = {"inception-2015-12-05": "", "dinov2_vitl14": "_dinov2"}


@functools.lru_cache(maxsize=2)
def load_net(network: str, weights: str = "") -> FeatureNet:
    """A pretrained network of ``FEATURE_NETS``, read once.

    Raises:
      FileNotFoundError: no weights; says where they are published and belong.
      ValueError: an unknown network, or another file.
    """
    return lookup(FEATURE_NETS, network, "feature network")(weights or None)


@dataclasses.dataclass(frozen=True)
class PretrainedQuality:
    """Metrics of samples against a reference in the features of a pretrained network.

    Labels are all classes in turn. With several seeds every number is the mean over
    sets of samples, with ``_std`` and ``_values`` beside it; there is no best alone.
    Several processes share the work where the metrics need moments only.

    Attributes:
      network: a key of ``FEATURE_NETS``.
      metrics: keys of ``feature_metrics.SETTINGS``; ``fid`` is the Frechet distance
        of the network, whatever its name.
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
            lookup(feature_metrics.SETTINGS, metric, "evaluator setting metrics")
        require_positive(self, "steps", "num_seeds")
        require_seeds(self)
        require_positive(self, "num_samples", least=2)

    def __call__(self, subject: Subject) -> dict[str, Any]:
        """The metrics, their sets of samples, and ``protocol``.

        Raises:
          FileNotFoundError: no weights, or no such reference.
          ValueError: a missing part, or a reference of another network.
        """
        draw = subject.need("pixels", f"metrics of the network {self.network!r}")
        net = load_net(self.network, self.weights)
        path = self.reference or str(subject.need("reference_file", "a metric")(net))
        real, reference = self._reference(net, path)
        kept = ["features"] * any(
            m in feature_metrics.OF_FEATURES for m in self.metrics
        )
        kept += ["logits"] * ("is" in self.metrics)
        # Moments add up; what needs the rows themselves each process draws for itself.
        part = (0, 1) if kept else (jax.process_index(), jax.process_count())
        given = {output: len(mean) for output, (mean, _) in real.moments.items()}
        widths = {output: given[output] for output in spaces_of(net) if output in given}
        rows = []
        for seed in range(self.seed, self.seed + self.num_seeds):
            images = draw(self.num_samples, self.steps, seed, part)
            found = collect(net, images, list(widths), kept)
            if part[1] > 1:
                found = of_all_processes(found, widths)
            if found.count != self.num_samples:
                raise ValueError(f"{found.count} samples came, not {self.num_samples}")
            moments = {k: (s.mean, s.covariance) for k, s in found.stats.items()}
            fake = FeatureSet("the samples", moments, found.outputs)
            rows.append(feature_metrics.compare(real, fake, self.metrics))
        row: dict[str, Any] = {}
        for key in rows[0]:
            measured = Measured(tuple(found[key] for found in rows))
            name = key + _SUFFIXES.get(net.name, f"_{net.name}")
            if key == "fid":
                name = spaces_of(net)["features"]  # such as fd_dinov2
            row[name] = measured.value
            if self.num_seeds > 1:
                row[f"{name}_std"] = measured.std
                row[f"{name}_values"] = list(measured.values)
        return row | {
            "num_samples": self.num_samples,
            "num_seeds": self.num_seeds,
            "seed": self.seed,
            "protocol": protocol_of(
                self,
                subject.sampling,
                metric=", ".join(map(feature_metrics.protocol_metric, self.metrics)),
                extractor=net.name,
                extractor_sha256=net.weights_sha256,
                resize=net.resize,
                quantization=subject.need("quantization", "a protocol")(),
                reference=os.path.basename(path),
                reference_sha256=reference.sha256,
                reference_count=reference.count or 0,
                num_samples=self.num_samples,
            ),
        }

    def files(self) -> list[str]:
        """Paths of what a call reads; FileNotFoundError without weights."""
        found = [self.reference] if self.reference else []
        if self.network in PUBLISHED:
            found.append(str(find_weights(self.network, self.weights)))
        return found

    def check(self) -> None:
        """Raises what a call would for missing weights or a wrong reference."""
        net = load_net(self.network, self.weights)
        if self.reference:
            self._reference(net, self.reference)

    def _reference(self, net: FeatureNet, path: str) -> tuple[FeatureSet, Reference]:
        names = spaces_of(net)
        main = read_reference(path, names["features"])
        # A file that says how its features were made must agree with the network.
        for key, ours in {
            "extractor_sha256": net.weights_sha256,
            "resize": net.resize,
        }.items():
            if main.protocol.get(key, ours) != ours:
                raise ValueError(
                    f"{path}: its features have {key} {main.protocol[key]}, those of "
                    f"the samples would have {ours}: the distance would mean nothing. "
                    "Measure the reference again with `scm data stats`"
                )
        moments = {"features": (main.mean, main.covariance)}
        if "sfid" in self.metrics:
            spatial = read_reference(path, names.get("spatial", "sfid"))
            moments["spatial"] = (spatial.mean, spatial.covariance)
        outputs = {} if main.features is None else {"features": main.features}
        return FeatureSet(f"the reference {path}", moments, outputs), main
