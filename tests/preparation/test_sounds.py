"""Sounds on disk as clips: layouts, rules, refusals; and the way back to sound."""

import io
import json

import numpy as np
import pytest
import soundfile

from scm_jax.datasets import front_ends, identity, make_dataset
from scm_jax.datasets.preparation import inspection, manifest, prepare, verify
from scm_jax.datasets.preparation.readers import sources
from scm_jax.datasets.preparation.readers.items import ItemError
from tests.commands.in_process import scm
from tests.preparation.raw_data import write_folder, write_tar

RATE = 8000
FRONT_END = front_ends.choose("complex_stft", RATE, 0.25)  # 1,984 samples


def tone(number, samples=FRONT_END.samples, rate=RATE):
    """A sine whose frequency tells which one it is."""
    return 0.3 * np.sin(2 * np.pi * 400 * (number + 1) * np.arange(samples) / rate)


def encode(samples, rate=RATE, kind="WAV", subtype=None):
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=subtype)
    return file.getvalue()


def wav(number, **how):
    return encode(tone(number, **how))


def open_sounds(path, **options):
    return sources.open_items(path, **{"front_end": FRONT_END, "trim": False} | options)


def said(items):
    """File, class and texts of every item."""
    fields = [items.read(i) for i in range(len(items))]
    names = [items.name(i).rpartition("/")[2] for i in range(len(items))]
    classes = [items.class_names[int(f["label"])] for f in fields if "label" in f]
    texts = [f.get("captions") for f in fields]
    return names, classes, texts


def number_of(clip):
    """Which ``tone`` a clip is."""
    strongest = np.abs(np.fft.rfft(clip[:1600].astype(float))).argmax()
    return round(strongest * 5 / 400) - 1


# --- layouts --------------------------------------------------------------------------


def test_class_folders_with_texts_beside_the_files(tmp_path):
    kinds = {"cat/a.wav": "WAV", "dog/b.flac": "FLAC", "dog/c.ogg": "OGG"}
    files = {n: encode(tone(i), kind=k) for i, (n, k) in enumerate(kinds.items())}
    texts = {"cat/a.txt": b"a cat", "dog/b.txt": b"one\ntwo", "dog/c.json": b"{}"}
    items = open_sounds(write_folder(tmp_path, files | texts))
    captions = [("a cat",), ("one", "two"), ()]
    assert said(items)[1:] == (["cat", "dog", "dog"], captions)
    clips = [items.read(i)["sound"] for i in range(3)]
    assert [number_of(clip) for clip in clips] == [0, 1, 2]
    assert all(c.shape == (1984,) and c.dtype == np.int16 for c in clips)
    for clip, number in zip(clips[:2], (0, 1), strict=True):  # without loss
        np.testing.assert_allclose(clip / 32768, tone(number), atol=1 / 32768)
    assert "clips of 0.248 s at 8000 Hz are 32x64x2" in sources.summarize(items)


def test_ljspeech(tmp_path):
    table = ('LJ1|He said "no|He said "no\nLJ2|No. 5|Number five\nLJ3|"A',)
    files = {f"wavs/LJ{i}.wav": wav(i) for i in (1, 2, 3)}
    files["metadata.csv"] = "".join(table).encode()
    _, classes, texts = said(open_sounds(write_folder(tmp_path, files)))
    assert not classes and texts == [('He said "no',), ("Number five",), ('"A',)]


def test_vctk(tmp_path):
    files = {}
    for number, speaker in enumerate(("p225", "p226")):
        for mic in (1, 2):
            name = f"wav48_silence_trimmed/{speaker}/{speaker}_001_mic{mic}.flac"
            files[name] = encode(tone(number), kind="FLAC")
        files[f"txt/{speaker}/{speaker}_001.txt"] = f"I am {number}.\n".encode()
    items = open_sounds(write_folder(tmp_path, files))
    names, classes, texts = said(items)
    assert names == ["p225_001_mic1.flac", "p226_001_mic1.flac"]
    assert classes == ["p225", "p226"] and texts == [("I am 0.",), ("I am 1.",)]
    assert "2 of a second microphone left out" in items.notes


