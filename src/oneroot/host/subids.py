"""The door to /etc/subuid and /etc/subgid: ranges of ids given to root, or taken back.

``usermod`` would do for giving, but refuses to take from a user who is logged in or has
processes, which root always has. So the files are written here, whole or not at all, under the
lock that every writer of the shadow suite takes first (lckpwdf(3)).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from oneroot.errors import Busy
from oneroot.host import idpool
from oneroot.host.idpool import Entry
from oneroot.work import files

LOCK = Path("/etc/.pwd.lock")
PATIENCE = 15.0
"""Seconds, as lckpwdf waits."""


def give(file: Path, first: int, count: int) -> bool:
    """Give root a range, unless it has exactly that one.

    :returns: whether the file was changed.
    :raises Busy: somebody else holds the lock of the user databases.
    """
    with _locked():
        if _holds(file, first, count):
            return False
        text = file.read_text(encoding="utf-8", errors="surrogateescape") if file.exists() else ""
        if text and not text.endswith("\n"):
            text += "\n"
        _write(file, f"{text}root:{first}:{count}\n")
        return True


def take(file: Path, first: int, count: int) -> bool:
    """Take exactly this range from root, if it has it.

    :returns: whether the file was changed.
    :raises Busy: somebody else holds the lock of the user databases.
    """
    with _locked():
        if not _holds(file, first, count):
            return False
        lines = file.read_text(encoding="utf-8", errors="surrogateescape").splitlines(keepends=True)
        _write(file, "".join(line for line in lines if not _has(idpool.parse(line), first, count)))
        return True


def _holds(file: Path, first: int, count: int) -> bool:
    return _has(idpool.read(file), first, count)


def _has(entries: Iterable[Entry], first: int, count: int) -> bool:
    return any(
        (entry.first, entry.count) == (first, count) and idpool.is_roots(entry.owner) for entry in entries
    )


def _write(file: Path, text: str) -> None:
    mode = file.stat().st_mode & 0o777 if file.exists() else 0o644
    files.write_atomic(file, text.encode("utf-8", "surrogateescape"), mode=mode)


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    descriptor = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    raise Busy(
                        "The user databases are busy",
                        why=f"another program holds {LOCK}",
                        fix="wait until that has ended, then try again",
                    ) from error
                time.sleep(0.05)
        yield
    finally:
        os.close(descriptor)
