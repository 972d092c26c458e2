"""Whether spoken sequences say what their prompts say, digit by digit."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import numpy as np

from scm_jax.evaluation.caption_agreement import KINDS
from scm_jax.evaluation.features import speech_reader
from scm_jax.evaluation.protocol import protocol_in
from scm_jax.evaluation.sample_quality import draw
from scm_jax.evaluation.subject import OneSet, Subject

SLOT = 4_096  # samples from the start of one digit to that of the next
SILENT = 0.1  # largest sample of a slot without a digit; words reach 0.5


@dataclasses.dataclass(frozen=True)
class NumberAgreement(OneSet):
    """Share of the digits of ``spoken_numbers`` that a frozen network hears in place.

    The kinds of questions are ``seen`` and ``held_out`` sequences.
    """

    num_samples: int = 500

    def __call__(self, subject: Subject) -> dict[str, Any]:
        """Shares by kind of sequence.

        Returns:
          ``digits_KIND``: digits heard in their places; ``sequence_KIND``: clips with
          all of them right and silence behind; both also with ``_real``: of real clips
          of the same prompts, on their spectrograms; ``num_samples``.
        """
        questions = subject.need("questions", "agreement of numbers")
        to_sound = subject.need("to_sound", "agreement of numbers")
        heard = subject.need("spectrograms", "agreement of numbers")
        weights, hashes = speech_reader.load_weights(), hashlib.sha256()
        found: dict[str, Any] = {"num_samples": self.num_samples}
        for kind in KINDS:
            asked = questions(self.num_samples, kind)
            digits = asked.targets["digits"]
            hashes.update(asked.pixels.tobytes())
            shape = (len(digits), *subject.sample_shape)
            how = {"prompts": asked.prompts}
            x = draw(subject, shape, self.steps, self.seed, None, **how)
            slots = in_slots(to_sound(x), digits.shape[1])
            images = heard(slots.reshape(-1, SLOT))
            real = asked.pixels.reshape(len(digits), 32, digits.shape[1], 32, 1)
            silent = np.abs(slots).max(-1) < SILENT
            ends = ("", images, silent), ("_real", real.swapaxes(1, 2), True)
            for end, read, quiet in ends:
                read = read.reshape(-1, *speech_reader.IMAGE_SHAPE)
                named = speech_reader.read(weights, read)["digit"].argmax(-1)
                right = named.reshape(digits.shape) == digits
                found[f"digits_{kind}{end}"] = float(right[digits >= 0].mean())
                whole = np.where(digits >= 0, right, quiet).all(1)
                found[f"sequence_{kind}{end}"] = float(whole.mean())
        network = "speech_reader", speech_reader.WEIGHTS_SHA256
        reference = hashes.hexdigest(), 2 * self.num_samples
        found |= protocol_in(self, subject, "number_agreement", network, *reference)
        return found


def in_slots(sound: np.ndarray, number: int) -> np.ndarray:
    """Clips ``(n, samples)`` cut into ``(n, number, SLOT)``, silence at the end.

    Example:
      >>> in_slots(np.ones((2, 5000)), 2).sum(-1).tolist()
      [[4096.0, 904.0], [4096.0, 904.0]]
    """
    missing = max(0, number * SLOT - sound.shape[1])
    sound = np.pad(sound, ((0, 0), (0, missing)))[:, : number * SLOT]
    return sound.reshape(len(sound), number, SLOT)
