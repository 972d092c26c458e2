"""Raw items -> a prepared dataset on disk, which training reads.

The work is done in a hidden folder beside the target, shard by shard. A killed
preparation goes on where it stopped when the same command runs again, and several
processes may run it at once; the stored bytes are the same in every case. The dataset
appears under its name by one rename when all of it is there.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

from scm_jax.datasets.preparation import (
    caption_facts,
    manifest,
    parallel,
    progress,
    shards,
)
from scm_jax.datasets.preparation.readers.items import ItemError, Items
from scm_jax.datasets.preparation.shards import Plan, Work

logger = logging.getLogger(__name__)


def prepare(
    items: Items,
    target: Path,
    *,
    split: str = "train",
    recipe: str = "none",
    size: int = 0,
    dtype: str | None = None,
    labelled: bool = True,
    shard_items: int = 0,
    workers: int = 1,
    process_index: int = 0,
    process_count: int = 1,
    skip_bad: int = 0,
    fresh: bool = False,
    options: dict[str, Any] | None = None,
    encoder: dict[str, Any] | None = None,
) -> Path:
    """Prepares one split of a dataset, unless it is there already; returns ``target``.

    Args:
      items: the raw items.
      target: ``ROOT/NAME/VERSION``; a folder with other splits gets one more.
      split: name of the split.
      recipe: how images are resized, a key of ``preparation.resize.RECIPES``.
      size: to how many pixels; with the recipe ``none`` 0 takes the size of the first
        image, which all must have.
      dtype: latents are stored as ``float32`` (default) or ``float16``.
      labelled: store the classes of items that have them.
      shard_items: items in a shard; 0 for at most 4,096 items and 256 MiB.
      workers: processes that this call starts.
      process_index: which of several calls on the same target this is; each begins at
        another shard.
      process_count: how many calls these are.
      skip_bad: leave out up to this many unusable items, which the manifest names.
      fresh: discard what an unfinished call with the same arguments has made.
      options: how ``items`` were opened, such as ``label_base``, for the manifest; of
        captions ``context_length`` and ``missing_captions``, see ``caption_facts``.
      encoder: what made latents, for the manifest, with its ``pixel_range``.

    Raises:
      ItemError: an item cannot be used; the message names file and item. Whole shards
        are kept, and the next call goes on after them.
      ValueError: an illegal argument, or the target holds the split by another recipe.
      FileExistsError: something that is no prepared dataset has the target's name.
      OSError: a shard could not be written.
    """
    _check_arguments(target, split, fresh, process_count)
    plan = _make_plan(
        items,
        *(skip_bad, labelled, dtype),
        name=target.parent.name,
        split=split,
        recipe=recipe,
        size=size,
        shard_items=shard_items,
        num_items=len(items),
        origin=_as_json(items.origin),
        options=_as_json(options or {}),
        encoder=_as_json(encoder or {}),
    )
    staging = target.parent / f".{target.name}-{split}-{plan.hash()}"
    there = _is_there(target, plan)
    if there or fresh:  # a call may have been killed at its very end
        shutil.rmtree(staging, ignore_errors=True)
    if there:
        return target
    work = Work(items, plan, staging, target, skip_bad)
    _begin(work)
    say = progress.Progress(f"{plan.name} {split}", plan.num_items)
    first = plan.num_shards * process_index // max(process_count, 1)
    parallel.run(work, first, workers, say)
    _publish(work)
    say.end()
    _tell(target, split)
    return target


def _tell(target: Path, split: str) -> None:
    """Says what to know of the captions, of what was done and of what was left out."""
    found = manifest.read(target)
    for line in caption_facts.summary(found, split):
        print(line, file=sys.stderr)
    for what, count in found["splits"][split].get("noted", {}).items():
        print(f"{count:,} items: {what}", file=sys.stderr)
    if skipped := found["splits"][split]["skipped"]:
        logger.warning(
            "%d of these items were left out; %s names them, the first: %s",
            *(len(skipped), target / manifest.FILE, skipped[0]["why"]),
        )


def _check_arguments(target: Path, split: str, fresh: bool, process_count: int) -> None:
    for what, name in (("name of a dataset", target.parent.name), ("split", split)):
        if not re.fullmatch("[a-z][a-z0-9_]*", name):
            raise ValueError(
                f"{name!r} is not a {what}: legal are lowercase letters, digits and _, "
                "with a letter first"
            )
    if not re.fullmatch(r"\d+\.\d+\.\d+", target.name):
        raise ValueError(f"{target.name!r} is not a version such as 1.0.0")
    if fresh and process_count > 1:
        raise ValueError(
            "fresh = True: each of several processes would remove what the others have "
            f"made. Delete the hidden folders {target.parent}/.{target.name}-{split}-* "
            "instead, before the first of them starts"
        )


# --- plan -----------------------------------------------------------------------------


def _make_plan(
    items: Items,
    skip_bad: int,
    labelled: bool,
    dtype: str | None,
    *,
    recipe: str,
    size: int,
    shard_items: int,
    **rest: Any,
) -> Plan:
    """The plan of a split; its items are as the first one is that can be used."""
    path = items.origin.get("path")
    if len(items) == 0:
        raise ValueError(f"there are no items at {path}")
    if size < 0 or (size == 0 and recipe != "none"):
        raise ValueError(f"size = {size}: the recipe {recipe!r} needs a size in pixels")
    field, value, label, captions, _ = _first_item(items, recipe, size, skip_bad)
    if field not in shards.PIXELS and (recipe != "none" or size):
        raise ValueError(
            f"size = {size}, recipe = {recipe!r}: the items at {path} are {field}s, "
            "which are not resized"
        )
    if dtype not in (None, "float16", "float32"):
        raise ValueError(f"dtype = {dtype!r} is not one of float16, float32")
    own = {"latent": dtype or "float32", "sound": "int16"}.get(field, "uint8")
    if field != "latent" and dtype is not None:
        raise ValueError(f"dtype = {dtype!r} is for latents; {field}s are {own}")
    has_label = labelled and label is not None
    if has_label and not items.class_names:
        raise ValueError(
            f"the items at {path} have labels, and the number of classes is not known"
        )
    return Plan(
        field=field,
        shape=value.shape,
        dtype=own,
        class_names=tuple(items.class_names) if has_label else (),
        captioned=captions is not None,
        recipe=recipe,
        size=size,
        shard_items=shard_items or _shard_items(value.shape, own),
        **rest,
    )


def _first_item(items: Items, recipe: str, size: int, skip_bad: int) -> shards.Item:
    last = min(skip_bad, len(items) - 1)
    for index in range(last):
        with contextlib.suppress(ItemError):
            return shards.read_item(items, index, recipe, size, "float32")
    return shards.read_item(items, last, recipe, size, "float32")


def _shard_items(shape: tuple[int, ...], dtype: str) -> int:
    item_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    return min(shards.SHARD_ITEMS, max(1, shards.SHARD_BYTES // item_bytes))


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


# --- begin and end --------------------------------------------------------------------


def _is_there(target: Path, plan: Plan) -> bool:
    """Whether the target holds this very split."""
    if not target.exists():
        return False
    if not (target / manifest.FILE).is_file():
        raise FileExistsError(
            f"{target} already exists, without the {manifest.FILE} of a prepared "
            "dataset. Move it away, or choose another name or version"
        )
    old = manifest.read(target)
    manifest.check_shared(old, manifest.shared_part(plan), target)
    if ("captions" in old) != plan.captioned:
        raise ValueError(
            f"{target} was prepared {'with' if 'captions' in old else 'without'} "
            f"captions, unlike the split {plan.split!r} now: --captions=none leaves "
            "them out; or choose another name or version"
        )
    if plan.split not in old["splits"]:
        return False
    there = old["splits"][plan.split]
    wanted = {**manifest.recipe_part(plan), "raw items": plan.num_items}
    found = {**there["recipe"], "raw items": there["count"] + len(there["skipped"])}
    differ = [key for key in wanted if wanted[key] != found.get(key)]
    if differ:
        told = "; ".join(f"{k}: {found.get(k)} there, {wanted[k]} now" for k in differ)
        raise ValueError(
            f"{target} holds the split {plan.split!r} already, prepared otherwise "
            f"({told}). Remove it, or choose another name or version"
        )
    return True


def _begin(work: Work) -> None:
    """Makes the hidden folder; warns where the raw data of its shards have changed."""
    for folder in (work.folder, work.state):
        folder.mkdir(parents=True, exist_ok=True)
    file = work.state / "origin.json"
    try:
        old = json.loads(file.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        old = work.plan.origin
    if old != work.plan.origin:
        logger.warning(
            "the raw data are not what they were when this preparation began: %s then, "
            "%s now. Shards that are whole are kept; --fresh makes all of them again",
            *(old, work.plan.origin),
        )
    file.write_text(json.dumps(work.plan.origin))


def _publish(work: Work) -> None:
    """Gives the whole split its name; of several processes the first does it."""
    with parallel.claimed(work.target.parent, wait=True):
        if work.state.exists() and not _is_there(work.target, work.plan):
            _move_into_place(work)
        # In one rename, so that no process takes a half-removed folder for a whole one.
        gone = work.staging.with_name(f"{work.staging.name}.gone-{os.getpid()}")
        with contextlib.suppress(FileNotFoundError):
            work.staging.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)


def _move_into_place(work: Work) -> None:
    plan, target = work.plan, work.target
    records = [work.record(shard) for shard in range(plan.num_shards)]
    whole = [record for record in records if record is not None]
    if len(whole) < len(records):
        raise OSError(f"shards vanished from {work.staging}; run the command again")
    if not any(record["items"] for record in whole):
        raise ItemError(f"none of the {plan.num_items} items could be used")
    split = manifest.split_part(plan, whole)
    if len(split["skipped"]) > work.skip_bad:
        raise ItemError(
            f"{len(split['skipped'])} items were skipped, and skip_bad = "
            f"{work.skip_bad}: {split['skipped'][0]['why']}"
        )
    folder: Path = work.folder
    old: dict[str, Any] = {}
    if target.exists():
        for record in whole:
            if (work.folder / record["file"]).exists():
                os.replace(work.folder / record["file"], target / record["file"])
        folder, old = target, manifest.read(target)
    else:
        shards.features(plan).save_config(folder)
    shared = manifest.shared_part(plan)
    if plan.captioned:
        shared["captions"], split["captions"] = _captions(work, old.get("captions"))
    splits = dict(sorted({**old.get("splits", {}), plan.split: split}.items()))
    manifest.write(folder, {**shared, "splits": splits}, target.name)
    if folder is not target:
        os.rename(folder, target)


def _captions(work: Work, old: dict[str, Any] | None) -> tuple[dict, dict]:
    """What the manifest says of captions: of how they are read, and of this split.

    The split ``train`` gives the vocabulary, or the first split until it is there.
    """
    plan = work.plan
    files = [work.captions_file(shard) for shard in range(plan.num_shards)]
    said = [pair for file in files for pair in json.loads(file.read_text())]
    if old is None or (plan.split == "train" and old["split"] != "train"):
        length = plan.options.get("context_length", 0)
        old = caption_facts.reading_part(said, plan.split, length)
    return old, caption_facts.split_part(said, old)
