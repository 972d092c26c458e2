"""Whether images show what their captions say, word by word."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import numpy as np

from scm_jax.evaluation.features import shapes_reader
from scm_jax.evaluation.protocol import protocol_in
from scm_jax.evaluation.subject import OneSet, Subject

KINDS = ("seen", "held_out")


@dataclasses.dataclass(frozen=True)
class CaptionAgreement(OneSet):
    """Share of samples of ``captioned_shapes`` on which a frozen network reads a word.

    The idea is that of GenEval (arXiv 2310.11513), with the true word known: every full
    caption says size, colour, shape, second shape and its colour (or that there is
    none), background and its colour, and place. The kinds of questions are ``seen`` and
    ``held_out`` combinations.
    """

    def __call__(self, subject: Subject) -> dict[str, Any]:
        """Shares by kind of combination.

        Returns:
          ``agreement_KIND``: mean over the eight words; ``all_words_KIND``: all of them
          right; ``HEAD_KIND`` for each word; the first two also with ``_real``, for
          real images of the same captions, which is the ceiling; ``num_samples``.
        """
        questions = subject.need("questions", "caption agreement")
        draw = subject.need("pixels", "caption agreement")
        weights, hashes = shapes_reader.load_weights(), hashlib.sha256()
        found: dict[str, Any] = {"num_samples": self.num_samples}
        for kind in KINDS:
            asked = questions(self.num_samples, kind)
            hashes.update(asked.pixels.tobytes())
            given = self.num_samples, self.steps, self.seed
            made = np.concatenate([*draw(*given, (0, 1), prompts=asked.prompts)])
            for end, pixels in (("", made), ("_real", asked.pixels)):
                named = shapes_reader.read(weights, pixels)
                right = {k: named[k] == asked.targets[k] for k in shapes_reader.HEADS}
                table = np.array(list(right.values()))
                found[f"agreement_{kind}{end}"] = float(table.mean())
                found[f"all_words_{kind}{end}"] = float(table.all(axis=0).mean())
                if not end:
                    found |= {f"{k}_{kind}": float(v.mean()) for k, v in right.items()}
        network = "shapes_reader", shapes_reader.WEIGHTS_SHA256
        reference = hashes.hexdigest(), 2 * self.num_samples
        found |= protocol_in(self, subject, "caption_agreement", network, *reference)
        return found
