"""Captions of raw items: in files beside them, or in a table of files and captions."""

from __future__ import annotations

import collections
import csv
import dataclasses
import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from scm_jax.datasets.preparation.readers import sound_layouts
from scm_jax.datasets.preparation.readers.files import Files
from scm_jax.datasets.preparation.readers.items import ItemError, Options, damaged
from scm_jax.datasets.preparation.readers.labels import Line, match_labels
from scm_jax.files.optional import require

# Tables that are found without being named, as of Hugging Face's imagefolder.
TABLES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
CAPTION_KEYS = (
    *("captions", "caption", "texts", "text"),
    *("transcription", "transcript", "sentence"),
)
FILE_KEYS = (
    *("file_name", "filename", "file", "image", "image_path", "path", "filepath"),
    *("video", "video_path", "audio", "audio_file", "audio_path"),
)
EXPECTED = (
    f"a file under {', '.join(FILE_KEYS)} and its caption under "
    f"{', '.join(CAPTION_KEYS)}; --caption_key=KEY names another key of the caption"
)
_DAMAGE = (ValueError, TypeError, KeyError, RecursionError, OSError)


@dataclasses.dataclass(frozen=True, eq=False)
class Captions:
    """Where the captions of images are; images and texts are numbers of files."""

    keys: Sequence[str]  # of captions in JSON
    origin: dict[str, Any]
    note: str  # where they are, as a clause
    used: frozenset[int]
    known: Mapping[int, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    beside: Mapping[int, int] = dataclasses.field(default_factory=dict)

    def read(self, files: Files, image: int) -> tuple[str, ...]:
        """All captions of an image, one in each line of a text; may raise ItemError."""
        if image not in self.beside:
            return self.known.get(image, ())
        where = files.where(self.beside[image])
        content = files.read(self.beside[image])
        with damaged(f"{where}: is not UTF-8 text", (UnicodeDecodeError,), ItemError):
            text = content.decode("utf-8-sig")
        if not where.lower().endswith(".json"):
            return clean(text.splitlines(), where)
        with damaged(f"{where}: is not JSON", (ValueError, RecursionError), ItemError):
            parsed = json.loads(text)
        said = _first(parsed, self.keys) if isinstance(parsed, dict) else None
        return clean(said, where)


def clean(value: Any, where: str) -> tuple[str, ...]:
    """A caption or a list of them, each in one line; none where there is no text.

    Example:
      >>> clean(["a red\\n star ", ""], "file")
      ('a red star',)
    """
    values = [] if value is None else value if isinstance(value, list) else [value]
    for text in values:
        if not isinstance(text, str):
            raise ItemError(f"{where}: the caption {text!r} is not a text")
    return tuple(line for text in values if (line := " ".join(text.split())))


def _first(entry: Mapping[str, Any], keys: Sequence[str]) -> Any:
    return next((entry[key] for key in keys if entry.get(key)), None)


def find(
    files: Files, images: Sequence[int], path: str, options: Options, by_key: bool
) -> Captions | None:
    """The captions of some images, or None where there are none to be stored.

    Files beside images count where half of the images have one, or where captions are
    required. With ``by_key`` the files of an item share their names up to the first
    dot, as in webdataset shards, else up to the last.

    Raises:
      ValueError: captions are required and there are none, or a table is not usable.
    """
    if options.captions == "none":
        return None
    found = _in_tables(files, images, options) or _beside(
        files, images, options, by_key
    )
    if found is None and options.captions == "required":
        raise ValueError(
            f"{path}: has no captions, and captions are required: expected are .txt or "
            f".json files beside the images, a table {' or '.join(TABLES)}, or "
            "--caption_file=TABLE"
        )
    return found


def _keys(options: Options) -> Sequence[str]:
    return (options.caption_key,) if options.caption_key else CAPTION_KEYS


def _beside(
    files: Files, images: Sequence[int], options: Options, by_key: bool
) -> Captions | None:
    def key(index: int) -> tuple[str, str]:
        place = files.places[index]
        name = place.name
        if options.front_end is not None:
            name = sound_layouts.beside_transcript(name)
        folder, slash, base = name.rpartition("/")
        stem = base.partition(".")[0] if by_key else base.rpartition(".")[0]
        return place.root, folder + slash + stem

    for suffix in (".txt", ".json"):
        texts = (i for i, n in enumerate(files.names) if n.lower().endswith(suffix))
        named = {key(i): i for i in texts}
        beside = {i: named[key(i)] for i in images if key(i) in named}
        if not beside or (options.captions == "auto" and 2 * len(beside) < len(images)):
            continue
        note = f"captions in {len(beside):,} {suffix} beside the images"
        used = frozenset(beside.values())
        found = Captions(_keys(options), {"in": suffix}, note, used, beside=beside)
        # The first JSON tells labels from captions.
        if options.captions == "required" or suffix == ".txt":
            return found
        if found.read(files, next(iter(beside))):
            return found
    return None


# --- tables ---------------------------------------------------------------------------


def _in_tables(
    files: Files, images: Sequence[int], options: Options
) -> Captions | None:
    """Captions of ``--caption_file``, or of the tables that lie above images."""
    file, names = options.caption_file, [files.names[index] for index in images]
    used: list[int] = []
    tables: list[tuple[str, bytes, str]] = []  # where, content, folder
    if file is not None:
        tables = [(file, Path(file).read_bytes(), "")]
    for index, name in enumerate(files.names if file is None else ()):
        folder = name[: name.rfind("/") + 1]
        is_table = name.removeprefix(folder).lower() in TABLES
        if is_table and any(image.startswith(folder) for image in names):
            tables.append((files.where(index), files.read(index), folder))
            used.append(index)
    if not tables:
        return None
    captions: dict[str, list[str]] = collections.defaultdict(list)
    digest, keys = hashlib.sha256(), _keys(options)
    for where, content, folder in tables:
        digest.update(content)
        for file_name, value in read_table(content, where, keys):
            captions[folder + file_name] += clean(value, f"{where}: {file_name}")
    lines = [Line(name, k, f"the file {name!r}") for k, name in enumerate(captions)]
    where = ", ".join(where for where, *_ in tables)
    rows, unmatched = match_labels(where, lines, names, EXPECTED)
    listed = [tuple(said) for said in captions.values()]
    pairs = zip(images, rows, strict=True)
    known = {i: listed[k] for i, k in pairs if isinstance(k, int)}
    note = f"captions in {where}"
    note += f", files of it that are not there: {unmatched:,}" if unmatched else ""
    origin = {"in": where, "sha256": digest.hexdigest()}
    return Captions(keys, origin, note, frozenset(used), known)


def read_table(
    content: bytes, where: str, keys: Sequence[str]
) -> Iterator[tuple[str, Any]]:
    """File names and captions of JSON lines, JSON, COCO, CSV or parquet, by suffix.

    JSON is ``{file: captions}``, a list of objects, or COCO's ``images`` and
    ``annotations``. A file may be named several times.

    Raises:
      ValueError: it is damaged, or a row names no file or has no such key.
    """
    suffix = Path(where).suffix.lower()
    with damaged(f"{where}: cannot be read as a table of captions", _DAMAGE):
        if suffix == ".parquet":
            parquet = require("pyarrow.parquet", "a parquet table", "scm_jax[analysis]")
            rows: Any = parquet.read_table(io.BytesIO(content)).to_pylist()
        else:
            rows = _text_rows(content.decode("utf-8-sig"), suffix)
    if isinstance(rows, dict):
        yield from rows.items()
        return
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{where}: holds no rows; expected {EXPECTED}")
    for number, row in enumerate(rows, 1):
        file = _first(row, FILE_KEYS) if isinstance(row, dict) else None
        if not isinstance(file, str) or not set(keys) & set(row):
            shown = list(row) if isinstance(row, dict) else row
            raise ValueError(f"{where}: row {number} has {shown}; expected {EXPECTED}")
        yield file.replace("\\", "/").removeprefix("./"), _first(row, keys)


def _text_rows(text: str, suffix: str) -> Any:
    """Rows as dicts, or ``{file: captions}``."""
    if suffix in (".jsonl", ".ndjson"):
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    if suffix != ".json":
        header = text.partition("\n")[0]
        delimiter = next((mark for mark in "\t|;," if mark in header), ",")
        words = {name.strip().lower() for name in header.split(delimiter)}
        if delimiter == "|" and not words & set(FILE_KEYS):
            return sound_layouts.transcript_rows(text)
        reader = csv.reader(
            io.StringIO(text), delimiter=delimiter, skipinitialspace=True
        )
        names = [name.strip().lower() for name in next(reader)]
        return [dict(zip(names, map(str.strip, row), strict=True)) for row in reader]
    parsed = json.loads(text)
    if isinstance(parsed, dict) and {"images", "annotations"} <= set(parsed):
        files = {image["id"]: image["file_name"] for image in parsed["images"]}
        return [
            {"file_name": files[a["image_id"]], "caption": a["caption"]}
            for a in parsed["annotations"]
        ]
    return parsed
