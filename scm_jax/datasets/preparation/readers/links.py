"""Where the links in an archive lead, without unpacking it."""

from __future__ import annotations

import bisect
import posixpath
from collections.abc import Mapping
from typing import TypeVar

# As many as the kernel follows before it calls them a loop.
MAX_LINKS = 40

File = TypeVar("File")


def follow_links(
    files: Mapping[str, File], links: Mapping[str, str]
) -> tuple[dict[str, File], dict[str, str]]:
    """Files under the names of the links that lead to them, and links to nothing.

    A link to a folder stands for all files in it. Nothing outside of the archive is
    ever looked at: a link that leaves it, or that leads to itself, leads to nothing.

    Example:
      >>> follow_links({"a/1.png": "one"}, {"b": "a", "c.png": "a/1.png", "d": "../x"})
      ({'c.png': 'one', 'b/1.png': 'one'}, {'d': '../x'})

    Args:
      files: what lies in the archive, by its path from the archive's root.
      links: the same for links, and the paths that they name, also from the root.

    Returns:
      The files behind links, and the links that lead to nothing with what they name.
    """
    ends = {link: _end(link, links) for link in links}
    found = {link: files[end] for link, end in ends.items() if end in files}
    known = {**files, **found}
    names, broken = sorted(known), {}
    for link, end in ends.items():
        if end in files:
            continue
        inside: list[str] = []
        if not f"{link}/".startswith(f"{end}/"):
            first = bisect.bisect_left(names, f"{end}/")
            inside = names[first : bisect.bisect_left(names, f"{end}0")]  # 0 is / + 1
        if not inside:
            broken[link] = posixpath.normpath(links[link])
        for name in inside:
            found[f"{link}/{name[len(end) + 1 :]}"] = known[name]
    return found, broken


def _end(name: str, links: Mapping[str, str]) -> str:
    """The path that a link leads to in the end; itself where it goes in circles."""
    first = name
    for _ in range(MAX_LINKS):
        parts = name.split("/")
        heads = ["/".join(parts[: depth + 1]) for depth in range(len(parts))]
        depth = next((d for d, head in enumerate(heads) if head in links), None)
        if depth is None:
            return name
        name = posixpath.normpath("/".join([links[heads[depth]], *parts[depth + 1 :]]))
    return first
