"""Prompts and classes become conditions; a run keeps how it reads captions."""

import dataclasses
import json
import logging

import numpy as np
import pytest

from scm_jax.runs import conditions
from scm_jax.runs.directory.layout import RunDir
from scm_jax.types import DatasetInfo, Prompts, TextInfo

TEXT = TextInfo(4, ("a", "red", "star"))
INFO = DatasetInfo("tiny", (2, 2, 1), 0, 0.5, 10, text=TEXT)


def test_prompts_are_taken_in_turn():
    fields = conditions.asked(INFO, 3, prompts=["a star", ""])
    assert fields["tokens"].tolist() == [[258, 260, 0, 0], [0] * 4, [258, 260, 0, 0]]
    one = conditions.asked(INFO, 2, prompts="red")
    assert one["tokens"].tolist() == [[259, 0, 0, 0]] * 2
    stored = Prompts(("x",), {"context": np.ones((1, 2, 3))})
    assert conditions.asked(INFO, 5, prompts=stored)["context"].shape == (5, 2, 3)
    info = dataclasses.replace(
        INFO, examples=lambda: conditions.from_texts(TEXT, ["a"])
    )
    assert conditions.asked(info, 2)["tokens"][:, 0].tolist() == [258, 258]


def test_unknown_words_are_said_once_and_long_prompts_as_configured(caplog):
    caplog.set_level(logging.WARNING)
    conditions.from_texts(TEXT, ["a pig", "pig"], too_long="cut")
    first, second = (record.getMessage() for record in caplog.records)
    assert first.endswith("letter by letter: pig")
    assert second == "prompt 'a pig' was cut to 4 tokens"
    with pytest.raises(ValueError, match="has 5 tokens"):
        conditions.from_texts(TEXT, ["a pig"])


def test_what_cannot_be_asked_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="without captions: it takes no prompt"):
        conditions.asked(dataclasses.replace(INFO, text=None), 1, prompts="a")
    with pytest.raises(ValueError, match="states of t5.*`data encode-text`"):
        conditions.from_texts(TextInfo(4, width=8, encoder="t5"), ["a"])
    with pytest.raises(ValueError, match="no example captions: give prompts"):
        conditions.asked(INFO, 1)
    with pytest.raises(ValueError, match="no classes"):
        conditions.asked(INFO, 1, labels=3, prompts="a")
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(ValueError, match="no prompt: write one a line"):
        conditions.read_prompts(None, tmp_path / "empty.txt")
    (tmp_path / "two.txt").write_text("a star\n\n red \n")
    assert conditions.read_prompts(None, tmp_path / "two.txt") == ("a star", "red")


def test_a_run_keeps_its_vocabulary_and_refuses_another(tmp_path):
    run_dir = RunDir(tmp_path)
    assert conditions.read_text(run_dir) is None
    conditions.write_text(run_dir, None)
    assert not run_dir.text_path.exists()
    conditions.write_text(run_dir, TEXT)
    assert conditions.read_text(run_dir) == TEXT
    conditions.write_text(run_dir, TEXT)
    assert "null" not in json.loads(run_dir.text_path.read_text())
    other = TextInfo(4, ("a", "blue", "star"))
    with pytest.raises(ValueError, match="captions of this dataset are read diff"):
        conditions.write_text(run_dir, other)
    states = TextInfo(4, width=8, encoder="t5 sha256:12")
    with pytest.raises(ValueError, match=r"\(t5 sha256:12\).*\(3 words, at most 4"):
        conditions.write_text(run_dir, states)
    run_dir.text_path.write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        conditions.read_text(run_dir)
