"""The last part of every build: a finished tree in the stage becomes a described generation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from oneroot.base import manifest as manifests
from oneroot.base import scrub, workshop
from oneroot.base.generation import BaseSpec, Generation, GenerationNumber, PackageChange, Release
from oneroot.base.manifest import Manifest, Row
from oneroot.base.store import now
from oneroot.base.survey import survey
from oneroot.errors import OnerootError
from oneroot.platform import sources
from oneroot.platform.dpkg import Dpkg
from oneroot.platform.packages import PackageManager
from oneroot.work import locks

_DPKG = Dpkg()


@dataclasses.dataclass(frozen=True)
class Act:
    """A step made of two functions; see `oneroot.work.steps.Step`."""

    text: str
    do: Callable[[], object]
    back: Callable[[], object] | None = None

    def describe(self) -> str:
        return self.text

    def apply(self) -> None:
        with workshop.no_space_told(f"The base could not be built: {self.text}"):
            self.do()

    def undo(self) -> None:
        if self.back is not None:
            self.back()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parent:
    """The generation that a tree was folded from."""

    generation: Generation
    manifest: Manifest
    linked: frozenset[str]
    """Paths of the tree that are hard links to it."""


def describe(
    prepared: Path,
    *,
    spec: BaseSpec,
    number: GenerationNumber,
    parent: Parent | None,
    releases: tuple[Release, ...],
    told: Iterable[PackageChange] = (),
    reason: str,
    manager: PackageManager = _DPKG,
) -> Generation:
    """Scrub the tree ``prepared/root``, look at every path, and write its manifest beside it.

    :param told: what was found out about the changes beforehand: CVEs, security suites.
    :returns: what generation.json will say; the store writes it when it commits.
    :raises OnerootError: a package is half installed, or a private key would be shared.
    """
    root = prepared / "root"
    touched = scrub.scrub(root)
    _require_whole(manager.broken(root))
    known = _known(parent, touched) if parent else {}
    found = survey(root, manager.owners(root), known)
    scrub.refuse_private_keys(
        scrub.private_keys(root, found.suspects, lambda paths: manager.pristine(root, paths))
    )
    found.manifest.save(prepared / "manifest.gz")
    differences = found.manifest.changes_from(parent.manifest) if parent else []
    manifests.save_changes(prepared / "changes.gz", differences)
    packages = manager.installed(root)
    return Generation(
        base=spec.name,
        number=number,
        parent=parent.generation.number if parent else None,
        created=now(),
        reason=reason,
        person=locks.person(),
        packages=packages,
        changes=changes_between(parent.generation.packages, packages, told) if parent else (),
        releases=releases,
        files=len(found.manifest),
        size=found.size,
        digest=found.manifest.digest(),
    )


def _known(parent: Parent, touched: frozenset[str]) -> dict[str, Row]:
    rows = ((path, parent.manifest.row(path)) for path in parent.linked - touched)
    return {path: row for path, row in rows if row is not None}


def _require_whole(broken: list[str]) -> None:
    if broken:
        raise OnerootError(
            f"The package {broken[0]} was not installed completely",
            why=f"dpkg says so of: {', '.join(broken[:10])}",
            fix="read the newest log in the store's log directory",
        )


def changes_between(
    old: Mapping[str, str], new: Mapping[str, str], told: Iterable[PackageChange] = ()
) -> tuple[PackageChange, ...]:
    """Return which packages differ, with what was told of each."""
    known = {(change.package, change.new): change for change in told}
    changes = []
    for package in sorted({*old, *new}):
        before, after = old.get(package), new.get(package)
        if before != after:
            found = known.get((package, after))
            change = PackageChange(package=package, old=before, new=after)
            if found:
                change = dataclasses.replace(change, cves=found.cves, security=found.security)
            changes.append(change)
    return tuple(changes)


def write_sources(root: Path, spec: BaseSpec) -> None:
    """Write the tree's own package sources, so that developers can install packages in a container.

    Sources that lie on this host are of no use there, and passwords are not for everybody.
    """
    reachable = [
        dataclasses.replace(one, signed_by=one.signed_by if _inside(root, one.signed_by) else "")
        for one in spec.repositories
        if not sources.local_directories([one])
        and not one.allow_unsigned
        and sources.without_password(one.uri) == one.uri
    ]
    target = root / "etc/apt/sources.list"
    target.unlink(missing_ok=True)
    target.write_text(sources.lines(reachable, keyring=str), encoding="utf-8")
    target.chmod(0o644)


def _inside(root: Path, keyring: str) -> bool:
    return bool(keyring) and (root / keyring[1:]).is_file()
