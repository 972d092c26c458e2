"""CLIP, T5 and Gemma as text encoders, through the packages transformers and torch.

The only file that needs them: ``pip install 'scm_jax[text]'``.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from scm_jax.datasets.preparation.text_encoders import Settings
from scm_jax.files.optional import require


class Family(NamedTuple):
    """What models of a family share, where ``Settings`` say nothing else."""

    model_class: str  # of transformers
    layer: str
    max_length: int
    pooled: str = ""  # the output that is one vector for the caption


class TransformersText:
    """A model of transformers; see ``text_encoders.TextEncoder``."""

    def __init__(self, family: Family, settings: Settings):
        if not settings.model:
            raise ValueError("--model is missing: a folder, or a name of the hub")
        packages = "encoding captions", "scm_jax[text]"
        self._torch = require("torch", *packages)
        transformers = require("transformers", *packages)
        where = {"revision": settings.revision} if settings.revision else {}
        tokenizer = transformers.AutoTokenizer.from_pretrained(settings.model, **where)
        tokenizer_sha256 = _tokenizer_sha256(tokenizer)  # use changes what it writes
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        tokenizer.padding_side = "right"
        build = getattr(transformers, family.model_class)
        model = build.from_pretrained(settings.model, dtype="auto", **where)
        device = "cuda" if self._torch.cuda.is_available() else "cpu"
        self._model, self._tokenizer = model.eval().to(device), tokenizer
        self._pooled = family.pooled
        commit = getattr(model.config, "_commit_hash", None)
        self.identity: dict[str, Any] = {
            "name": settings.model.rstrip("/").rpartition("/")[2],
            "revision": commit or settings.revision or "local",
            "sha256": _weights_sha256(self._torch, model),
            "tokenizer_sha256": tokenizer_sha256,
            "layer": settings.layer or family.layer,
            "dtype": settings.dtype,
            "max_length": settings.max_length or family.max_length,
            "prefix": settings.prefix,
        }
        states, pooled = self.encode([""])[0]
        self.identity |= {"width": states.shape[1], "pooled": len(pooled)}

    def encode(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        tokens = self._tokenizer(
            [self.identity["prefix"] + text for text in texts],
            padding=True,
            truncation=True,
            max_length=self.identity["max_length"],
            return_tensors="pt",
        ).to(self._model.device)
        with self._torch.inference_mode():
            out = self._model(**tokens, output_hidden_states=True)
        states = self._chosen(out).float().cpu().numpy()
        lengths = tokens["attention_mask"].sum(1).tolist()
        pooled = np.zeros((len(texts), 0), np.float32)
        if self._pooled:
            pooled = out[self._pooled].float().cpu().numpy()
        return [(s[:n], p) for s, n, p in zip(states, lengths, pooled, strict=True)]

    def _chosen(self, out: Any) -> Any:
        layer, states = self.identity["layer"], out.hidden_states
        try:
            return out.last_hidden_state if layer == "last" else states[int(layer)]
        except (ValueError, IndexError):
            raise ValueError(
                f"--layer={layer} is not one of last, 0..{len(states) - 1} or "
                f"-1..{-len(states)}"
            ) from None


def _weights_sha256(torch: Any, model: Any) -> str:
    """SHA-256 of names and bytes of the weights, whatever files they came in."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _tokenizer_sha256(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend else json.dumps(sorted(tokenizer.get_vocab()))
    return hashlib.sha256(text.encode()).hexdigest()


# CLIP as SD3 reads it, Gemma as SANA, umT5 as Wan.
_CLIP = Family("CLIPTextModelWithProjection", "-2", 77, "text_embeds")
make_clip = functools.partial(TransformersText, _CLIP)
make_t5 = functools.partial(TransformersText, Family("T5EncoderModel", "last", 256))
make_umt5 = functools.partial(TransformersText, Family("UMT5EncoderModel", "last", 512))
make_gemma = functools.partial(TransformersText, Family("AutoModel", "last", 300))
