"""What another terminal asks of a rollout in progress: a file in RUN, looked for between containers.

In RUN, which is memory, so that asking works while the disk is full; named after the run, so that
a request never reaches a later one.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

from oneroot.rollout.orders import Request
from oneroot.settings import Paths
from oneroot.work import files, locks
from oneroot.work.journal import RunId


def ask(paths: Paths, run: RunId, request: Request) -> None:
    """Ask a running rollout to pause, or to go back."""
    _directory(paths).mkdir(mode=0o700, parents=True, exist_ok=True)
    said = {"person": locks.person(), "since": datetime.now(UTC).isoformat(timespec="seconds")}
    files.write_atomic(_file(paths, run, request), json.dumps(said).encode("ascii"), durable=False)


def asked(paths: Paths, run: RunId) -> Request | None:
    """Return what was asked; going back comes before waiting."""
    for request in (Request.ABORT, Request.PAUSE):
        if _file(paths, run, request).exists():
            return request
    return None


def forget(paths: Paths, run: RunId) -> None:
    """Take the requests for granted, or back."""
    for request in Request:
        _file(paths, run, request).unlink(missing_ok=True)


def _directory(paths: Paths) -> Path:
    return paths.run / "rollout"


def _file(paths: Paths, run: RunId, request: Request) -> Path:
    return _directory(paths) / f"{run}.{request.value}"
