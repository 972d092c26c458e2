"""From what raw data say about classes to numbers; text files of classes."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from scm_jax.datasets.preparation.readers.decode import SUFFIXES, is_image
from scm_jax.datasets.preparation.readers.items import ItemError, Options, damaged

_MAX_CLASSES = 1_000_000  # a larger number is damage


def number_labels(
    values: Sequence[Any], name: Callable[[int], str], where: str, options: Options
) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Labels 0, 1, ... of all items, and the names of the classes.

    A value is a whole number, a name, or None where an item has no label. Names are
    numbered in alphabetical order (by code point, so capitals come first). ``name``
    says where an item comes from, and ``where`` what file they are in.

    Returns:
      int64 ``(n,)`` and one name per class (its number where the data name none);
      None and no names without labels.

    Raises:
      ItemError: an item has no label while others do, or one that is out of range.
      ValueError: labels are required and there are none, or there are not
        ``num_classes`` names.
    """
    if options.labels == "none":
        return None, ()
    missing = [index for index, value in enumerate(values) if value is None]
    if len(missing) == len(values):
        if options.labels == "required":
            raise ValueError(f"{where}: has no labels, and labels are required")
        if options.label_base:
            raise ValueError(
                f"label_base = {options.label_base}: {where} has no labels to count"
            )
        return None, ()
    if missing:
        mend = "labels 'none' leaves all of them out"
        if options.label_file is not None:
            mend = f"each needs a line in {options.label_file}"
        raise ItemError(
            f"{name(missing[0])}: has no label, and {len(values) - len(missing):,} of "
            f"{len(values):,} items have one; {mend}"
        )
    if all(isinstance(value, str) for value in values):
        return _number_names(values, where, options)
    return _check_numbers(values, name, options)


def _number_names(
    values: Sequence[str], where: str, options: Options
) -> tuple[np.ndarray, tuple[str, ...]]:
    names = tuple(sorted(set(values)))
    if options.label_base:
        raise ValueError(
            f"{where}: label_base {options.label_base} is for labels that are numbers, "
            f"not for names such as {names[0]!r}"
        )
    if options.num_classes not in (None, len(names)):
        # One class folder too few, and all classes behind it would have other numbers.
        raise ValueError(
            f"{where}: has {len(names)} classes, expected are {options.num_classes}; "
            f"the first is {names[0]!r}, the last {names[-1]!r}"
        )
    number = {label: index for index, label in enumerate(names)}
    return np.array([number[value] for value in values], np.int64), names


def _check_numbers(
    values: Sequence[Any], name: Callable[[int], str], options: Options
) -> tuple[np.ndarray, tuple[str, ...]]:
    base = options.label_base
    for index, value in enumerate(values):
        if not isinstance(value, int | np.integer) or isinstance(value, bool):
            raise ItemError(
                f"{name(index)}: the label {value!r} is not a whole number"
                + (", as those of other items" if isinstance(value, str) else "")
            )
    limit = options.num_classes or max(values) - base + 1
    limit = min(max(limit, 1), _MAX_CLASSES)
    for index, value in enumerate(values):
        if not base <= value < base + limit:
            raise ItemError(
                f"{name(index)}: the label {value} is out of range; legal are "
                f"{base}..{base + limit - 1} (label_base {base}, "
                f"num_classes {options.num_classes or 'not given'})"
            )
    given = np.array(values, np.int64)
    return given - base, tuple(str(number) for number in range(limit))


# --- text files: csv, tsv, words, json ------------------------------------------------

# Headers of columns by their letters only, the likeliest first.
FILE_COLUMNS = (
    *("file", "filename", "filepath", "image", "imagename", "imagefile", "imagepath"),
    *("imageid", "img", "imgname", "imgpath", "path", "fname", "id"),
)
CLASS_COLUMNS = (
    *("class", "classname", "label", "labelname", "category", "categoryname"),
    *("target", "species", "breed", "speaker", "classid", "labelid", "categoryid"),
    "predictionstring",
)
EXPECTED = (
    "a file and its class in each line, separated by a comma, a tab or a space; with "
    "more columns, a header such as file,class"
)
# A class and the corners of boxes, as Kaggle lists ImageNet's validation images under
# PredictionString.
_BOXES = re.compile(r"\S+((\s+\d+){4})+")
_FILE_AND_CLASS = re.compile(
    rf"(.*(?:{'|'.join(map(re.escape, SUFFIXES))}))\s+(.+)", re.IGNORECASE
)


class Line(NamedTuple):
    """A file and its class."""

    file: str
    label: int | str
    where: str  # the line, for messages


def read_label_file(path: str) -> list[Line]:
    """The files and classes of a text file.

    Columns are separated by commas, tabs or semicolons. A header names them, or the
    file comes first; without such a separator the rest of a line is its class. A class
    may have several words; a number is a whole number. A ``.json`` file holds
    ``{file: class, ...}``, ``[[file, class], ...]`` or the latter under ``labels``.

    Raises:
      ValueError: it is not text, a line has no class, or the columns are not clear.
    """
    with damaged(f"{path}: is not UTF-8 text", (UnicodeDecodeError,)):
        text = Path(path).read_text(encoding="utf-8-sig")
    if path.lower().endswith(".json"):
        return _read_json(path, text)
    rows = _read_rows(text)
    if not rows:
        raise ValueError(f"{path}: has no lines; expected {EXPECTED}")
    columns = _find_columns(path, rows)
    header, columns = (rows[0][1], columns) if columns else ([], (0, 1))
    boxes = bool(header) and header[columns[1]].lower() == "predictionstring"
    lines = []
    for where, row in rows[bool(header) :]:
        label = row[columns[1]] if len(row) > max(columns) else ""
        if boxes or _BOXES.fullmatch(label):
            label = label.split()[0]
        problem = "" if label else "has no class"
        if header and len(row) > len(header):
            problem = "has more columns than the header; a comma in a name needs quotes"
        elif re.fullmatch(r"[-\d.]+(\s+[-\d.]+)+", label):
            problem = "has several numbers instead of a class"
        if problem:
            raise ValueError(f"{path}: {where} {problem}; expected {EXPECTED}")
        value = int(label) if label.isdecimal() else label
        lines.append(Line(row[columns[0]], value, where))
    return lines


