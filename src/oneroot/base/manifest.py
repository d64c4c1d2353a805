"""The manifest of a generation: every path of its tree with all that can be said of it.

Written once, with the generation, as one gzipped JSON document; loading it costs some hundredths
of a second for tens of thousands of paths, because entries become objects only when asked for.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from oneroot.errors import CorruptState
from oneroot.work import files

SCHEMA = 1

Row = tuple[Any, ...] | list[Any]
"""path, kind, mode, uid, gid, size, mtime, digest, package, code, attributes: as in `Entry`."""


class Kind(enum.StrEnum):
    """What stands at a path."""

    FILE = "file"
    DIRECTORY = "dir"
    LINK = "link"
    CHARACTER = "char"
    BLOCK = "block"
    FIFO = "fifo"
    SOCKET = "socket"


_LETTERS = {
    Kind.FILE: "f",
    Kind.DIRECTORY: "d",
    Kind.LINK: "l",
    Kind.CHARACTER: "c",
    Kind.BLOCK: "b",
    Kind.FIFO: "p",
    Kind.SOCKET: "s",
}
_KINDS = {letter: kind for kind, letter in _LETTERS.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """One path of a generation."""

    path: str
    """Absolute, as a container sees it. Bytes that are no UTF-8 are surrogate escapes."""
    kind: Kind
    mode: int
    """Permission bits, setuid, setgid and sticky included."""
    uid: int
    gid: int
    size: int
    """Bytes of a regular file, else 0."""
    mtime: int
    """Nanoseconds."""
    digest: str
    """SHA-256 (hex) of a file's content, a link's target as it is, ``MAJOR:MINOR`` of a device."""
    package: str | None
    """The package that owns it; None for directories, which many own, and for generated files."""
    code: bool
    """ELF, script, interpreter module or ``ld.so.cache``: what a process could run."""
    attributes: Mapping[str, str]
    """Extended attributes, values in hex."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Change:
    """A path that differs between a generation and its parent; None: absent there."""

    path: str
    old: Entry | None
    new: Entry | None


class Manifest:
    """The paths of a tree. Paths may be given with or without the leading slash."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows: dict[str, Row] = {row[0]: row for row in rows}

    def get(self, path: str) -> Entry | None:
        """Return what stands at a path in the generation, or None."""
        row = self._rows.get(path if path.startswith("/") else f"/{path}")
        return None if row is None else from_row(row)

    def __contains__(self, path: object) -> bool:
        return isinstance(path, str) and (path if path.startswith("/") else f"/{path}") in self._rows

    def __iter__(self) -> Iterator[Entry]:
        return map(from_row, self._rows.values())

    def __len__(self) -> int:
        return len(self._rows)

    def paths(self) -> Iterator[str]:
        return iter(self._rows)

    def row(self, path: str) -> Row | None:
        """Return the raw row of an absolute path; for bulk work, where objects are too dear."""
        return self._rows.get(path)

    def rows(self) -> Iterator[Row]:
        return iter(self._rows.values())

    def size(self) -> int:
        """Return the bytes of its regular files. Hard links count as often as they have names."""
        return sum(row[5] for row in self._rows.values())

    def digest(self) -> str:
        """Return the SHA-256 of all but the times: equal trees have equal digests."""
        made = hashlib.sha256()
        for path in sorted(self._rows):
            made.update(json.dumps(_compared(self._rows[path]), separators=(",", ":")).encode("ascii"))
        return made.hexdigest()

    def changes_from(self, old: Manifest) -> list[Change]:
        """Return every path that differs from an older manifest, sorted; times do not count."""
        changed = []
        for path in sorted({*self._rows, *old._rows}):
            before, after = old._rows.get(path), self._rows.get(path)
            if before is None or after is None or _compared(before) != _compared(after):
                changed.append(
                    Change(
                        path=path,
                        old=None if before is None else from_row(before),
                        new=None if after is None else from_row(after),
                    )
                )
        return changed

    def save(self, path: Path) -> None:
        """Write it, whole or not at all."""
        _write(path, list(self._rows.values()))


def load(path: Path) -> Manifest:
    """Read a manifest; the last few are kept, since generations never change.

    :raises FileNotFoundError: there is none.
    :raises CorruptState: it is damaged.
    """
    status = path.stat()
    return _cached(path, status.st_ino, status.st_mtime_ns)


@functools.lru_cache(maxsize=8)
def _cached(path: Path, inode: int, mtime: int) -> Manifest:
    try:
        return Manifest(_read(path))
    except (IndexError, KeyError, TypeError) as error:
        raise _damaged(path, error) from error


def save_changes(path: Path, changes: Sequence[Change]) -> None:
    """Write the difference from the parent."""
    _write(
        path,
        [
            [change.path, change.old and to_row(change.old), change.new and to_row(change.new)]
            for change in changes
        ],
    )


def load_changes(path: Path) -> list[Change]:
    """Read what `save_changes` wrote.

    :raises FileNotFoundError: there is none.
    :raises CorruptState: it is damaged.
    """
    try:
        return [
            Change(path=name, old=old and from_row(old), new=new and from_row(new))
            for name, old, new in _read(path)
        ]
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise _damaged(path, error) from error


def from_row(row: Row) -> Entry:
    path, letter, mode, uid, gid, size, mtime, digest, package, code, attributes = row
    return Entry(
        path=path,
        kind=_KINDS[letter],
        mode=mode,
        uid=uid,
        gid=gid,
        size=size,
        mtime=mtime,
        digest=digest,
        package=package,
        code=bool(code),
        attributes=attributes or {},
    )


def to_row(entry: Entry) -> Row:
    return (
        *(entry.path, _LETTERS[entry.kind], entry.mode, entry.uid, entry.gid, entry.size, entry.mtime),
        *(entry.digest, entry.package, int(entry.code), dict(entry.attributes) or None),
    )


def _compared(row: Row) -> list[Any]:
    """What must agree for two entries to be the same: all but the time, package and code flag."""
    return [*row[:6], row[7], row[10] or None]


def _write(path: Path, rows: list[Any]) -> None:
    text = json.dumps({"schema": SCHEMA, "rows": rows}, separators=(",", ":"))
    files.write_atomic(path, gzip.compress(text.encode("ascii"), compresslevel=2, mtime=0), durable=False)


def _read(path: Path) -> list[Any]:
    try:
        plain = json.loads(gzip.decompress(path.read_bytes()))
        rows = plain["rows"]
    except FileNotFoundError:
        raise
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, error) from error
    if plain.get("schema") != SCHEMA or not isinstance(rows, list):
        raise _damaged(path, ValueError(f"schema {plain.get('schema')}"))
    return rows


def _damaged(path: Path, error: Exception) -> CorruptState:
    return CorruptState(
        f"{path} is damaged",
        why=f"{type(error).__name__}: {error}",
        fix="choose another generation with oneroot base use, and let oneroot base upgrade make a new one",
    )
