"""Published layouts of sound: where ESC-50, VCTK and LJSpeech have classes and texts.

Class folders, texts beside files, tables and shards are read as those of images.
"""

from __future__ import annotations

import csv
import re

from scm_jax.datasets.preparation.readers.class_folders import Ways
from scm_jax.datasets.preparation.readers.files import Files
from scm_jax.datasets.preparation.readers.items import NO_SPLIT, Options, damaged

ESC50 = "meta/esc50.csv"
ESC50_TEST_FOLD = "5"
_SECOND = re.compile(r"_mic2\.\w+$")  # the other microphone of VCTK
_WAVES = re.compile(r"(^|/)(wavs?|wav48[^/]*)/")  # beside a folder txt


def arrange(files: Files, ways: Ways, options: Options) -> tuple[Ways, list[str]]:
    """Sounds in folders of splits and classes, as ``class_folders`` reads them.

    ESC-50 has them in ``meta/esc50.csv``: the fold 5 is ``test``, the others are
    ``train``, unless ``split`` lists folds, such as ``2,3``. A second recording of VCTK
    is left out. Returns clauses of what was done, too.
    """
    first = {i: way for i, way in ways.items() if not _SECOND.search(files.names[i])}
    notes = []
    if len(first) < len(ways):
        notes.append(f"{len(ways) - len(first):,} of a second microphone left out")
    tables = [i for i, n in enumerate(files.names) if f"/{n}".endswith(f"/{ESC50}")]
    if not tables:
        return first, notes
    where = files.where(tables[0])
    with damaged(f"{where}: is not the table of ESC-50", (ValueError, KeyError)):
        rows = csv.DictReader(files.read(tables[0]).decode("utf-8-sig").splitlines())
        known = {row["filename"]: (row["fold"], row["category"]) for row in rows}
    for index, way in first.items():
        if way[-1] not in known:
            raise ValueError(f"{files.where(index)}: {ESC50} does not name it")
        fold, category = known[way[-1]]
        part = [_part(fold, options.split)] if options.split != NO_SPLIT else []
        first[index] = [*part, category, way[-1]]
    return first, [*notes, f"classes and folds of {ESC50}"]


def _part(fold: str, split: str | None) -> str:
    if split and re.fullmatch(r"[\d,]+", split):
        return split if fold in split.split(",") else "other folds"
    return "test" if fold == ESC50_TEST_FOLD else "train"


def beside_transcript(name: str) -> str:
    """A path as if the sound lay beside its text.

    Example:
      >>> beside_transcript("wav48_silence_trimmed/p225/p225_001_mic1.flac")
      'txt/p225/p225_001.flac'
    """
    return re.sub(r"_mic1(?=\.\w+$)", "", _WAVES.sub(r"\1txt/", name))


def transcript_rows(text: str) -> list[dict[str, str]]:
    """The lines ``id|text`` or ``id|text|normalized`` of LJSpeech, of the last text.

    There is no header, and quotes are a part of the text. A ValueError where a line has
    no text.
    """
    rows = []
    for line in filter(str.strip, text.splitlines()):
        name, *_, said = line.split("|")
        rows.append({"file": name.strip(), "text": said.strip()})
    return rows
