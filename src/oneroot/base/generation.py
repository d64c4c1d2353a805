"""Generations and bases as values, and the files that describe them.

::

    bases/core/base.json                   BaseSpec: what was declared
    bases/core/checked.json                SourceCheck: when its sources were last checked
    bases/core/current -> generations/7    swapped by rename
    bases/core/generations/7/root/         the tree
    bases/core/generations/7/generation.json   Generation, written last in the stage
    bases/core/generations/7/manifest.gz   every path of the tree, see `manifest`
    bases/core/generations/7/changes.gz    the paths that differ from the parent
    bases/core/collected/5/                generation.json and changes.gz of a collected generation
    bases/core/stage/                      builds in progress
"""

from __future__ import annotations

import dataclasses
from typing import NewType

from oneroot.names import BaseName
from oneroot.platform.packages import PackageChange as PackageChange
from oneroot.platform.packages import Release as Release
from oneroot.platform.packages import Repository as Repository

GenerationNumber = NewType("GenerationNumber", int)

SCHEMA = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pin:
    """A base held on a generation by a person."""

    generation: int
    reason: str
    person: str
    since: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaseSpec:
    """What was declared of a base."""

    name: BaseName
    source: str
    """``debian:bookworm``, ``host``, or empty for a derived base."""
    parent: str | None = None
    """The base that a derived base is built on (``from:``)."""
    packages: tuple[str, ...] = ()
    repositories: tuple[Repository, ...] = ()
    architecture: str = "amd64"
    created: str = ""
    pin: Pin | None = None
    bad: tuple[int, ...] = ()
    """Generations that are not rolled out again."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generation:
    """An immutable, numbered version of a base."""

    base: BaseName
    number: GenerationNumber
    parent: int | None
    created: str
    reason: str
    person: str
    packages: dict[str, str]
    """Version by ``name`` (``name:arch`` for a foreign architecture)."""
    changes: tuple[PackageChange, ...]
    releases: tuple[Release, ...]
    files: int
    size: int
    """Bytes of its regular files, links counted once."""
    digest: str
    """SHA-256 of the manifest."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceCheck:
    """The last look at a base's package sources."""

    checked: str | None
    """When it last succeeded, UTC RFC 3339."""
    attempted: str
    error: str = ""
    pending: tuple[PackageChange, ...] = ()
    """Updates that wait; after a failed check, those of the last good one."""
    kept_back: tuple[str, ...] = ()
    """Packages with a newer version that cannot be installed as things are."""
