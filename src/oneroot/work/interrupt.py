"""Signals that ask us to stop: noticed between steps, never in the middle of one.

SIGINT, SIGTERM and SIGHUP set a flag and raise `Interrupted` in the main thread; work in other
threads looks at the flag before it begins something new.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType

from oneroot.errors import Interrupted

_requested = threading.Event()
_shield = 0
_pending: str | None = None


def install() -> None:
    """Take over the signals; for ``cli/`` to call once at its start. What ``nohup`` ignores stays ignored."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _handle)


def finish() -> None:
    """Nothing is left to be interrupted: a signal that comes now must not change the exit status."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def check() -> None:
    """Raise if we were asked to stop."""
    if _requested.is_set():
        raise _error("a signal")


def requested() -> bool:
    return _requested.is_set()


class Shielded:
    """Let a short, critical stretch of the main thread end before a signal is heard."""

    def __enter__(self) -> None:
        global _shield
        _shield += 1

    def __exit__(self, *exc: object) -> None:
        global _shield, _pending
        _shield -= 1
        if not _shield and _pending and exc[0] is None:
            name, _pending = _pending, None
            raise _error(name)


def _handle(number: int, frame: FrameType | None) -> None:
    global _pending
    again = _requested.is_set()
    _requested.set()
    name = signal.Signals(number).name
    if _shield:
        _pending = name
    elif not again:
        raise _error(name)


def _error(name: str) -> Interrupted:
    return Interrupted(
        f"Interrupted by {name}",
        why="what was begun is finished or undone; the journal knows the rest",
        fix="run the same command again to go on",
    )
