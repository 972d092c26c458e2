"""What the folders on the way to images are: splits, classes, or neither."""

from __future__ import annotations

import collections
import re
from collections.abc import Callable, Collection
from pathlib import Path

from scm_jax.datasets.preparation.readers.files import Files
from scm_jax.datasets.preparation.readers.items import NO_SPLIT, ItemError, Options

# The words by which folders name splits, in any case.
SPLITS = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation", "dev", "eval", "evaluation"),
    "test": ("test", "testing"),
}
_SPLIT_OF = {word: split for split, words in SPLITS.items() for word in words}
# They say nothing beside such a word: training_set, test2017, "Valid images".
_FILLERS = {"", "data", "dataset", "folder", "images", "image", "imgs", "img", "split"}

# Items by number, and the folders on the way to each of them with its name at the end.
Ways = dict[int, list[str]]


def path_parts(name: str) -> list[str]:
    r"""The folders and the file of a path, also of one that Windows has written.

    Example:
      >>> path_parts("a/b.png"), path_parts("a\\b.png")
      (['a', 'b.png'], ['a', 'b.png'])
    """
    return re.split(r"[/\\]", name)


def name_splits(folders: Collection[str]) -> dict[str, str]:
    """Which folders, of some that lie side by side, are splits, and which splits.

    A name with other words in it is a split only where another name differs from it in
    the split alone.

    Example:
      >>> name_splits(["Training", "test_set", "pred"])
      {'Training': 'train', 'test_set': 'test'}
      >>> name_splits(["seg_train", "seg_test", "bullet_train", "pred"])
      {'seg_train': 'train', 'seg_test': 'test'}
    """
    parsed = {folder: _parse(folder) for folder in folders}
    splits = collections.defaultdict(set)
    for split, rest in parsed.values():
        splits[rest].add(split)
    return {
        folder: split
        for folder, (split, rest) in parsed.items()
        if split and (not rest or len(splits[rest] - {""}) > 1)
    }


def _parse(folder: str) -> tuple[str, tuple[str, ...]]:
    """The split that a name has a word for, or none, and its other words."""
    words = re.findall("[A-Z]?[a-z]+|[A-Z]+", folder)
    words = [word.lower().removesuffix("set") for word in words]
    found = [_SPLIT_OF[word] for word in words if word in _SPLIT_OF]
    rest = [word for word in words if word not in _FILLERS and word not in _SPLIT_OF]
    return (found[0] if len(found) == 1 else ""), tuple(rest)


def arrange(
    ways: Ways, path: Path, options: Options
) -> tuple[Ways, str, str | None, dict[str, int]]:
    """Chooses a split, where there are splits, and finds the folders of classes.

    Splits are the outermost folders that are not around all images, or lie in each of
    the class folders.

    Returns:
      The images of the split, from the folder of their classes on; the innermost folder
      that all of them share, unless it is a split; the split, or None; and the number
      of images in each folder beside that split, ``""`` for those in none.

    Raises:
      ValueError: the split is not there, or folders may be splits or classes.
    """
    if options.split == NO_SPLIT:
        return *_drop_common(ways), None, {}
    below, around = _drop_common(ways, stop=lambda folder: bool(name_splits([folder])))
    depth, splits = _find_splits(below)
    heads = collections.Counter(
        way[depth] if len(way) > depth + 1 else "" for way in below.values()
    )
    if not splits and (options.split is None or options.split not in heads):
        if options.split is not None:
            raise ValueError(_not_there(path, options.split, heads))
        return below, around, None, {}
    has_classes = {way[depth] for way in below.values() if len(way) > depth + 2}
    folder = _choose(splits, heads, has_classes, path, options)
    if folder is None:
        return *_drop_common(ways), None, {}
    chosen = {
        index: way[:depth] + way[depth + 1 :]
        for index, way in below.items()
        if len(way) > depth + 1 and way[depth] == folder
    }
    others = {name: count for name, count in heads.items() if name != folder}
    return *_drop_common(chosen), options.split or options.target, others


