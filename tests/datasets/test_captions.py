"""Captions: words, bytes, one of several per visit, and the captions of shapes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scm_jax.datasets import (
    captions,
    make_dataset,
    pipeline,
    shape_captions,
    shapes,
    spoken_numbers,
)
from scm_jax.runs import conditions
from scm_jax.types import FIRST_WORD, TextInfo

TEXT = TextInfo(6, ("a", "red", "star"))


def test_words_are_tokens_and_others_are_spelled():
    tokens = captions.tokenize(TEXT, ["A RED star", "", "red ü"])
    words = [FIRST_WORD, FIRST_WORD + 1, FIRST_WORD + 2]
    assert tokens.tolist() == [
        [*words, 0, 0, 0],
        [0] * 6,
        [FIRST_WORD + 1, 2 + 0xC3, 2 + 0xBC, 1, 0, 0],
    ]
    assert tokens.max() < TEXT.vocab_size and tokens.dtype == np.int32
    assert captions.unknown_words(TEXT, ["a blue star", "blue dots"]) == [
        "blue",
        "dots",
    ]
    with pytest.raises(ValueError, match="'star .*' has 7 tokens; the context holds 6"):
        captions.tokenize(TEXT, ["star " * 7])
    cut = captions.tokenize(TEXT, ["star " * 7], too_long="cut")
    assert cut.tolist() == [[FIRST_WORD + 2] * 6]


def test_a_word_that_training_does_not_spell_is_an_error():
    closed = dataclasses.replace(TEXT, spells=False)
    assert captions.tokenize(closed, ["", "red"]).any(1).tolist() == [False, True]
    message = "no caption of the training has 'frog': its words are a, red, star"
    with pytest.raises(ValueError, match=message):
        captions.tokenize(closed, ["a red frog"])
    with pytest.raises(ValueError, match="no caption of the training has 'eleven'"):
        conditions.from_texts(spoken_numbers.TEXT, ["three eleven"])


def test_one_of_several_captions_is_drawn_for_each_visit():
    tokens = jnp.arange(3 * 4 * 2).reshape(3, 4, 2)
    count = jnp.asarray([1, 2, 4])
    fields = {"tokens": tokens, "num_captions": count, "image": jnp.zeros((3, 5))}
    first = pipeline.one_caption(fields)
    np.testing.assert_array_equal(first["tokens"], tokens[:, 0])
    assert set(first) == {"tokens", "image"}
    draw, seen = jax.jit(pipeline.one_caption), [set(), set(), set()]
    for epoch in range(60):
        identity = np.array([[0, epoch, i] for i in range(3)], np.uint32)
        found = draw(fields, pipeline.item_keys(identity))["tokens"]
        for row in range(3):
            (number,) = np.flatnonzero((tokens[row] == found[row][None]).all(axis=1))
            seen[row].add(int(number))
    assert seen == [{0}, {0, 1}, {0, 1, 2, 3}]


@pytest.fixture(scope="module")
def source():
    return shapes.ShapeSource(num_items=2000, combinations="seen", captioned=True)


def test_a_batch_holds_captions_of_its_images():
    dataset = make_dataset("captioned_shapes", num_items=50)
    text = dataset.info.text
    batch = jax.jit(dataset.to_batch)(raw := next(dataset.iterator(8, 0)))
    source = dataset.opened.source.fields["tokens"]
    for tokens, (_, _, item) in zip(batch.tokens, raw.items, strict=True):
        assert (source[item] == np.asarray(tokens)).all(axis=1).any()
    assert batch.label is None and batch.tokens.shape == (8, text.length)


def test_captions_say_what_is_drawn_and_fit(source):
    seen = source.attributes(np.arange(200))
    for row in range(200):
        full, *others = shape_captions.captions(seen, row)
        said = shape_captions.words(seen, row)
        assert full == source.caption(row)
        for key, word in said.items():
            assert word in shape_captions.LEGAL[key] and word in full
        for text in others:
            assert said["shape"] in text and said["color"] in text
            assert len(text) <= len(full) + 1
    targets = shape_captions.targets(seen)
    for key, legal in shape_captions.LEGAL.items():
        assert legal[targets[key][7]] == shape_captions.words(seen, 7)[key]
    # No word is spelled, and each is used.
    tokens = source.gather(np.arange(2000))["tokens"]
    used = np.unique(tokens)
    assert set(used) == {
        0,
        *range(FIRST_WORD, FIRST_WORD + len(shape_captions.vocabulary())),
    }


def test_captions_are_a_function_of_the_item(source):
    picked = source.gather(np.array([1999, 3, 70]))["tokens"]
    np.testing.assert_array_equal(
        picked, source.gather(np.arange(2000))["tokens"][[1999, 3, 70]]
    )


def test_held_out_combinations_are_in_no_training_image(source):
    indices = np.arange(2000)
    seen = source.attributes(indices)
    assert not (seen.color == shapes.held_out_color(seen.shape)).any()
    other = shapes.ShapeSource("test", 2000, combinations="held_out").attributes(
        indices
    )
    assert (other.color == shapes.held_out_color(other.shape)).all()
    # All other colours are drawn alike, and backgrounds keep their distance.
    counts = np.bincount(seen.color[seen.shape == 2], minlength=8)
    assert (counts > 0).sum() == 7
    distance = (seen.background_color - seen.color) % 8
    assert distance.min() >= 2 and distance.max() <= 6
    with pytest.raises(ValueError, match="dataset.combinations = 'odd'"):
        shapes.ShapeSource(combinations="odd")


def test_questions_are_test_items_with_their_words():
    info = make_dataset("captioned_shapes", num_items=50).info
    asked = info.questions(20, "held_out")
    assert asked.pixels.shape == (20, 32, 32, 3) and len(asked.prompts.texts) == 20
    tokens = captions.tokenize(info.text, asked.prompts.texts)
    np.testing.assert_array_equal(asked.prompts.fields["tokens"], tokens)
    for row, text in enumerate(asked.prompts.texts):
        assert all(
            shape_captions.LEGAL[k][v[row]] in text for k, v in asked.targets.items()
        )
    held_out = shapes.held_out_color(asked.targets["shape"])
    np.testing.assert_array_equal(asked.targets["color"], held_out)
    assert info.examples().texts == info.questions(64, "seen").prompts.texts
