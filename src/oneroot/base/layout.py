"""Where a base's things lie in the store; see `generation` for what they are."""

from __future__ import annotations

import re
from pathlib import Path

from oneroot.settings import Paths

_CURRENT = re.compile(r"generations/([1-9][0-9]*)")


def base_directory(paths: Paths, base: str) -> Path:
    return paths.bases / base


def generation_directory(paths: Paths, base: str, number: int) -> Path:
    return paths.bases / base / "generations" / str(number)


def root(paths: Paths, base: str, number: int) -> Path:
    return generation_directory(paths, base, number) / "root"


def current_link(paths: Paths, base: str) -> Path:
    return paths.bases / base / "current"


def current_number(paths: Paths, base: str) -> int | None:
    """Return the number that ``current`` names, whether or not that generation is there."""
    try:
        target = str(current_link(paths, base).readlink())
    except OSError:
        return None
    match = _CURRENT.fullmatch(target)
    return int(match[1]) if match else None