def _read_json(path: str, text: str) -> list[Line]:
    what = f"{path}: is not {{file: class, ...}} or [[file, class], ...] in JSON"
    with damaged(what, (ValueError, TypeError, RecursionError)):
        content = json.loads(text)
        if isinstance(content, dict):
            content = content.get("labels", content)
        pairs = list(content.items() if isinstance(content, dict) else content)
        lines = [Line(file, label, f"the entry {file!r}") for file, label in pairs]
    for line in lines:
        if type(line.file) is not str or type(line.label) not in (int, str):
            raise ValueError(
                f"{path}: {line.where} has the class {line.label!r}; expected a whole "
                "number or a name"
            )
    return lines


def _read_rows(text: str) -> list[tuple[str, list[str]]]:
    """The lines that are not empty, for messages, and their fields."""
    lines = text.splitlines()
    first = next((line for line in lines if line.strip()), "")
    delimiter = next((mark for mark in "\t;," if mark in first), ",")
    # Over lines with their ends, so that a quoted field may have several.
    whole = text.splitlines(keepends=True)
    reader = csv.reader(whole, delimiter=delimiter, skipinitialspace=True)
    rows = []
    for fields in reader:
        row = [field.strip() for field in fields]
        while len(row) > 2 and not row[-1]:
            row.pop()
        if len(row) == 1:
            found = _FILE_AND_CLASS.fullmatch(row[0])
            row = list(found.groups()) if found else row[0].split(maxsplit=1)
        if any(row):
            number = reader.line_num
            rows.append((f"line {number}, {lines[number - 1]!r},", row))
    return rows


def _find_columns(
    path: str, rows: Sequence[tuple[str, list[str]]]
) -> tuple[int, int] | None:
    """Which columns hold the file and the class; None for the first two, no header."""
    header = [re.sub("[^a-z]", "", name.lower()) for name in rows[0][1]]
    files = [header.index(name) for name in FILE_COLUMNS if name in header]
    classes = [header.index(name) for name in CLASS_COLUMNS if name in header]
    is_header = (files or classes) and not any(is_image(name) for name in rows[0][1])
    if not is_header and max(len(row) for _, row in rows) <= 2:
        return None
    if is_header and len(header) == 2:
        file = files[0] if files else 1 - classes[0]
        return file, 1 - file
    if is_header and files and len(classes) == 1:
        return files[0], classes[0]
    raise ValueError(
        f"{path}: {rows[0][0]} does not say which columns are the file and the class. "
        "Keep these two only, or a header that names them file and class"
    )


def match_labels(
    path: str, lines: Sequence[Line], names: Sequence[str], expected: str = EXPECTED
) -> tuple[list[int | str | None], int]:
    """The label of each image, or None, and how many lines name no image.

    A file is found by its path or the end of it, with or without its suffix, whichever
    of the two paths has more folders.
    """
    known: dict[str, Line] = {}
    twice: Line | None = None
    for line in lines:
        key = line.file.replace("\\", "/").removeprefix("./")
        twice = twice or (line if key in known else None)
        known.setdefault(key, line)
    labels: list[int | str | None] = []
    used: dict[str, str] = {}
    longer: dict[str, str | None] | None = None
    for name in names:
        file = next((end for end in _ends(name) if end in known), None)
        if file is None:
            longer = _by_ends(known) if longer is None else longer
            file = longer.get(name)
        labels.append(known[file].label if file is not None else None)
        if file is None:
            continue
        if (other := used.setdefault(file, name)) != name:
            raise ValueError(
                f"{path}: {known[file].where} fits several images, {other} and {name}; "
                "write the file with its folders and its suffix"
            )
    if not used:
        shown = lines[0].where.removesuffix(",") if lines else "nothing"
        raise ValueError(
            f"{path}: none of its {len(lines):,} lines names an image. It has {shown}, "
            f"and an image is {names[0]!r}; expected {expected}"
        )
    if twice is not None:
        raise ValueError(f"{path}: {twice.where} names a file twice")
    return labels, len(known) - len(used)


def _ends(name: str) -> list[str]:
    """A path and its ends, the longest first, each also without the suffix."""
    path = PurePosixPath(name.replace("\\", "/"))
    ends = ["/".join(path.parts[k:]) for k in range(len(path.parts))]
    both = (text for end in ends for text in (end, end.removesuffix(path.suffix)))
    return list(dict.fromkeys(both))


def _by_ends(files: Iterable[str]) -> dict[str, str | None]:
    """The file that each end of a path is of, None where it is of several."""
    found: dict[str, str | None] = {}
    for file in files:
        for end in _ends(file):
            found[end] = None if end in found else file
    return found
