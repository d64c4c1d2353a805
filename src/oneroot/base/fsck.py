"""Compares the generations of a base with their manifests: has anybody changed what must not change?"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

from oneroot.base.manifest import Entry, Kind, Manifest
from oneroot.base.store import Store
from oneroot.base.survey import look
from oneroot.errors import OnerootError
from oneroot.work.progress import SILENT, Progress

_MOST = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that is not as it must be."""

    base: str
    generation: int | None
    path: str
    problem: str


def check(store: Store, name: str, *, progress: Progress = SILENT) -> list[Finding]:
    """Read every generation of a base whole and return what is wrong; empty when all is well."""
    findings: list[Finding] = []

    def note(problem: str, path: Path | str = "", generation: int | None = None) -> None:
        findings.append(Finding(base=name, generation=generation, path=str(path), problem=problem))

    directory = store.directory(name)
    for reader in (store.spec, store.current):
        try:
            reader(name)
        except OnerootError as error:
            note(str(error), directory)
    if not os.path.lexists(directory / "current"):
        note("it has no current generation: its link “current” is missing", directory / "current")
    for leftover in ("stage",):
        if (directory / leftover).exists():
            note(
                "left by a build that was killed; the next change of the base sweeps it", directory / leftover
            )
    for place in (directory, *directory.glob("*"), *directory.glob("generations/*")):
        if not place.is_symlink() and place.stat().st_mode & 0o077:
            note(f"mode {place.stat().st_mode & 0o7777:o}: others than root may enter", place)
    numbers = store.numbers(name)
    for entry in sorted((directory / "generations").glob("*")):
        if entry.name not in map(str, numbers):
            note("is no complete generation", entry)
    task = progress.begin(f"{name}: check generations", len(numbers))
    for number in numbers:
        try:
            found = list(_generation(store, name, number))
        except OnerootError as error:
            found = [("", str(error))]
        for path, problem in found[:_MOST]:
            note(problem, path, number)
        if len(found) > _MOST:
            note(f"and {len(found) - _MOST} more", "", number)
        task.done(str(number), failed=bool(found))
    return findings


def _generation(store: Store, name: str, number: int) -> Iterator[tuple[str, str]]:
    described = store.generation(name, number)
    expected = store.manifest(name, number)
    if expected.digest() != described.digest:
        yield "", "its manifest is not the one that it was committed with"
    root = store.root(name, number)
    if not root.is_dir():
        yield str(root), "its tree is missing"
        return
    yield from _compare(root, expected)


def _compare(root: Path, expected: Manifest) -> Iterator[tuple[str, str]]:
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        seen: set[str] = set()
        paths = list(_paths(str(root), ""))
        for path, actual in zip(
            paths, pool.map(lambda path: look(str(root), path), paths, chunksize=128), strict=True
        ):
            seen.add(path)
            wanted = expected.get(path)
            if wanted is None:
                yield path, "is not in the manifest"
            else:
                yield from ((path, problem) for problem in _differences(wanted, actual))
    for path in expected.paths():
        if path not in seen:
            yield path, "is missing"


def _paths(root: str, path: str) -> Iterator[str]:
    yield path or "/"
    with os.scandir(root + (path or "/")) as entries:
        for entry in entries:
            beneath = f"{path}/{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                yield from _paths(root, beneath)
            else:
                yield beneath


def _differences(wanted: Entry, actual: Entry) -> Iterator[str]:
    if wanted.kind is not actual.kind:
        yield f"is a {actual.kind.value}, not a {wanted.kind.value}"
        return
    if wanted.mode != actual.mode:
        yield f"mode {actual.mode:04o}, not {wanted.mode:04o}"
    if (wanted.uid, wanted.gid) != (actual.uid, actual.gid):
        yield f"owner {actual.uid}:{actual.gid}, not {wanted.uid}:{wanted.gid}"
    if wanted.digest != actual.digest or wanted.size != actual.size:
        yield "its content is another"
    elif wanted.mtime != actual.mtime and wanted.kind is not Kind.DIRECTORY:
        yield "its modification time is another"
    if dict(wanted.attributes) != dict(actual.attributes):
        yield f"attributes {sorted(actual.attributes)}, not {sorted(wanted.attributes)}"
