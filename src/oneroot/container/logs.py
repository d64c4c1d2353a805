"""What containers wrote: the console of a command, the journal of units.

The console log is LXC's, bounded, and outlives the container's stop. The journal is asked from the
container's own ``journalctl`` while it runs; once it is stopped only the console is left.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from oneroot.container import attach, spec
from oneroot.container.state import State, read_state
from oneroot.errors import OnerootError
from oneroot.settings import Settings
from oneroot.work import interrupt
from oneroot.work.parallel import Outcome, for_each

_LONGEST_LINE = 16 << 10
_JOURNAL_BYTES = 16 << 20
_JOURNAL_SECONDS = 20.0
_POLL = 0.2


def read(
    settings: Settings, names: Sequence[str], *, lines: int, console: bool = False
) -> list[Outcome[list[str]]]:
    """Return the last lines of each container, not escaped.

    :param console: the console also of containers that run units.
    """
    return for_each(
        names,
        lambda name: _last(settings, name, lines, console=console),
        workers=settings.workers,
        title="logs",
    )


def follow(settings: Settings, names: Sequence[str], *, console: bool = False) -> Iterator[tuple[str, str]]:
    """Yield lines as they are written, until we are asked to stop."""
    readers = [
        _JournalTail(settings, name)
        if _has_journal(settings, name) and not console
        else _ConsoleTail(settings, name)
        for name in names
    ]
    while True:
        interrupt.check()
        found = False
        for reader in readers:
            for line in reader.more():
                found = True
                yield reader.name, line
        if not found:
            time.sleep(_POLL)


def _last(settings: Settings, name: str, lines: int, *, console: bool) -> list[str]:
    if not console and _has_journal(settings, name):
        return _journal(settings, name, "-n", str(lines))
    pieces = [_tail(path, settings.policy.console_log) for path in reversed(_console_files(settings, name))]
    found = b"".join(pieces).decode("utf-8", "backslashreplace").split("\n")
    if found and not found[-1]:
        found.pop()
    return [line.rstrip("\r")[:_LONGEST_LINE] for line in found[-lines:]] if lines else []


def _has_journal(settings: Settings, name: str) -> bool:
    try:
        units = spec.load(settings.paths, name).units
    except (OnerootError, OSError):
        return False
    return bool(units) and read_state(settings, name).state is State.RUNNING


def _journal(settings: Settings, name: str, *words: str) -> list[str]:
    ran = attach.execute(
        settings,
        name,
        ("journalctl", "--no-pager", "--quiet", "-o", "short-iso", *words),
        timeout=_JOURNAL_SECONDS,
        limit=_JOURNAL_BYTES,
    )
    if ran.returncode:
        raise OnerootError(
            f"The journal of {name} cannot be read",
            why=ran.stderr.decode("utf-8", "backslashreplace")[-500:].strip(),
            fix=f"oneroot logs --console {name}",
            container=name,
        )
    return ran.stdout.decode("utf-8", "backslashreplace").splitlines()


def _console_files(settings: Settings, name: str) -> list[Path]:
    """Return the console logs, the newest first: LXC keeps one older part."""
    place = settings.paths.container(name)
    return [place / "console.log", place / "console.log.1"]


def _tail(path: Path, limit: int) -> bytes:
    try:
        with open(path, "rb", opener=_no_follow) as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - limit))
            return file.read(limit)
    except FileNotFoundError:
        return b""


def _no_follow(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


@dataclasses.dataclass
class _ConsoleTail:
    settings: Settings
    name: str
    _inode: int = 0
    _offset: int = -1
    _rest: bytes = b""

    def more(self) -> list[str]:
        """Return the lines written since the last call."""
        try:
            with open(_console_files(self.settings, self.name)[0], "rb", opener=_no_follow) as file:
                status = os.fstat(file.fileno())
                if self._offset < 0:
                    self._offset, self._inode = status.st_size, status.st_ino
                if status.st_ino != self._inode or status.st_size < self._offset:
                    self._offset, self._inode = 0, status.st_ino
                file.seek(self._offset)
                data = file.read(1 << 20)
        except FileNotFoundError:
            self._offset = 0
            return []
        self._offset += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._rest = self._rest[-_LONGEST_LINE:]
        return [line.decode("utf-8", "backslashreplace").rstrip("\r")[:_LONGEST_LINE] for line in lines]


@dataclasses.dataclass
class _JournalTail:
    settings: Settings
    name: str
    _cursor: str = ""

    def more(self) -> list[str]:
        """Return the lines written since the last call; asks again each time, and leaves nothing running."""
        where = ("--after-cursor", self._cursor) if self._cursor else ("-n", "0")
        try:
            lines = _journal(self.settings, self.name, "--show-cursor", *where)
        except OnerootError:
            return []
        if lines and lines[-1].startswith("-- cursor: "):
            self._cursor = lines.pop().removeprefix("-- cursor: ")
        return lines
