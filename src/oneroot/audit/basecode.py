"""What audit needs to know of a base's generations: which file is which code, and what replaced it.

Everything here reads the store, which is root's alone and never changes; paths that came from a
container are looked up without following links all the same.
"""

from __future__ import annotations

import bisect
import functools
import os
from collections.abc import Iterator
from pathlib import Path

from oneroot.base import layout, manifest
from oneroot.base.manifest import Change, Manifest, Row
from oneroot.kernel.tree import Tree
from oneroot.settings import Paths

PATH, KIND, SIZE, DIGEST, PACKAGE, CODE = 0, 1, 5, 7, 8, 9
"""Places in a manifest's row."""

_DATABASES = ("/var/lib/dpkg/", "/var/lib/apt/", "/var/lib/rpm/", "/usr/lib/sysimage/rpm/")
_LINKER = frozenset({"/etc/ld.so.cache", "/etc/ld.so.preload"})
_LINK_HOPS = 8


class BaseCode:
    """The generations of one base, loaded as far as they are asked for.

    :raises CorruptState: from any method, when the store's own files are damaged.
    """

    def __init__(self, paths: Paths, base: str) -> None:
        self.base = base
        self.current = layout.current_number(paths, base)
        self._paths = paths
        self._generations: dict[int, GenerationCode] = {}

    def generation(self, number: int) -> GenerationCode:
        """Return what is known of a generation that is kept.

        :raises FileNotFoundError: it is not there.
        """
        if number not in self._generations:
            directory = layout.generation_directory(self._paths, self.base, number)
            self._generations[number] = GenerationCode(directory, number)
        return self._generations[number]

    def kept(self) -> list[int]:
        """Return the numbers of the generations whose trees exist, newest first."""
        return _numbers(layout.base_directory(self._paths, self.base) / "generations")

    def row(self, path: str) -> Row | None:
        """Return the current generation's row of an absolute path."""
        return self._now.manifest.row(path)

    def former(self, path: str) -> Row | None:
        """Return another generation's row of a path that the current one does not have."""
        return self._changes[0].get(path)

    def replaced_sizes(self) -> dict[int, set[str]]:
        """Return size → digests of code that some generation has and the current one does not."""
        return self._changes[1]

    @functools.cached_property
    def places(self) -> frozenset[str]:
        """The directories, relative, below which any generation has something worth guarding."""
        found = {""}
        for row in self._now.manifest.rows():
            if row[KIND] != "d" and (row[PACKAGE] or row[CODE] or _is_kept_apart(row[PATH])):
                _add_parents(found, row[PATH])
        for path in self._changes[0]:
            _add_parents(found, path)
        return frozenset(found)

    def below(self, directory: str) -> Iterator[Row]:
        """Yield the current generation's rows below a relative path of a directory."""
        prefix = f"/{directory}/"
        place = bisect.bisect_left(self._sorted, prefix)
        while place < len(self._sorted) and self._sorted[place].startswith(prefix):
            row = self.row(self._sorted[place])
            if row is not None:
                yield row
            place += 1

    def severity(self, path: str, row: Row) -> str | None:
        """Say what a path of the base is, as far as standing before it matters.

        :returns: ``code``, ``configuration``, ``database``, ``data``; None for what no package
            owns and nothing runs.
        """
        if path.startswith(_DATABASES):
            return "database"
        if path.startswith("/etc/") and path not in _LINKER:
            return "configuration"
        if row[CODE] or (row[KIND] == "l" and self._leads_to_code(path, row)):
            # Python writes these anew wherever it may, and checks each against its source.
            return "data" if "/__pycache__/" in path and not row[PACKAGE] else "code"
        return "data" if row[PACKAGE] and row[KIND] != "d" else None

    def _leads_to_code(self, path: str, row: Row) -> bool:
        for _ in range(_LINK_HOPS):
            target = _joined(path, row[DIGEST])
            found = self.row(target)
            if found is None:
                return False
            if found[KIND] == "d":
                return any(below[CODE] for below in self.below(target.lstrip("/")))
            if found[KIND] != "l":
                return bool(found[CODE])
            path, row = target, found
        return False

    @functools.cached_property
    def _now(self) -> GenerationCode:
        if self.current is None:
            raise FileNotFoundError(2, "the base has no current generation", self.base)
        return self.generation(self.current)

    @functools.cached_property
    def _sorted(self) -> list[str]:
        return sorted(self._now.manifest.paths())

    @functools.cached_property
    def _changes(self) -> tuple[dict[str, Row], dict[int, set[str]]]:
        """Paths that only other generations have, and sizes and digests of code that only they have."""
        former: dict[str, Row] = {}
        replaced: dict[int, set[str]] = {}
        for change in self._all_changes():
            for entry in (change.old, change.new):
                if entry is None:
                    continue
                row = self.row(change.path)
                if row is None:
                    former.setdefault(change.path, manifest.to_row(entry))
                is_file = entry.code and entry.kind is manifest.Kind.FILE and entry.size > 0
                if is_file and (row is None or row[DIGEST] != entry.digest):
                    replaced.setdefault(entry.size, set()).add(entry.digest)
        return former, replaced

    def _all_changes(self) -> Iterator[Change]:
        base = layout.base_directory(self._paths, self.base)
        for kind in ("generations", "collected"):
            for number in _numbers(base / kind):
                try:
                    yield from manifest.load_changes(base / kind / str(number) / "changes.gz")
                except FileNotFoundError:
                    continue


class GenerationCode:
    """One generation's tree: its manifest, and which inode is which path."""

    def __init__(self, directory: Path, number: int) -> None:
        self.number = number
        self._directory = directory
        self._tree = Tree(directory / "root")
        self._known: dict[str, int] = {}

    @functools.cached_property
    def manifest(self) -> Manifest:
        return manifest.load(self._directory / "manifest.gz")

    @property
    def device(self) -> int:
        return self._tree.lstat("").st_dev

    def inode(self, path: str) -> int:
        """Return the inode number at an absolute path; 0 for nothing there."""
        found = self._known.get(path)
        if found is None:
            try:
                found = self._tree.lstat(path).st_ino
            except OSError:
                found = 0
            self._known[path] = found
        return found

    def path_of(self, inode: int) -> str | None:
        """Return the path of an inode, whatever it is called by those who look at it."""
        return self._inodes.get(inode)

    @functools.cached_property
    def _inodes(self) -> dict[int, str]:
        found: dict[int, str] = {}
        root = str(self._directory / "root")
        waiting = [root]
        while waiting:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    else:
                        found.setdefault(entry.inode(), entry.path[len(root) :])
        return found


def _numbers(directory: Path) -> list[int]:
    try:
        names = [entry.name for entry in directory.iterdir()]
    except FileNotFoundError:
        return []
    return sorted((int(name) for name in names if name.isascii() and name.isdecimal()), reverse=True)


def _is_kept_apart(path: str) -> bool:
    return path.startswith(("/etc/", *_DATABASES))


def _add_parents(found: set[str], path: str) -> None:
    parent = path.rpartition("/")[0].lstrip("/")
    while parent not in found:
        found.add(parent)
        parent = parent.rpartition("/")[0]


def _joined(path: str, target: str) -> str:
    parts = [] if target.startswith("/") else path.split("/")[1:-1]
    for part in target.split("/"):
        if part == "..":
            parts = parts[:-1]
        elif part not in ("", "."):
            parts.append(part)
    return "/" + "/".join(parts)
