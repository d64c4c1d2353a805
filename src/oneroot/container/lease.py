"""Leases: which generation each container really mounted, written by the start hook.

A lease lies in ``RUN/lease/NAME`` as JSON and is true as long as the monitor that it names is
alive in this boot; a monitor that is gone has stopped its container and unmounted everything.
``oneroot stop`` removes the lease; one that is left beside a dead monitor tells that the
container ended by itself, or by a hand that is not ours.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from oneroot.kernel import proc
from oneroot.settings import Paths

SCHEMA = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lease:
    """What the start hook of src/hook/start-hook.c wrote; see there for each field."""

    schema: int
    container: str
    base: str
    generation: int
    boot_id: str
    monitor: int
    """Pid of the LXC monitor, in the host's pid namespace."""
    monitor_start: int
    """Its start time, /proc/PID/stat field 22."""
    taken: str
    """UTC, RFC 3339, seconds."""

    @property
    def held(self) -> bool:
        """The monitor that took it still lives."""
        return self.boot_id == proc.boot_id() and proc.alive(self.monitor, self.monitor_start)


def read(paths: Paths, container: str) -> Lease | None:
    """Return a container's lease, held or left behind; None if there is none or it is damaged."""
    return _parse(paths.leases / container)


def read_all(paths: Paths) -> dict[str, Lease]:
    """Return every lease by container."""
    try:
        entries = list(paths.leases.iterdir())
    except FileNotFoundError:
        return {}
    parsed = ((entry.name, _parse(entry)) for entry in entries if not entry.name.startswith("."))
    return {name: lease for name, lease in parsed if lease is not None}


def drop(paths: Paths, container: str) -> None:
    """Forget a lease, after a stop that was asked for."""
    (paths.leases / container).unlink(missing_ok=True)


def _parse(path: Path) -> Lease | None:
    try:
        lease = Lease(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
    return lease if lease.schema == SCHEMA else None
