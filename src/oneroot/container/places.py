"""Where containers lie while they are made, and after they were removed.

Both are beside the containers in the sense of ``rename``: a container appears and disappears in
one step. The store is that place when it shares the LXC path's mount; otherwise it is a hidden
directory in the LXC path, which the ``lxc-*`` programs pass over.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

from oneroot.settings import Paths

_STAMP = "%Y%m%dT%H%M%S.%fZ"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trashed:
    """A removed container that can still be taken back."""

    name: str
    removed: datetime
    path: Path


def stage(paths: Paths) -> Path:
    """Return the directory in which containers are made; it may not exist yet."""
    return _beside(paths, "stage/containers", ".oneroot-stage")


def trash(paths: Paths) -> Path:
    """Return the directory into which containers are removed; it may not exist yet."""
    return _beside(paths, "trash", ".oneroot-trash")


def stages(paths: Paths) -> list[Path]:
    """Return every directory that may hold unfinished containers: settings may have changed."""
    return [paths.store / "stage/containers", paths.lxc / ".oneroot-stage"]


def trashes(paths: Paths) -> list[Path]:
    """Return every directory that may hold removed containers."""
    return [paths.trash, paths.lxc / ".oneroot-trash"]


def doomed(trash_directory: Path) -> Path:
    """Return where what is being deleted for good lies: nothing there is ever taken back."""
    return trash_directory / ".deleted"


def trash_name(directory: Path, name: str) -> str:
    """Return the name that a container removed now gets in the trash.

    It sorts behind what lies there of the same name, also after the clock was set back.
    """
    now = datetime.now(UTC)
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            if entry.name.startswith(f"{name}-"):
                with contextlib.suppress(ValueError):
                    earlier = datetime.strptime(entry.name[len(name) + 1 :], _STAMP).replace(tzinfo=UTC)
                    now = max(now, earlier + timedelta(microseconds=1))
    return f"{name}-{now.strftime(_STAMP)}"


def trashed(paths: Paths) -> list[Trashed]:
    """Return all removed containers that can be taken back, the latest first."""
    found = []
    for directory in trashes(paths):
        for entry in listing(directory):
            name, dash, stamp = entry.name.rpartition("-")
            try:
                removed = datetime.strptime(stamp, _STAMP).replace(tzinfo=UTC)
            except ValueError:
                continue
            if dash:
                found.append(Trashed(name=name, removed=removed, path=entry))
    return sorted(found, key=lambda one: one.removed, reverse=True)


def listing(directory: Path) -> list[Path]:
    """Return what is in a directory, sorted; nothing if it does not exist."""
    try:
        return sorted(directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def make(directory: Path) -> Path:
    """Make one of these directories, root's alone."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return directory


def _beside(paths: Paths, in_store: str, in_lxc: str) -> Path:
    if _mount_id(paths.store) == _mount_id(paths.lxc):
        return paths.store / in_store
    return paths.lxc / in_lxc


def _mount_id(path: Path) -> str:
    """Return what tells whether two paths are on one mount: renames go no further."""
    while not path.exists():
        path = path.parent
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        text = Path(f"/proc/self/fdinfo/{descriptor}").read_text(encoding="ascii")
    finally:
        os.close(descriptor)
    return next(line for line in text.splitlines() if line.startswith("mnt_id:"))
