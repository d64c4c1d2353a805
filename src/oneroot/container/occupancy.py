"""Which host ids are somebody's already, whatever our ledger says."""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Iterable, Iterator
from pathlib import Path

from oneroot.host import idpool
from oneroot.kernel import proc

_NSPAWN = Path("/usr/bin/systemd-nspawn")


def reserved() -> Iterator[tuple[str, range]]:
    """Yield the ranges that belong to somebody by convention."""
    yield from idpool.RESERVED
    if _NSPAWN.exists():
        yield "systemd-nspawn", idpool.NSPAWN


def delegated(files: Iterable[Path] = idpool.FILES) -> Iterator[tuple[str, range]]:
    """Yield the ranges that ``/etc/subuid`` and ``/etc/subgid`` give to others than root."""
    for file in files:
        for entry in idpool.read(file):
            if not idpool.is_roots(entry.owner):
                yield f"{entry.owner} in {file}", range(entry.first, entry.first + entry.count)


def accounts() -> Iterator[tuple[str, int]]:
    """Yield the ids of all users and groups that the host's name services list."""
    for user in pwd.getpwall():
        yield f"the user {user.pw_name}", user.pw_uid
    for group in grp.getgrall():
        yield f"the group {group.gr_name}", group.gr_gid


def in_use() -> set[int]:
    """Return every id that a process, an IPC object or a file in shared memory has now."""
    found: set[int] = set()
    for pid in proc.pids():
        found.update(_ids_of(pid))
    for kind in ("msg", "sem", "shm"):
        found.update(_sysv(Path("/proc/sysvipc") / kind))
    for directory in ("/dev/shm", "/dev/mqueue"):
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    status = entry.stat(follow_symlinks=False)
                    found.update((status.st_uid, status.st_gid))
        except OSError:
            continue
    return found


def _ids_of(pid: int) -> Iterator[int]:
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            lines = file.read().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return
    for line in lines:
        if line.startswith((b"Uid:", b"Gid:", b"Groups:")):
            yield from map(int, line.split()[1:])


def _sysv(table: Path) -> Iterator[int]:
    try:
        header, *rows = table.read_text(encoding="ascii").splitlines()
    except (FileNotFoundError, ValueError):
        return
    columns = header.split()
    wanted = [place for place, name in enumerate(columns) if name in ("uid", "gid", "cuid", "cgid")]
    for row in rows:
        values = row.split()
        yield from (int(values[place]) for place in wanted)
