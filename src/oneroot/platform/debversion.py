"""Debian version numbers in their order (deb-version(7)), without a process for each comparison."""

from __future__ import annotations

import functools
import itertools
import re

_PARTS = re.compile(r"([^0-9]*)([0-9]*)")


@functools.lru_cache(maxsize=65536)
def key(version: str) -> tuple[object, ...]:
    """Return a key by which version numbers sort as dpkg sorts them."""
    epoch, colon, rest = version.partition(":")
    if not colon:
        epoch, rest = "0", version
    upstream, _, revision = rest.rpartition("-") if "-" in rest else (rest, "", "")
    return (int(epoch) if epoch.isdecimal() else 0, _part(upstream), _part(revision))


def newer(version: str, than: str) -> bool:
    """Whether a version comes after another."""
    return key(version) > key(than)


def _part(text: str) -> tuple[object, ...]:
    pairs = ((_order(match[1]), int(match[2] or 0)) for match in _PARTS.finditer(text) if match[0])
    return (*itertools.chain.from_iterable(pairs), _order(""))


def _order(text: str) -> tuple[int, ...]:
    """``~`` before the end of the part, that before letters, letters before everything else."""
    return (*(-1 if char == "~" else ord(char) if char.isalpha() else ord(char) + 256 for char in text), 0)