def test_esc50(tmp_path):
    rows = [("1-a.wav", 1, "dog"), ("2-b.wav", 2, "rain"), ("5-c.wav", 5, "dog")]
    lines = [f"{file},{fold},7,{category},True" for file, fold, category in rows]
    table = "\n".join(["filename,fold,target,category,esc10", *lines])
    files = {f"audio/{row[0]}": wav(i) for i, row in enumerate(rows)}
    folder = write_folder(tmp_path, files | {"meta/esc50.csv": table.encode()})
    train = open_sounds(folder, target="train")
    assert said(train)[:2] == (["1-a.wav", "2-b.wav"], ["dog", "rain"])
    assert said(open_sounds(folder, target="test"))[0] == ["5-c.wav"]
    assert said(open_sounds(folder, split="2,5"))[0] == ["2-b.wav", "5-c.wav"]
    assert len(open_sounds(folder, split="none")) == 3
    write_folder(folder, {"audio/3-d.wav": wav(0)})
    with pytest.raises(ValueError, match=r"3-d.wav: meta/esc50.csv does not name it"):
        open_sounds(folder, target="train")


def test_tables_and_shards(tmp_path):
    table = b"audio,speaker,transcript\nx/0.wav,ann,one two\nx/1.wav,bob,three\n"
    sounds = {"0.wav": wav(0), "1.wav": wav(1)}
    folder = write_folder(tmp_path / "x", sounds)
    (tmp_path / "t.csv").write_bytes(table)
    path = tmp_path / "t.csv"
    items = open_sounds(folder, caption_file=path)
    assert said(items)[2] == [("one two",), ("three",)]
    texts = {"0.txt": b"zero", "0.cls": b"1", "1.txt": b"one", "1.cls": b"0"}
    files = dict(sorted({**sounds, **texts}.items()))
    shards = open_sounds(write_tar(tmp_path / "s-0.tar", files))
    assert shards.origin["kind"] == "webdataset"
    assert said(shards)[1:] == (["1", "0"], [("zero",), ("one",)])


# --- rules ----------------------------------------------------------------------------


def test_what_is_done_to_a_sound_is_noted(tmp_path):
    loud = np.clip(5 * tone(0), -1, 1)
    stereo = np.stack([tone(1, 9000, 22050), 0.5 * tone(1, 9000, 22050)], axis=1)
    silence = np.zeros(4000)
    padded = np.concatenate([silence, tone(2, 800), silence])
    files = {"a.wav": encode(loud), "b.wav": encode(stereo, 22050)}
    folder = write_folder(tmp_path, files | {"c.wav": encode(padded)})
    clipped, mixed, short = (open_sounds(folder, trim=True).read(i) for i in range(3))
    assert clipped["noted"] == ("clipped: more than 0.1% of the samples at full scale",)
    assert mixed["noted"] == (
        "several channels, mixed to one by their mean",
        "resampled from 22050 Hz",
        "longer than a clip, cut",
    )
    middle = slice(200, 1800)  # away from the ends of the filter, and of the fade
    expected = 0.75 * tone(1)[middle]
    np.testing.assert_allclose(mixed["sound"][middle] / 32768, expected, atol=3e-3)
    assert mixed["sound"][-1] == 0  # faded out
    assert short["noted"] == ("shorter, silence added",)
    heard = np.flatnonzero(short["sound"])
    assert heard[0] < 70 and heard[-1] < 70 + 800  # 8 ms, and the tone
    with pytest.raises(ItemError, match=r"c.wav: is silent: the peak of its clip is 0"):
        open_sounds(folder).read(2)


