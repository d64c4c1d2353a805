"""Makes the rows of a manifest: looks at every path of a finished tree once."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from oneroot.base.manifest import Entry, Manifest, Row, from_row
from oneroot.kernel import xattr

_LETTERS = {
    stat.S_IFREG: "f",
    stat.S_IFDIR: "d",
    stat.S_IFLNK: "l",
    stat.S_IFCHR: "c",
    stat.S_IFBLK: "b",
    stat.S_IFIFO: "p",
    stat.S_IFSOCK: "s",
}
_MODULES = (
    *(
        ".py",
        ".pyc",
        ".pyo",
        ".pm",
        ".pl",
        ".ph",
        ".al",
        ".rb",
        ".php",
        ".phar",
        ".inc",
        ".js",
        ".mjs",
        ".cjs",
    ),
    *(".jar", ".class", ".lua", ".tcl", ".so", ".node", ".el", ".elc"),
)
_MODULE_PLACES = (
    *("/usr/lib/", "/usr/share/", "/usr/libexec/", "/usr/bin/", "/usr/sbin/", "/usr/local/"),
    *("/opt/", "/etc/alternatives/"),
)
_NO_MODULE_PLACES = ("/usr/share/doc/", "/usr/share/man/", "/usr/share/locale/")
_GENERATED_CODE = frozenset({"/etc/ld.so.cache", "/etc/ld.so.preload"})
_SIGNS = (b"PRIVATE KEY", b"PuTTY-User-Key-File", b"AGE-SECRET-KEY")
_CHUNK = 1 << 20


def is_code(path: str, head: bytes) -> bool:
    """Whether a regular file is something that a process could run.

    :param head: its first bytes, four at least if it has so many.
    """
    if head.startswith((b"\x7fELF", b"#!")) or path in _GENERATED_CODE:
        return True
    if not path.endswith(_MODULES) and ".so." not in path:
        return False
    return path.startswith(_MODULE_PLACES) and not path.startswith(_NO_MODULE_PLACES)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Survey:
    """What was found."""

    manifest: Manifest
    size: int
    """Bytes of all regular files, each counted once however many names it has."""
    read: int
    """Files whose content was read."""
    suspects: tuple[str, ...]
    """Those of them that speak of private keys."""


def survey(root: Path, owners: Mapping[str, str], known: Mapping[str, Row] | None = None) -> Survey:
    """Make the manifest of a tree that nobody changes meanwhile.

    :param owners: the package of each path.
    :param known: by path, rows of the parent generation for files that are hard links to its files:
        they are not looked at again.
    """
    found = _Walk(str(root), owners, known or {})
    found.directory("", os.lstat(root))
    found.read_contents()
    return Survey(
        manifest=Manifest(found.rows),
        size=sum(found.sizes.values()),
        read=len(found.unread),
        suspects=tuple(found.suspects),
    )


class _Walk:
    def __init__(self, root: str, owners: Mapping[str, str], known: Mapping[str, Row]) -> None:
        self.rows: list[Row] = []
        self.sizes: dict[int, int] = {}
        self.unread: list[int] = []
        self.suspects: list[str] = []
        self._root = root
        self._owners = owners
        self._known = known

    def directory(self, path: str, status: os.stat_result) -> None:
        self.rows.append(self.row(path or "/", "d", status, "", None))
        with os.scandir(self._root + (path or "/")) as entries:
            listed = sorted(entries, key=lambda entry: entry.name)
        for entry in listed:
            beneath = f"{path}/{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                self.directory(beneath, entry.stat(follow_symlinks=False))
                continue
            known = self._known.get(beneath)
            if known is not None:
                self.rows.append((*known[:8], self._owners.get(beneath), *known[9:]))
                self.sizes[entry.inode()] = known[5]
            else:
                self.other(beneath, entry.stat(follow_symlinks=False))

    def other(self, path: str, status: os.stat_result) -> None:
        letter = _LETTERS[stat.S_IFMT(status.st_mode)]
        digest = ""
        if letter == "l":
            digest = os.readlink(self._root + path)  # noqa: PTH115  paths are strings, for speed
        elif letter in "cb":
            digest = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
        elif letter == "f":
            self.unread.append(len(self.rows))
            self.sizes[status.st_ino] = status.st_size
        self.rows.append(self.row(path, letter, status, digest, self._owners.get(path)))

    def row(self, path: str, letter: str, status: os.stat_result, digest: str, package: str | None) -> Row:
        attributes = None
        if letter != "l":
            attributes = {name: value.hex() for name, value in xattr.all_of(self._place(path)).items()}
        size = status.st_size if letter == "f" else 0
        mode = stat.S_IMODE(status.st_mode)
        return (
            *(path, letter, mode, status.st_uid, status.st_gid, size, status.st_mtime_ns),
            *(digest, package, 0, attributes or None),
        )

    def _place(self, path: str) -> str:
        return self._root if path == "/" else self._root + path

    def read_contents(self) -> None:
        """Read what is new, on every processor: hashing leaves the interpreter's lock free."""
        places = self.unread
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            paths = [self.rows[place][0] for place in places]
            results = pool.map(lambda path: _read(self._root + path), paths, chunksize=64)
            for place, (digest, head, suspect) in zip(places, results, strict=True):
                row = self.rows[place]
                self.rows[place] = (*row[:7], digest, row[8], int(is_code(row[0], head)), row[10])
                if suspect:
                    self.suspects.append(row[0])


def _read(path: str) -> tuple[str, bytes, bool]:
    """Return the SHA-256 of a file's content, its first bytes, and whether it speaks of private keys."""
    made = hashlib.sha256()
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    suspect = False
    try:
        head = data = os.read(descriptor, _CHUNK)
        before = b""
        while data:
            made.update(data)
            joined = before + data  # a sign may lie across the border of two reads
            suspect = suspect or any(sign in joined for sign in _SIGNS)
            before = data[-32:]
            data = os.read(descriptor, _CHUNK) if len(data) == _CHUNK else b""
    finally:
        os.close(descriptor)
    return made.hexdigest(), head[:64], suspect


def look(root: str, path: str) -> Entry:
    """Return what stands at one path of a tree, its content read; package and code are not found out."""
    walk = _Walk(root, {}, {})
    status = os.lstat(root + path)
    if stat.S_ISDIR(status.st_mode):
        return from_row(walk.row(path, "d", status, "", None))
    walk.other(path, status)
    row = walk.rows[0]
    if row[1] == "f":
        row = (*row[:7], _read(root + path)[0], *row[8:])
    return from_row(row)
