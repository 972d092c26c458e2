"""The other runs that a run starts from or learns from, known by more than a path.

A teacher may be moved, copied, or reached through a link: a run directory remembers the
identity of the runs that its config names, and where they lay relative to it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scm_jax.files.jsonl import write_json
from scm_jax.runs.directory.run_configs import RUN_KEYS, config_hash, read_object

logger = logging.getLogger(__name__)

LINKS_FILE = "linked_runs.json"
RUN_FILE = "run.json"  # holds the id of a run that a sweep planned
IMPORTED_FILE = "imported.json"  # holds the hash of the weights of an imported run


def identity(directory: str | os.PathLike) -> str | None:
    """Ten hexadecimal digits that tell a run from others, wherever its directory lies.

    They are the hash in the id of a sweep's run; else that of its config, in which
    other runs count by their identity, and of the weights it was imported from. None
    where there is no run, unless the directory is named like a sweep's run.
    """
    directory = Path(directory)
    config = read_object(directory / "config.json")
    run_id = read_object(directory / RUN_FILE).get(
        "id", "" if config else directory.name
    )
    if match := re.fullmatch(r".*-([0-9a-f]{10})", run_id):
        return match[1]
    if not config:
        return None
    for key, link in read_links(directory).items():
        section, _, name = key.partition(".")
        config[section][name] = link["identity"]
    digits = config_hash(config)
    if weights := read_object(directory / IMPORTED_FILE).get("sha256"):
        return hashlib.sha256(f"{digits} {weights}".encode()).hexdigest()[:10]
    return digits


def read_links(directory: str | os.PathLike) -> dict[str, dict[str, str]]:
    """Config key -> ``identity`` of that run and its place ``relative`` to this one."""
    return read_object(Path(directory) / LINKS_FILE)


def write_links(directory: str | os.PathLike, config: Mapping[str, Any]) -> None:
    """Records those runs that ``config`` names and that exist."""
    links = {}
    for key, place in run_places(config).items():
        if (found := identity(place)) is not None:
            place = os.path.relpath(os.path.realpath(place), Path(directory).resolve())
            links[key] = {"identity": found, "relative": place}
    if links and links != read_links(directory):
        write_json(Path(directory) / LINKS_FILE, links)


def run_places(config: Mapping[str, Any]) -> dict[str, str]:
    """Config key -> directory of each run that a config names."""
    found = {}
    for key in RUN_KEYS:
        section, _, name = key.partition(".")
        if place := config.get(section, {}).get(name):
            found[key] = place
    return found


def find_moved(
    directory: str | os.PathLike, config: Mapping[str, Any]
) -> dict[str, str]:
    """Config key -> new place of each run that is gone from the place it names.

    Looks where the run lay relative to ``directory``, and beside ``directory``.
    """
    directory, links = Path(directory), read_links(directory)
    found = {}
    for key, place in run_places(config).items():
        if _is_run(place):
            continue
        known = links.get(key, {}).get("identity") or identity(place)
        candidates = [directory.parent / Path(place).name]
        if key in links:
            candidates.insert(0, directory / links[key]["relative"])
        for candidate in candidates:
            if _is_run(candidate) and known in (None, identity(candidate)):
                found[key] = os.path.normpath(candidate)
                logger.warning("%s: %s is gone; using %s", key, place, found[key])
                break
    return found


def other_run(
    directory: str | os.PathLike, key: str, there: str, here: str
) -> str | None:
    """How the run ``here`` differs from the run ``there``; None where it is the same.

    ``there`` is the value of ``key``, one of ``RUN_KEYS``, in the config of
    ``directory``, and ``here`` is its new value.
    """
    if there == here == "":
        return None
    if not there or not here:
        return f"{there or '(none)'} there, {here or '(none)'} here"
    known = read_links(directory).get(key, {}).get("identity") or identity(there)
    now = identity(here)
    if known == now or (
        now is None and os.path.realpath(there) == os.path.realpath(here)
    ):
        return None
    if known is None:
        return (
            f"{there} there, which is gone and was not recorded, {here} here; if it "
            f"is the same run, make {there} a link to {here}"
        )
    return f"{there} (run {known}) there, {here} (run {now or 'unknown'}) here"


def _is_run(directory: str | os.PathLike) -> bool:
    return (Path(directory) / "config.json").is_file()
