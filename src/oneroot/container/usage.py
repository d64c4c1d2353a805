"""What containers use, from the cgroup files of either version."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Sequence
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_UNLIMITED = 1 << 60
"""cgroup v1 writes “unlimited” as a number about this large."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Usage:
    """A container's use of the host; None: the host does not count that."""

    name: str
    cpu: float | None
    """Processors' worth of time since the last look; None at the first."""
    memory: int | None
    """Bytes, page cache included."""
    memory_limit: int | None
    processes: int | None


class Sampler:
    """Looks again and again, and tells what was used in between."""

    def __init__(self) -> None:
        self._before: dict[str, tuple[float, float]] = {}

    def read(self, names: Sequence[str]) -> list[Usage]:
        """Return the use of each container that runs."""
        return [usage for name in names if (usage := self._one(name)) is not None]

    def wait(self, seconds: float) -> None:
        """Let time pass between two looks."""
        time.sleep(seconds)

    def _one(self, name: str) -> Usage | None:
        seconds, now = _cpu_seconds(name), time.monotonic()
        processes = _first_number(name, "pids", "pids.current", "pids.current")
        memory = _first_number(name, "memory", "memory.current", "memory.usage_in_bytes")
        if seconds is None and processes is None and memory is None:
            return None
        cpu = None
        if seconds is not None:
            if name in self._before:
                then, spent = self._before[name]
                cpu = max(0.0, (seconds - spent) / max(0.001, now - then))
            self._before[name] = (now, seconds)
        limit = _first_number(name, "memory", "memory.max", "memory.limit_in_bytes")
        return Usage(
            name=name,
            cpu=cpu,
            memory=memory,
            memory_limit=None if limit is None or limit >= _UNLIMITED else limit,
            processes=processes,
        )


def _cpu_seconds(name: str) -> float | None:
    text = _read(_ROOT / f"lxc.payload.{name}" / "cpu.stat")
    for line in text.splitlines():
        if line.startswith("usage_usec "):
            return int(line.split()[1]) / 1e6
    text = _read(_ROOT / "cpuacct" / f"lxc.payload.{name}" / "cpuacct.usage")
    return int(text) / 1e9 if text.strip().isdecimal() else None


def _first_number(name: str, controller: str, unified: str, legacy: str) -> int | None:
    group = f"lxc.payload.{name}"
    for path in (
        _ROOT / group / unified,
        _ROOT / "unified" / group / unified,
        _ROOT / controller / group / legacy,
    ):
        text = _read(path).strip()
        if text.isdecimal():
            return int(text)
    return None


def _read(path: Path) -> str:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return os.read(descriptor, 4096).decode("ascii", "replace")
    except OSError:
        return ""
    finally:
        os.close(descriptor)