ONE = encode(tone(0), kind="FLAC")
NOISE = 0.1 * np.random.default_rng(0).standard_normal(40_000)
OGG = encode(NOISE, kind="OGG")
ANTIPHASE = np.stack([tone(0), -tone(0)], axis=1)
BAD = {
    "does not decode, it is damaged or no sound": b"RIFF, he wrote.",
    r"is cut off: 978 samples are there": wav(0)[:2000],
    "damaged or no sound|is cut off": ONE[: len(ONE) // 2],
    r"is cut off: [34]\d,\d+ samples are there": OGG[:-40],
    "is empty, it has no samples": encode(np.zeros(0)),
    "is silent: the peak of its clip is 3e-05": encode(tone(0) * 1e-4),
    "is silent: the peak of its clip is 2e-05": encode(ANTIPHASE),
    "samples that are not finite": encode(tone(0) * np.nan, subtype="FLOAT"),
    r"has 4000 Hz, less than --sample_rate=8000: it has nothing above 2000 Hz": encode(
        tone(0), 4000
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_a_bad_sound_is_named_with_the_reason(message, tmp_path):
    items = open_sounds(write_folder(tmp_path, {"x.wav": BAD[message]}))
    with pytest.raises(ItemError, match=f"x.wav: .*({message})"):
        items.read(0)


def test_bad_sources_and_options_are_refused(tmp_path):
    folder = write_folder(tmp_path / "images", {"a.png": b"", "b.png": b""})
    with pytest.raises(ValueError, match=r"holds no sounds; sounds end in .wav .flac"):
        open_sounds(folder)
    np.savez(tmp_path / "x.npz", np.zeros(3))
    with pytest.raises(ValueError, match=r"front_end = ComplexStft.*has no sounds"):
        open_sounds(tmp_path / "x.npz", kind="npz")
    with pytest.raises(ValueError, match=r"frames = 3 reads videos, sample_rate = 80"):
        open_sounds(folder, frames=3)


def test_front_ends_are_chosen_for_a_rate_and_a_length():
    mel = front_ends.choose("log_mel,bands=16", 16_000, 0.5)
    assert (mel.fft, mel.hop, mel.bands, mel.high) == (512, 256, 16, 8000.0)
    assert mel.shape == (32, 16, 1) and mel.samples == 31 * 256
    assert front_ends.from_settings(json.loads(json.dumps(mel.settings()))) == mel
    assert front_ends.choose("waveform,piece=32", RATE, 0.1).shape == (32, 32)
    assert front_ends.choose("log_mel", 44_100, 2.0).shape == (176, 32, 1)
    for text, message in {
        "mel": r"--front_end.*mel.*log_mel",
        "log_mel,bins=3": r"--front_end=log_mel,KEY=VALUE.*bins.*bands",
        "log_mel,bands=x": r"'bands=x' needs a whole number",
        "log_mel,hop=0": r"hop = 0 must be at least 1",
    }.items():
        with pytest.raises(ValueError, match=message):
            front_ends.choose(text, RATE, 1.0)


# --- prepared -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Four tones of two classes with texts, one of them in stereo."""
    root = tmp_path_factory.mktemp("sounds")
    names = ("low/0", "low/1", "high/2", "high/3")
    files = {f"{name}.wav": wav(i) for i, name in enumerate(names)}
    files |= {f"{name}.txt": name.encode() for name in names}
    files["low/1.wav"] = encode(np.stack([tone(1), tone(1)], axis=1))
    raw = write_folder(root / "raw", files)
    target = root / "mine" / "1.0.0"
    prepare.prepare(open_sounds(raw), target, shard_items=3)
    return root, raw, target


def test_the_manifest_has_the_front_end_and_its_moments(prepared):
    _, raw, target = prepared
    found = manifest.read(target)
    assert (found["field"], found["shape"], found["dtype"]) == (
        "sound",
        [1984],
        "int16",
    )
    assert found["front_end"] == FRONT_END.settings()
    part = found["splits"]["train"]
    mixed = "several channels, mixed to one by their mean"
    assert part["noted"] == {mixed: 1} and found["class_names"] == ["high", "low"]
    items = open_sounds(raw)
    sound = np.stack([items.read(i)["sound"] for i in range(4)])
    values = FRONT_END.values(sound / np.float32(32768))
    np.testing.assert_allclose(part["mean"], values.mean((0, 1)), atol=1e-5)
    np.testing.assert_allclose(part["std"], values.std((0, 1)), atol=1e-5)
    assert not list(verify.verify(target))


def test_a_batch_is_trained_on_and_gives_the_sound_back(prepared):
    root, _, _ = prepared
    data = make_dataset("sounds", prepared="mine", root=root, captioned=True)
    info = data.info
    assert info.sample_shape == (32, 64, 2) and info.sample_rate == RATE
    assert info.num_classes == 2 and info.text is not None
    batch = data.to_batch(next(data.iterator(4, seed=0)))
    assert batch.tokens.shape[0] == 4 and batch.x.dtype == np.float32
    x, label = data.arrays()
    assert label.tolist() == [0, 0, 1, 1]
    varies = x.std((0, 1)) > 0.01
    np.testing.assert_allclose(x.std((0, 1))[varies], 0.5, rtol=1e-3)
    sound = info.to_sound(x)
    for clip, number in zip(sound, (2, 3, 0, 1), strict=True):
        np.testing.assert_allclose(clip, tone(number), atol=1e-4)
    assert info.to_pixels(x).shape == (4, 64, 32, 1)
    plain = make_dataset("sounds", prepared="mine", root=root, conditional=False)
    assert plain.info.num_classes == 0 and plain.items(np.arange(2))[1] is None
    with pytest.raises(ValueError, match=r"holds sounds; images were asked for"):
        make_dataset("images", prepared="mine", root=root)


def test_a_split_of_another_front_end_is_refused(prepared):
    _, raw, target = prepared
    others = {
        r"front_end = \{\"exponent\": 0.5\}; the new split has \{\"exponent\": 0.3": (
            "complex_stft,exponent=0.3",
            RATE,
        ),
        r"\"rate\": 8000.*\"rate\": 4000": ("complex_stft", 4000),
    }
    for message, (text, rate) in others.items():
        other = front_ends.choose(text, rate, 0.25)
        with pytest.raises(ValueError, match=message):
            prepare.prepare(open_sounds(raw, front_end=other), target, split="test")
    assert list(manifest.read(target)["splits"]) == ["train"]
    with pytest.raises(
        ValueError, match=r"size = 8.*are sounds, which are not resized"
    ):
        prepare.prepare(open_sounds(raw), target, recipe="box", size=8)


def test_the_same_sound_seen_otherwise_is_other_data(prepared, tmp_path):
    _, raw, target = prepared
    other = tmp_path / "mine" / "1.0.0"
    seen = front_ends.choose("complex_stft,exponent=0.3", RATE, 0.25)
    prepare.prepare(open_sounds(raw, front_end=seen), other, shard_items=3)
    one, two = (identity.of_prepared(folder, "train") for folder in (target, other))
    assert one.shards[:2] == two.shards[:2] and not one.same_data(two)


def test_the_commands_prepare_and_show_sounds(tmp_path):
    files = {"a/0.wav": wav(0), "b/1.wav": wav(1), "b/2.wav": b"no sound"}
    raw = write_folder(tmp_path / "raw", files)
    own = ("--name=mine", f"--source={raw}", f"--root={tmp_path}")
    own += ("--sample_rate=8000", "--seconds=0.25", "--front_end=log_mel,bands=16")
    told = scm("data", "prepare", *own, check=1).stderr
    assert "b/2.wav: the sound does not decode" in told
    assert not (tmp_path / "mine" / "1.0.0").exists()
    told = scm("data", "prepare", *own, "--skip_bad=1", "--notrim").stderr
    assert "clips of 0.24 s at 8000 Hz are 16x16x1 by log_mel" in told
    assert "2 items: longer than a clip, cut" in told
    folder = tmp_path / "mine" / "1.0.0"
    found = manifest.read(folder)
    assert found["front_end"]["bands"] == 16
    part = found["splits"]["train"]
    assert part["skipped"][0]["why"].endswith("no sound: Format not recognised.")
    assert part["recipe"]["options"]["trim"] is False
    page = inspection.inspect(folder, "train", tmp_path / "page.png", num=2)
    assert page["shape"] == [1920] and page["std"] == [pytest.approx(0.5, rel=0.01)]
    assert (tmp_path / "page.png").stat().st_size > 1000
    told = scm("data", "prepare", *own[:3], "--seconds=2", check=2).stderr
    assert "--seconds needs --sample_rate" in told
