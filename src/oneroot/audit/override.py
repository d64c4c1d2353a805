"""Overrides: files in a container's upper that stand before files of its base.

A file in the upper hides the base's file of that path from now on, and with it every later patch
to it. The upper is the container's own, so that all of it is hostile: it is entered through
`kernel.tree` alone, only where the base has something, and within bounds; what lies beyond them
makes the container unknown.
"""

from __future__ import annotations

import dataclasses
import enum
import errno
import os
import stat
import time
from collections.abc import Iterator, Mapping, Sequence

from oneroot.audit.basecode import CODE, DIGEST, KIND, PACKAGE, PATH, SIZE, BaseCode
from oneroot.audit.digest import digest_of
from oneroot.base.manifest import Row
from oneroot.container.state import ContainerState
from oneroot.errors import CorruptState
from oneroot.kernel import xattr
from oneroot.kernel.tree import Tree
from oneroot.settings import Paths, Settings

MOST_ENTRIES = 1_000_000
MOST_SECONDS = 20.0
MOST_LISTED = 1000
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_OWN = frozenset({"etc/hostname", "etc/hosts", "etc/resolv.conf", "etc/machine-id"})
"""Each container's own by design."""


class OverrideKind(enum.Enum):
    """In systemd-delta's words."""

    OVERRIDDEN = "overridden"
    MASKED = "masked"
    EQUIVALENT = "equivalent"


class Severity(enum.Enum):
    """What stands behind an override."""

    CODE = "code"
    """Keeps a fix out: the container is not proven unless its content is the same."""
    CONFIGURATION = "configuration"
    DATABASE = "database"
    """dpkg's, apt's or rpm's own files."""
    DATA = "data"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Override:
    """One path of the base that a container's upper stands before."""

    path: str
    kind: OverrideKind
    package: str | None
    severity: Severity
    hides: int = 1
    """Files of the base; more than one for a masked directory."""

    @property
    def keeps_fixes_out(self) -> bool:
        return self.severity is Severity.CODE and self.kind is not OverrideKind.EQUIVALENT


@dataclasses.dataclass(frozen=True, kw_only=True)
class Overrides:
    """What was found in one upper."""

    found: tuple[Override, ...] = ()
    """Those that keep fixes out come first."""
    unlisted: int = 0
    """Found beyond `MOST_LISTED`, none of them keeping a fix out unless all listed ones do."""
    unknown: str = ""
    """Why the upper could not be read to its end."""


class Examiner:
    """Examines the uppers of a base's containers; remembers the digests of files it has read."""

    def __init__(self, paths: Paths, code: BaseCode) -> None:
        self._paths = paths
        self._code = code
        self._digests: dict[tuple[int, int, int], str] = {}

    def examine(self, container: str, *, unprivileged: bool) -> Overrides:
        """Find what an upper stands before. The container may run meanwhile."""
        upper = self._paths.container(container) / "overlay" / "upper"
        found: list[Override] = []
        unknown = ""
        try:
            with Tree(upper) as tree:
                look = _Look(tree, self._code, self._digests, user=unprivileged)
                for override in look.overrides():
                    found.append(override)
        except _Bound as error:
            unknown = f"its writable layer is too large to be read: {error}"
        except OSError as error:
            unknown = f"its writable layer cannot be read: {error.strerror or error}"
        found.sort(key=lambda one: (not one.keeps_fixes_out, one.severity.value, one.path))
        return Overrides(
            found=tuple(found[:MOST_LISTED]), unlisted=max(0, len(found) - MOST_LISTED), unknown=unknown
        )


class _Bound(Exception):
    """An upper has more in it than we are willing to read."""


