"""What every package manager must be able to do for a base, and the values it speaks in."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol


@dataclasses.dataclass(frozen=True, kw_only=True)
class Repository:
    """One package source of a base, a ``deb`` line in parts."""

    uri: str
    suites: tuple[str, ...]
    components: tuple[str, ...]
    signed_by: str
    """Path of the keyring on the host; empty: the keys that the host's apt trusts for every source."""
    allow_unsigned: bool = False
    """Spoken at creation: take packages that no key vouches for."""
    allow_expired: bool = False
    """Spoken at creation: take a Release file whose Valid-Until is past."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackageChange:
    """A package whose version differs between two generations; None: absent there."""

    package: str
    old: str | None
    new: str | None
    cves: tuple[str, ...] = ()
    """Named in the changelog entries that are new."""
    security: bool = False
    """The new version comes from a security suite."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Release:
    """A Release file that a generation was made from."""

    suite: str
    origin: str
    digest: str
    """SHA-256 of the InRelease file."""
    fingerprint: str
    """Of the primary keys whose signatures are good, separated by blanks; empty: unsigned."""
    date: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What a package manager would do."""

    changes: tuple[PackageChange, ...]
    kept_back: tuple[str, ...] = ()
    """Have a newer version that cannot be installed as things are."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Archive:
    """A package file to fetch."""

    name: str
    """File name in the cache."""
    size: int
    digest: str
    """SHA-256 in hex; empty if the source gives another digest only."""


class PackageManager(Protocol):
    """How a tree's packages are read. Trees are whole roots that nobody changes meanwhile."""

    def installed(self, root: Path) -> dict[str, str]:
        """Return the versions of installed packages by name (``name:arch`` if foreign)."""

    def broken(self, root: Path) -> list[str]:
        """Return the packages that are neither installed nor absent."""

    def owners(self, root: Path) -> dict[str, str]:
        """Return the package of every listed path, as paths lie on disk; of a directory, any one of many."""

    def pristine(self, root: Path, paths: Sequence[str]) -> Mapping[str, str]:
        """Return the MD5 digests that packages shipped for these paths, where they did."""
