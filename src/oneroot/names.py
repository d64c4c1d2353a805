"""Names of containers and bases, and the patterns that select them."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Sequence
from typing import NewType

from oneroot.errors import UnknownName, UsageError

ContainerName = NewType("ContainerName", str)
BaseName = NewType("BaseName", str)

LINK_PREFIX = "or"
"""Of the names of containers' links on the host, and of nobody else's."""

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_PATTERN_CHARACTERS = frozenset("*?[")


def container_name(text: str) -> ContainerName:
    """Check a container's name: it becomes a host name and part of paths.

    :raises UsageError: it is not one.
    """
    return ContainerName(_checked(text, "container"))


def base_name(text: str) -> BaseName:
    """Check a base's name.

    :raises UsageError: it is not one.
    """
    return BaseName(_checked(text, "base"))


def is_pattern(text: str) -> bool:
    return not _PATTERN_CHARACTERS.isdisjoint(text)


def select(patterns: Sequence[str], existing: Iterable[str], *, what: str = "container") -> list[str]:
    """Return the existing names that the patterns select, sorted, each once.

    No pattern selects all. A name or pattern that matches nothing is an error.

    :raises UnknownName: says which, and the nearest existing name.
    """
    names = sorted(set(existing))
    if not patterns:
        return names
    chosen: set[str] = set()
    for pattern in patterns:
        if is_pattern(pattern):
            found = fnmatch.filter(names, pattern)
        else:
            _checked(pattern, what)
            found = [pattern] if pattern in set(names) else []
        if not found:
            raise _unknown(pattern, names, what)
        chosen.update(found)
    return sorted(chosen)


def _unknown(pattern: str, names: list[str], what: str) -> UnknownName:
    import difflib

    if is_pattern(pattern):
        return UnknownName(
            f"No {what} matches {pattern!r}", fix="oneroot ls" if what == "container" else "oneroot base ls"
        )
    near = difflib.get_close_matches(pattern, names, n=1)
    fix = f"did you mean {near[0]}?" if near else ("oneroot ls" if what == "container" else "oneroot base ls")
    return UnknownName(f"There is no {what} {pattern}", why=f"{len(names)} exist", fix=fix)


def _checked(text: str, what: str) -> str:
    if _NAME.fullmatch(text):
        return text
    shown = text if len(text) <= 80 else text[:77] + "…"
    raise UsageError(
        f"{shown!r} is not a name for a {what}",
        why="a name has 1 to 63 characters: a-z, 0-9 and, not at its ends, the hyphen",
        fix="choose another name, such as web001",
    )