def _drop_common(
    ways: Ways, stop: Callable[[str], bool] = lambda folder: False
) -> tuple[Ways, str]:
    """Without the folders that all items share, and the innermost of these."""
    around = ""
    while all(len(way) > 1 for way in ways.values()):
        heads = {way[0] for way in ways.values()}
        if len(heads) > 1 or stop(min(heads)):
            break
        around = min(heads)
        ways = {index: way[1:] for index, way in ways.items()}
    return ways, around


def _find_splits(ways: Ways) -> tuple[int, dict[str, str]]:
    """How deep the folders of splits lie, and which these are."""
    names = {way[0] for way in ways.values() if len(way) > 1}
    if splits := name_splits(names):
        return 0, splits
    names = {way[1] if len(way) > 2 else "" for way in ways.values()}
    splits = name_splits(names)
    inside = splits.keys() == names and len(set(splits.values())) > 1
    return (1, splits) if inside else (0, {})


def _choose(
    splits: dict[str, str],
    heads: Collection[str],
    has_classes: Collection[str],
    path: Path,
    options: Options,
) -> str | None:
    """The folder of the wanted split; None for everything in the only one."""
    wanted = options.split or options.target or ""
    found = [name for name, split in splits.items() if split == _parse(wanted)[0]]
    if wanted in (found if options.split is None else heads):
        found = [wanted]
    if len(found) > 1:
        raise ValueError(
            f"{path}: the folders {_listed(found)} all mean the split "
            f"{splits[found[0]]!r}; choose one of them by --source_split=FOLDER"
        )
    if options.split is not None:
        if not found:
            raise ValueError(_not_there(path, options.split, heads))
        return found[0]
    beside = [name for name in heads if name not in splits]
    if beside and len(set(splits.values())) == 1 and not set(found) & set(has_classes):
        one = next(iter(splits))
        raise ValueError(
            f"{path}: the folder {one} may be a split, or a class like "
            f"{_listed(beside)} beside it. --source_split={one} reads it as a split, "
            f"--source_split={NO_SPLIT} as a class"
        )
    if not found and (options.target or len(heads) > 1):
        wanted = f", none of them {wanted!r}" if wanted else ""
        raise ValueError(
            f"{path}: has the folders {_listed(splits)}, which are splits, not "
            f"classes{wanted}. Choose one by --source_split=FOLDER, or read them as "
            f"classes with --source_split={NO_SPLIT}"
        )
    return found[0] if found else None


def _listed(names: Collection[str]) -> str:
    shown = [name or "images without a folder" for name in sorted(names)]
    more = f" and {len(shown) - 3} others" if len(shown) > 4 else ""
    return ", ".join(shown[:3] if more else shown) + more


def _not_there(path: Path, split: str, heads: Collection[str]) -> str:
    words = SPLITS.get(_parse(split)[0], (split,))
    return (
        f"{path}: has no images for the split {split!r} (--source_split), which would "
        f"be in a folder {' or '.join(words)}; there are {_listed(heads)}"
    )


def check_classes(files: Files, ways: Ways, path: Path) -> None:
    """Raises ValueError where a class folder is empty or an image lies in none."""
    classes = {way[0] for way in ways.values() if len(way) > 1}
    if not classes:
        return
    first, way = next(iter(ways.items()))
    parts = path_parts(files.names[first])
    above = parts[: len(parts) - len(way)]
    for folder in files.empty:
        *outer, name, _ = path_parts(folder)
        if outer == above and name not in classes:
            raise ValueError(
                f"{path}: the class folder {folder} is empty, or a link to nothing; "
                "remove it, since it would shift the numbers of the classes behind it"
            )
    for index, way in ways.items():
        if len(way) == 1:
            raise ItemError(
                f"{files.where(index)}: lies outside of the class folders "
                f"({len(classes)} of them, the first is {min(classes)!r}); labels "
                "'none' reads all images without classes"
            )
