"""Stored states of captions: what they are, whose they are, and that they go on."""

import importlib.util
import json

import numpy as np
import pytest

from scm_jax.datasets import make_dataset, text_states
from scm_jax.datasets.preparation import encode_text, text_encoders
from scm_jax.datasets.text_states import States
from scm_jax.runs import conditions
from scm_jax.types import TextInfo
from tests.commands.in_process import scm
from tests.preparation.made_items import run, target
from tests.preparation.test_captions import SAID, captioned

TEXTS = ["a red star", "", "a blue moon", "one two three four five six"]


def hashed(**settings):
    return text_encoders.make_encoder("hashed", text_encoders.Settings(**settings))


class Counting(text_encoders.HashedWords):
    """Counts captions, and stops as if it were killed."""

    seen, most = 0, 100

    def encode(self, texts):
        self.seen += len(texts)
        if self.seen > self.most:
            raise KeyboardInterrupt
        return super().encode(texts)


def files(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_states_of_true_length_come_back_padded(tmp_path):
    encoder = hashed(max_length=5)
    folder = encode_text.encode(TEXTS, encoder, tmp_path, "train", shard_captions=3)
    states = States.open(folder)
    assert states.texts == tuple(text for text in TEXTS if text)
    tokens = 0
    for text, (expected, pooled) in zip(TEXTS, encoder.encode(TEXTS), strict=True):
        found, vector = states.find(text)
        np.testing.assert_array_equal(found, expected.astype(np.float16))
        np.testing.assert_allclose(vector, pooled, rtol=1e-6)
        tokens += len(found)
    assert tokens == 4 + 1 + 4 + 5  # the last one is cut
    fields = states.fields([("a blue moon", "a red star"), (), (TEXTS[3],)], 2)
    assert fields["context"].shape == (3, 2, 5, 32)
    assert fields["context"].dtype == np.float16
    np.testing.assert_array_equal(fields["num_captions"], [2, 1, 1])
    np.testing.assert_array_equal(
        fields["context_mask"].sum(2), [[4, 4], [0, 0], [5, 0]]
    )
    assert not fields["context"][~fields["context_mask"]].any()
    text = states.text
    assert (text.length, text.width, text.pooled) == (5, 32, 32)
    np.testing.assert_array_equal(text.null[0], states.find("")[0])
    assert text.encoder.startswith("hashed_words 1 sha256:")
    every = np.concatenate([e for e, _ in encoder.encode(TEXTS)]).astype(np.float16)
    scale = np.square(every.astype(np.float64)).mean(0)
    np.testing.assert_allclose(text_states.read_manifest(folder)["scale"], scale)
    with pytest.raises(ValueError, match="no states of the caption 'a green moon'"):
        states.find("a green moon")


def test_a_killed_command_goes_on_after_its_whole_shards(tmp_path):
    whole = encode_text.encode(TEXTS, hashed(), tmp_path / "a", "train", 1)
    killed = Counting(text_encoders.Settings())
    killed.most = 2
    with pytest.raises(KeyboardInterrupt):
        encode_text.encode(TEXTS, killed, tmp_path / "b", "train", 1)
    with pytest.raises(FileNotFoundError, match="by the same command"):
        States.open(tmp_path / "b")
    again = Counting(text_encoders.Settings())
    encode_text.encode(TEXTS, again, tmp_path / "b", "train", 1)
    assert again.seen == 2  # the rest
    assert files(tmp_path / "b") == files(whole)
    other = Counting(text_encoders.Settings())  # the captions have changed
    encode_text.encode(TEXTS[::-1], other, tmp_path / "b", "train", 1)
    assert States.open(tmp_path / "b").texts == (*TEXTS[:1:-1], TEXTS[0])


def test_changed_and_foreign_states_are_refused(tmp_path):
    folder = encode_text.encode(TEXTS, hashed(), tmp_path, "prompts")
    text = States.open(folder).text
    assert conditions.read_states(folder, text).texts == (TEXTS[0], *TEXTS[2:])
    other = hashed(prefix="draw")
    with pytest.raises(ValueError, match=r"states of hashed_words .* would be of hash"):
        encode_text.encode(TEXTS, other, tmp_path, "test")
    foreign = text_states.encoder_name(other.identity)
    with pytest.raises(
        ValueError, match=f"{text.encoder}, and this run reads {foreign}"
    ):
        conditions.read_states(folder, TextInfo(32, encoder=foreign))
    with pytest.raises(ValueError, match="this run reads no captions"):
        conditions.read_states(folder, None)
    shard = folder / "prompts-00000-of-00001.safetensors"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    with pytest.raises(ValueError, match="run the same `data encode-text` again"):
        States.open(folder)
    shard.write_bytes(content)
    file = folder / "manifest.json"
    file.write_text(file.read_text().replace('"layer": "last"', '"layer": "-2"'))
    with pytest.raises(ValueError, match=r"was changed after .* its SHA-256 is"):
        States.open(folder)


def test_states_that_overflow_name_the_caption(tmp_path):
    class Large(text_encoders.HashedWords):
        def encode(self, texts):
            found = zip(texts, super().encode(texts), strict=True)
            return [((1e6 if text else 1) * s, p) for text, (s, p) in found]

    encoder = Large(text_encoders.Settings())
    with pytest.raises(ValueError, match="'a red star' .* --dtype=float32"):
        encode_text.encode(TEXTS, encoder, tmp_path, "train")


def test_a_prepared_dataset_gives_its_states(tmp_path):
    run(captioned(), tmp_path)
    where = ("--dataset=tiny", f"--root={tmp_path}", "--max_length=7")
    said = scm("data", "encode-text", *where, "--encoder=hashed").stdout.strip()
    assert said == str(target(tmp_path) / "states/hashed")
    options = {"root": tmp_path, "prepared": "tiny", "captioned": True}
    data = make_dataset("images", states="hashed", **options)
    raw = next(data.iterator(12, seed=0))
    assert raw.fields["context"].shape == (12, 3, 7, 32)
    batch = data.to_batch(raw)
    assert batch.context.shape == (12, 7, 32) and batch.pooled.shape == (12, 32)
    lengths = np.asarray(batch.context_mask.sum(1))
    empty = [not SAID[item] for item in raw.items[:, 2]]
    np.testing.assert_array_equal(lengths == 0, empty)
    fields = data.info.examples().fields
    assert fields["context"].shape == (len(data.info.examples().texts), 7, 32)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red star\n\na green one\n")
    out = tmp_path / "prompts"
    flags = (f"--prompts={prompts}", f"--out_name={out}", "--max_length=7")
    scm("data", "encode-text", *flags, "--encoder=hashed")
    found = conditions.read_states(out, data.info.text)
    assert found.texts == ("a red star", "a green one")
    assert found.fields["context"].shape == (2, 7, 32)
    np.testing.assert_array_equal(found.fields["context"][0], fields["context"][0])
    wrong = scm("data", "encode-text", *where[:2], "--encoder=hashd", check=1).stderr
    assert "did you mean 'hashed'" in wrong
    with pytest.raises(FileNotFoundError, match="data encode-text"):
        make_dataset("images", states="t5", **options)


# --- transformers ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_models(tmp_path_factory):
    """Random models of a few thousand weights, with a tokenizer of words."""
    for package in ("torch", "transformers"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install 'scm_jax[text]'")
    import tokenizers
    import torch
    import transformers as t

    root, words = tmp_path_factory.mktemp("models"), ["<pad>", "</s>", "<unk>"]
    words += sorted({word for text in TEXTS for word in text.split()})
    table = {word: number for number, word in enumerate(words)}
    model = tokenizers.models.WordLevel(table, unk_token="<unk>")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    marks = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    wrapped = t.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **marks)
    size = {"vocab_size": len(words), "num_attention_heads": 2, "num_hidden_layers": 3}
    size |= {"hidden_size": 16, "intermediate_size": 8}
    clip = t.CLIPTextConfig(projection_dim=6, eos_token_id=1, **size)
    t5 = t.T5Config(d_model=16, d_ff=8, num_layers=2, num_heads=2, d_kv=8,
                    vocab_size=len(words))  # fmt: skip
    gemma = t.Gemma2Config(num_key_value_heads=1, head_dim=8, **size)
    torch.manual_seed(0)
    made = {"clip": t.CLIPTextModelWithProjection(clip), "t5": t.T5EncoderModel(t5)}
    for kind, model in (made | {"gemma": t.Gemma2Model(gemma)}).items():
        model.save_pretrained(root / kind)
        wrapped.save_pretrained(root / kind)
    return root


@pytest.mark.parametrize("kind, pooled", [("clip", 6), ("t5", 0), ("gemma", 0)])
def test_models_of_transformers(tiny_models, kind, pooled, tmp_path):
    settings = text_encoders.Settings(str(tiny_models / kind), max_length=6)
    encoder = text_encoders.make_encoder(kind, settings)
    found = encoder.encode(TEXTS)
    assert [states.shape for states, _ in found] == [(4, 16), (1, 16), (4, 16), (6, 16)]
    assert all(vector.shape == (pooled,) for _, vector in found)
    for text, (states, vector) in zip(TEXTS, found, strict=True):  # padding is unseen
        (alone, alone_vector), *_ = encoder.encode([text])
        np.testing.assert_allclose(states, alone, atol=1e-5)
        np.testing.assert_allclose(vector, alone_vector, atol=1e-5)
    identity = encoder.identity
    assert identity["name"] == kind and identity["revision"] == "local"
    assert len(identity["sha256"]) == len(identity["tokenizer_sha256"]) == 64
    assert json.loads(json.dumps(identity)) == identity
    again = text_encoders.make_encoder(kind, settings)
    assert again.identity == identity
    folder = encode_text.encode(TEXTS, encoder, tmp_path, "train")
    assert States.open(folder).text.pooled == pooled
    settings = text_encoders.Settings(str(tiny_models / kind), layer="7")
    with pytest.raises(ValueError, match="--layer=7 is not one of last, 0.."):
        text_encoders.make_encoder(kind, settings)
    settings = text_encoders.Settings(str(tiny_models / kind), layer="0")
    other = text_encoders.make_encoder(kind, settings)
    assert np.abs(other.encode(TEXTS)[0][0] - found[0][0]).max() > 1e-3
