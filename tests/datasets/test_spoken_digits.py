"""Speech of eSpeak NG: voices apart, the words that are asked for, both engines."""

import concurrent.futures
import sys
import threading

import numpy as np
import pytest

from scm_jax.datasets import make_dataset, speech, spoken_digits, spoken_numbers
from scm_jax.datasets.speech import Speaker
from scm_jax.datasets.spoken_digits import SpeechSource
from scm_jax.evaluation.features import speech_reader

SPEAKER = Speaker("en-us", "m1", 50, 170)


def test_held_out_voices_are_in_no_training_clip():
    indices = np.arange(2000)
    voices = {}
    for split in ("train", "test"):
        digits, speakers = SpeechSource(split=split).said(indices)
        voices[split] = {speaker.voice for speaker in speakers}
        assert np.bincount(digits, minlength=10).min() > 150
    assert not voices["train"] & voices["test"]
    assert len(voices["train"] | voices["test"]) == len(speech.VOICES)


def test_an_item_depends_on_its_number_alone():
    few, many = SpeechSource(num_items=10), SpeechSource(num_items=1000)
    some = few.gather(np.array([3, 7]))
    again = many.gather(np.array([7, 1, 3]))
    assert some["label"].tolist() == again["label"][[2, 0]].tolist()
    # Noise and flutter are drawn anew.
    away = np.abs(some["values"] - again["values"][[2, 0]]).mean()
    assert away < 0.5 * np.abs(some["values"] - again["values"][[1, 1]]).mean()


def test_the_frozen_network_hears_held_out_voices():
    data = make_dataset("spoken_digits", "test", num_items=2000)
    x, label = data.arrays()
    assert x.shape == (200, *data.info.sample_shape) and x.dtype == np.float32
    assert x.std() == pytest.approx(0.5, rel=0.1)
    weights = speech_reader.load_weights()
    heard = speech_reader.read(weights, data.info.to_pixels(x))["digit"].argmax(-1)
    assert (heard == label).mean() > 0.95
    sound = data.info.to_sound(x)
    assert sound.shape == (200, 3968) and 0.1 < np.abs(sound).max() <= 1


def test_sequences_hold_their_digits_in_their_places():
    asked = spoken_numbers.questions(40, "held_out")
    digits = asked.targets["digits"]
    assert spoken_numbers.held_out(digits).all()
    train, _ = spoken_numbers.NumberSource().said(np.arange(500))
    assert not spoken_numbers.held_out(train).any()
    assert set((train >= 0).sum(1)) == {2, 3, 4}
    weights = speech_reader.load_weights()
    slots = asked.pixels.reshape(40, 32, 4, 32, 1).swapaxes(1, 2)
    heard = speech_reader.read(weights, slots.reshape(-1, 32, 32, 1))
    heard = heard["digit"].argmax(-1).reshape(40, 4)
    assert (heard == digits)[digits >= 0].mean() > 0.9
    assert asked.prompts.texts[0] == spoken_numbers.written(digits[0])


def test_a_visit_names_the_voice_or_not():
    data = make_dataset("spoken_numbers", num_items=8)
    batch = data.to_batch(next(data.iterator(8, seed=0)))
    assert batch.x.shape == (8, *data.info.sample_shape)
    words = np.array(["", "", *range(256), *data.info.text.words])
    assert set(np.unique(np.asarray(batch.tokens))) <= set(range(len(words)))
    assert batch.tokens.shape == (8, data.info.text.length)


def test_one_thread_speaks_at_a_time(tmp_path, monkeypatch):
    """Readers of data are threads; eSpeak NG crashes where two of them are in it."""
    together = threading.Barrier(2)

    class Library:
        def __getattr__(self, name):
            return lambda *given: 22050 * (name == "espeak_Initialize")

        def espeak_Synth(self, *given):
            together.wait(0.2)
            return 0

    monkeypatch.setattr(speech.ctypes, "CDLL", lambda path: Library())
    voice = tmp_path / "voices" / "!v" / SPEAKER.voice
    voice.parent.mkdir(parents=True)
    voice.touch()
    say = speech._load("library", str(tmp_path))
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        said = [threads.submit(say, "one", SPEAKER) for _ in range(2)]
    # Two that are inside together meet; one alone waits in vain.
    assert [type(s.exception()) for s in said] == [threading.BrokenBarrierError] * 2


def test_a_voice_that_is_missing_is_named():
    with pytest.raises(ValueError, match=r"no voice 'en-us\+nobody'"):
        speech.engine()("one", SPEAKER._replace(voice="nobody"))


def test_the_program_speaks_where_there_is_no_library(tmp_path, monkeypatch):
    """A stand-in of the program that writes a WAV file, as ``--stdout`` does."""
    program = tmp_path / "espeak-ng"
    program.write_text(
        f"#!{sys.executable}\n"
        "import io, sys, numpy as np, scipy.io.wavfile\n"
        "if '+nobody' in sys.argv[2]: sys.exit('no such voice')\n"
        "x = np.arange(5, dtype='int16')\n"
        "scipy.io.wavfile.write(buffer := io.BytesIO(), 22050, x)\n"
        "sys.stdout.buffer.write(buffer.getvalue())\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    speak = speech.engine.__wrapped__()
    samples, rate = speak("one", SPEAKER)
    assert samples.tolist() == [0, 1, 2, 3, 4] and rate == 22050
    with pytest.raises(ValueError, match=r"-v en-us\+nobody: no such voice"):
        speak("one", SPEAKER._replace(voice="nobody"))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ImportError, match=r"pip install 'scm_jax\[speech\]'"):
        speech.engine.__wrapped__()


def test_unknown_settings_are_named():
    with pytest.raises(ValueError, match=r"dataset.front_end = 'mel' is not one of"):
        make_dataset("spoken_digits", front_end="mel")
    with pytest.raises(ValueError, match=r"num_items = 0 must be at least 1"):
        make_dataset("spoken_digits", num_items=0)
    assert spoken_digits.WORDS[7] == "seven"
