"""Speech from eSpeak NG: its library (extra ``speech``), or its program ``espeak-ng``.

eSpeak NG is GPL-3: the extra loads its library into this process, the program runs by
itself, and what they speak is under no licence of theirs.
"""

from __future__ import annotations

import ctypes
import functools
import io
import os
import shutil
import subprocess
import threading
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

_RATE, _PITCH = 1, 3  # numbers of parameters in speak_lib.h
_PLAYS_NOTHING = 2  # AUDIO_OUTPUT_SYNCHRONOUS: the samples go to the callback
_UTF8 = 1

# Voices of eSpeak NG 1.52 that change an accent's timbre: all of its directory ``!v``.
VOICES = tuple(
    "Alex Alicia Andrea Andy Annie AnxiousAndy Demonic Denis Diogo Gene Gene2 Henrique "
    "Hugo Jacky Lee Marco Mario Michael Mike Nguyen Reed RicishayMax RicishayMax2 "
    "RicishayMax3 Storm Tweaky UniRobot adam anika anikaRobot announcer antonio aunty "
    "belinda benjamin boris caleb croak david ed edward edward2 f1 f2 f3 f4 f5 fast "
    "grandma grandpa gustave ian iven iven2 iven3 iven4 john kaukovalta klatt klatt2 "
    "klatt3 klatt4 klatt5 klatt6 linda m1 m2 m3 m4 m5 m6 m7 m8 marcelo max michel "
    "miguel mike2 norbert pablo paul pedro quincy rob robert robosoft robosoft2 "
    "robosoft3 robosoft4 robosoft5 robosoft6 robosoft7 robosoft8 sandro shelby steph "
    "steph2 steph3 travis victor whisper whisperf zac".split()
)
ACCENTS = (
    *("en-us", "en-us-nyc", "en-gb-scotland", "en-gb-x-rp"),
    *("en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029"),
)


class Speaker(NamedTuple):
    """How something is said.

    Attributes:
      accent: one of ``ACCENTS``.
      voice: one of ``VOICES``.
      pitch: 0..100, 50 is the voice's own.
      rate: words per minute.
    """

    accent: str
    voice: str
    pitch: int
    rate: int


# (text, speaker) -> int16 samples and their rate.
Engine = Callable[[str, Speaker], tuple[np.ndarray, int]]


@functools.cache
def engine() -> Engine:
    """The library where it is installed, otherwise the program.

    Raises:
      ImportError: neither is there.
    """
    try:
        import espeakng_loader
    except ImportError:
        if program := shutil.which("espeak-ng"):
            return functools.partial(_by_program, program)
        raise ImportError(
            "speech needs eSpeak NG: pip install 'scm_jax[speech]', or install the "
            "program espeak-ng (Debian: apt install espeak-ng)"
        ) from None
    library = espeakng_loader.get_library_path()
    return _load(str(library), str(espeakng_loader.get_data_path()))


def _load(library: str, data: str) -> Engine:
    speech = ctypes.CDLL(library)
    rate = speech.espeak_Initialize(_PLAYS_NOTHING, 0, data.encode(), 0)
    if rate <= 0:
        raise OSError(f"eSpeak NG cannot read its data in {data}")
    pieces: list[np.ndarray] = []
    alone = threading.Lock()  # the library crashes where two threads speak
    signature = (ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)

    @ctypes.CFUNCTYPE(ctypes.c_int, *signature)
    def collect(samples, number, events):
        if number > 0:
            pieces.append(np.frombuffer(ctypes.string_at(samples, 2 * number), "<i2"))
        return 0

    speech.espeak_SetSynthCallback(collect)

    def say(text: str, speaker: Speaker) -> tuple[np.ndarray, int]:
        # Where a voice is missing, eSpeak goes on with another one.
        name = f"{speaker.accent}+{speaker.voice}"
        known = os.path.isfile(os.path.join(data, "voices", "!v", speaker.voice))
        with alone:
            if not known or speech.espeak_SetVoiceByName(name.encode()):
                raise ValueError(f"eSpeak NG has no voice {name!r}")
            speech.espeak_SetParameter(_RATE, speaker.rate, 0)
            speech.espeak_SetParameter(_PITCH, speaker.pitch, 0)
            pieces.clear()
            said = text.encode() + b"\0"
            if speech.espeak_Synth(said, len(said), 0, 1, 0, _UTF8, None, None):
                raise OSError(f"eSpeak NG cannot speak {text!r}")
            speech.espeak_Synchronize()
            return np.concatenate(pieces or [np.zeros(0, np.int16)]), rate

    say.callback = collect  # type: ignore[attr-defined]  # the library calls it
    return say


def _by_program(program: str, text: str, speaker: Speaker) -> tuple[np.ndarray, int]:
    import scipy.io.wavfile

    name = f"{speaker.accent}+{speaker.voice}"
    how = ["-v", name, "-p", str(speaker.pitch), "-s", str(speaker.rate)]
    found = subprocess.run([program, *how, "--stdout", text], capture_output=True)
    if found.returncode or found.stderr:
        raise ValueError(f"{program} -v {name}: {found.stderr.decode().strip()}")
    rate, samples = scipy.io.wavfile.read(io.BytesIO(found.stdout))
    return samples, rate
