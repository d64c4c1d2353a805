"""How domain code tells of its progress without knowing who listens.

The terminal's form lives in ``cli/``; here are the interface, the silent form and the form that
writes one JSON object a line.
"""

from __future__ import annotations

import json
import threading
import time
from typing import IO, Protocol


class Task(Protocol):
    """Work on many containers (or packages, files) whose number is known."""

    def done(self, name: str, *, failed: bool = False, message: str = "") -> None:
        """One of them is finished."""


class Progress(Protocol):
    """Where progress goes. All methods may be called from any thread."""

    def note(self, message: str) -> None:
        """Say what is being done now."""

    def begin(self, title: str, total: int) -> Task:
        """Begin work on *total* things."""


class _SilentTask:
    def done(self, name: str, *, failed: bool = False, message: str = "") -> None:
        pass


class Silent:
    def note(self, message: str) -> None:
        pass

    def begin(self, title: str, total: int) -> Task:
        return _SilentTask()


SILENT: Progress = Silent()


class JsonEvents:
    """One JSON object a line: ``{"time", "event": "note" | "begin" | "done", …}``, ASCII only."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def note(self, message: str) -> None:
        self.emit(event="note", message=message)

    def begin(self, title: str, total: int) -> Task:
        self.emit(event="begin", title=title, total=total)
        return _JsonTask(self, title)

    def emit(self, **fields: object) -> None:
        with self._lock:
            self._stream.write(json.dumps({"time": round(time.time(), 3), **fields}) + "\n")
            self._stream.flush()


class _JsonTask:
    def __init__(self, events: JsonEvents, title: str) -> None:
        self._events = events
        self._title = title

    def done(self, name: str, *, failed: bool = False, message: str = "") -> None:
        self._events.emit(event="done", title=self._title, name=name, failed=failed, message=message)