class _Look:
    """One look through one upper."""

    def __init__(
        self, tree: Tree, code: BaseCode, digests: dict[tuple[int, int, int], str], *, user: bool
    ) -> None:
        self._tree = tree
        self._code = code
        self._digests = digests
        self._prefix = "user.overlay." if user else "trusted.overlay."
        self._left = MOST_ENTRIES
        self._end = time.monotonic() + MOST_SECONDS

    def overrides(self) -> Iterator[Override]:
        places = self._code.places
        waiting: list[tuple[str, bool]] = [("", False)]
        while waiting:
            directory, hidden = waiting.pop()
            opaque = self._opaque(directory) if directory else ""
            if opaque == "y" and not hidden:
                hidden = True
                yield from self._hidden_by_opaque(directory)
            for name in self._names(directory):
                path = f"{directory}/{name}" if directory else name
                row = self._code.row(f"/{path}") or self._code.former(f"/{path}")
                if (row is None and path not in places) or path in _OWN:
                    continue
                status = self._status(path)
                if status is None:
                    continue
                if stat.S_ISDIR(status.st_mode):
                    if path in places:
                        waiting.append((path, hidden))
                    if row is not None and row[KIND] != "d":
                        yield from self._one(path, row, OverrideKind.OVERRIDDEN)
                elif row is not None:
                    yield from self._judge(path, row, status, marked=opaque == "x")

    def _names(self, directory: str) -> list[str]:
        try:
            names = self._tree.listdir(directory, limit=self._left)
        except OSError as error:
            if error.errno == errno.EFBIG:
                raise _Bound(f"more than {MOST_ENTRIES} files") from error
            if error.errno in _GONE and directory:
                return []
            raise
        self._left -= len(names)
        self._check_time()
        return names

    def _check_time(self) -> None:
        if time.monotonic() > self._end:
            raise _Bound(f"it takes more than {MOST_SECONDS:g} s")

    def _status(self, path: str) -> os.stat_result | None:
        try:
            return self._tree.lstat(path)
        except OSError as error:
            if error.errno in _GONE:
                return None
            raise

    def _opaque(self, directory: str) -> str:
        try:
            value = self._tree.getxattr(directory, f"{self._prefix}opaque")
        except OSError as error:
            if error.errno in _GONE:
                return ""
            raise
        return "" if value is None else value.decode("ascii", "replace")

    def _judge(self, path: str, row: Row, status: os.stat_result, *, marked: bool) -> Iterator[Override]:
        masked = xattr.is_whiteout(status) or (marked and self._is_marked(path, status))
        if row[KIND] == "d":
            # a whiteout, file or link in place of a directory hides all that the base has in it
            yield from self._directory(path, self._code.below(path))
        elif masked and self._code.row(f"/{path}") is not None:
            yield from self._one(path, row, OverrideKind.MASKED)
        elif not masked:
            same = self._same(path, row, status)
            yield from self._one(path, row, OverrideKind.EQUIVALENT if same else OverrideKind.OVERRIDDEN)

    def _is_marked(self, path: str, status: os.stat_result) -> bool:
        empty = stat.S_ISREG(status.st_mode) and status.st_size == 0
        return empty and self._tree.getxattr(path, f"{self._prefix}whiteout") is not None

    def _one(self, path: str, row: Row, kind: OverrideKind) -> Iterator[Override]:
        severity = self._code.severity(f"/{path}", row)
        if severity is None:
            return
        if kind is OverrideKind.EQUIVALENT and not (row[PACKAGE] or row[CODE]):
            return
        yield Override(path=f"/{path}", kind=kind, package=row[PACKAGE], severity=Severity(severity))

    def _hidden_by_opaque(self, directory: str) -> Iterator[Override]:
        """What the upper shows in place of the base's files is judged one by one; the rest is gone."""
        self._check_time()
        missing = [row for row in self._code.below(directory) if not self._present(row[PATH])]
        yield from self._directory(directory, iter(missing))

    def _present(self, path: str) -> bool:
        status = self._status(path)
        return status is not None and not xattr.is_whiteout(status)

    def _directory(self, path: str, rows: Iterator[Row]) -> Iterator[Override]:
        """Sum up the files that a directory hides as one override, by the worst of them."""
        hidden: dict[Severity, list[Row]] = {}
        for row in rows:
            found = self._code.severity(row[PATH], row)
            if found is not None:
                hidden.setdefault(Severity(found), []).append(row)
        for severity in Severity:
            if severity in hidden:
                listed = hidden[severity]
                packages = {row[PACKAGE] for row in listed}
                yield Override(
                    path=f"/{path}",
                    kind=OverrideKind.MASKED,
                    package=packages.pop() if len(packages) == 1 else None,
                    severity=severity,
                    hides=len(listed),
                )
                return

    def _same(self, path: str, row: Row, status: os.stat_result) -> bool:
        if self._code.row(f"/{path}") is None:
            return False  # a former generation's file: the current one has none
        if row[KIND] == "l":
            return stat.S_ISLNK(status.st_mode) and self._target(path) == row[DIGEST]
        if row[KIND] != "f" or not stat.S_ISREG(status.st_mode) or status.st_size != row[SIZE]:
            return False
        return self._digest(path, status) == str(row[DIGEST])

    def _target(self, path: str) -> str | None:
        try:
            return self._tree.readlink(path)
        except OSError:
            return None

    def _digest(self, path: str, status: os.stat_result) -> str | None:
        """Return the SHA-256 of a regular file of the size that its status tells, or None."""
        key = (status.st_ino, status.st_ctime_ns, status.st_size)
        if key not in self._digests:
            found = digest_of(self._tree, path, status.st_size, self._check_time)
            if found is None:
                return None
            self._digests[key] = found
        return self._digests[key]


def examine_all(
    settings: Settings, states: Sequence[ContainerState], bases: Mapping[str, BaseCode] | None = None
) -> dict[str, Overrides]:
    """Examine the uppers of many containers, running or not.

    :param bases: what the caller has loaded of them already.
    """
    loaded = dict(bases or {})
    examiners: dict[str, Examiner] = {}
    found: dict[str, Overrides] = {}
    for state in states:
        if not state.base:
            found[state.name] = Overrides(unknown="its base is not known")
            continue
        if state.base not in examiners:
            code = loaded.get(state.base) or BaseCode(settings.paths, state.base)
            examiners[state.base] = Examiner(settings.paths, code)
        try:
            found[state.name] = examiners[state.base].examine(state.name, unprivileged=state.unprivileged)
        except (OSError, CorruptState) as error:  # of the store; the examiner tells those of the upper
            found[state.name] = Overrides(unknown=f"its base cannot be read: {error}")
    return found
