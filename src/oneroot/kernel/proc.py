"""Processes as /proc shows them, read so that no process can make us wait for ever.

Reading ``maps`` and ``cmdline`` takes the target's memory-map lock. Whoever controls a process
can hold that lock (a page fault on a FUSE file that is never answered), so these reads happen in
child processes that are killed when they stand still; what could not be read is *unknown*.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

_READER = Path(__file__).with_name("mapsreader.py")
_SECONDS_TO_DIE = 0.1


@dataclasses.dataclass(frozen=True)
class MappedFile:
    """A file that a process maps with execute permission."""

    inode: int
    path: str
    """As the process's mount namespace names it; without the kernel's " (deleted)"."""
    deleted: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProcessReading:
    """What was seen of a process; *unknown* says why it could not be seen."""

    pid: int
    start_time: int = 0
    command: str = ""
    mapped: tuple[MappedFile, ...] = ()
    root: str = ""
    """Its root directory, as a link of /proc tells it: ``/`` unless it is chrooted."""
    unknown: str = ""


@functools.cache
def boot_id() -> str:
    """Return the id of this boot."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def start_time(pid: int) -> int:
    """Return when a process started, in clock ticks since boot (/proc/PID/stat, field 22).

    :raises ProcessLookupError: there is no such process.
    """
    return int(_stat(pid)[19])


def alive(pid: int, started: int) -> bool:
    """Whether this very process (not a later one with its number) still runs.

    A zombie does not: it has let go of everything, and waits only for a parent to ask for its status.
    """
    try:
        fields = _stat(pid)
    except (ProcessLookupError, ValueError):
        return False
    return int(fields[19]) == started and fields[0] not in (b"Z", b"X")


def _stat(pid: int) -> list[bytes]:
    """Return the fields of /proc/PID/stat from the third on."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            data = file.read()
    except FileNotFoundError as error:
        raise ProcessLookupError(errno.ESRCH, "no such process", str(pid)) from error
    # The second field is the command's name in parentheses, and may contain anything.
    return data[data.rindex(b")") + 2 :].split()


def children(pid: int) -> list[int]:
    """Return the pids of a process's children; empty when it is gone."""
    found: list[int] = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children", encoding="ascii") as file:
                found += map(int, file.read().split())
    except (FileNotFoundError, ProcessLookupError):
        pass
    return found


def pids() -> list[int]:
    """Return the pid of every process."""
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def cgroup(pid: int) -> str:
    """Return /proc/PID/cgroup as it is, a line a hierarchy; empty when the process is gone.

    This file takes no lock of the target's and cannot block.
    """
    try:
        with open(f"/proc/{pid}/cgroup", "rb") as file:
            return os.fsdecode(file.read())
    except (FileNotFoundError, ProcessLookupError):
        return ""


def cgroups(pid: int) -> list[tuple[str, str]]:
    """Return a process's group in each hierarchy, as controllers and path; empty when it is gone."""
    # Not splitlines, nor text mode: the kernel refuses a newline in a group's name and nothing else,
    # so a container could begin a line of its own with a carriage return or form feed.
    fields = (line.split(":", 2) for line in cgroup(pid).split("\n") if line)
    return [(controllers, path) for _, controllers, path in fields]


def namespace(pid: int, kind: str) -> int:
    """Return the number of a process's namespace, the same for all that share it; never blocks.

    :param kind: ``pid``, ``mnt``, ``net``, ``user`` …
    :raises ProcessLookupError: there is no such process, or only its zombie.
    """
    try:
        return os.stat(f"/proc/{pid}/ns/{kind}").st_ino
    except FileNotFoundError as error:
        raise ProcessLookupError(errno.ESRCH, "no such process", str(pid)) from error


def cgroup_processes(directory: Path, *, limit: int = 100_000) -> set[int]:
    """Return the processes of a control group and of all groups below it.

    A container may make groups below its own, as deep and many as it likes.

    :raises OSError: EFBIG beyond *limit* groups or processes, ENAMETOOLONG for a group too deep:
        what cannot be seen must not count as absent. ENOENT if there is no such group.
    """
    found: set[int] = set()
    waiting = [os.fspath(directory)]
    groups = 0
    while waiting:
        place = waiting.pop()
        groups += 1
        try:
            found.update(_members(place))
            with os.scandir(place) as entries:
                waiting += [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
        except FileNotFoundError:
            if groups == 1:
                raise
        if groups + len(waiting) > limit or len(found) > limit:
            raise OSError(errno.EFBIG, f"more than {limit} groups or processes", os.fspath(directory))
    return found


def _members(place: str) -> list[int]:
    for name in ("cgroup.procs", "cgroup.threads"):
        try:
            with open(f"{place}/{name}", "rb") as file:
                return [int(word) for word in file.read().split()]
        except OSError as error:
            # A threaded group (v2) does not tell its processes, only its threads.
            if error.errno not in (errno.EOPNOTSUPP, errno.ENODEV):
                raise
    return []


def read_processes(
    pids: Sequence[int],
    *,
    deadline: float = 2.0,
    total: float = 60.0,
    workers: int = 0,
    owners: Mapping[int, str] | None = None,
) -> list[ProcessReading]:
    """Read the executable mappings of many processes; those that ended meanwhile are left out.

    :param deadline: seconds that one process may take before it is given up as unknown.
    :param total: seconds for all; what is not read by then is unknown.
    :param owners: whose each process is. After one that was given up, the others of its owner are
        read last, so that no container can use up the time of all.
    """
    if not pids:
        return []
    owners = owners or {}
    count = workers or max(1, min(os.cpu_count() or 1, len(pids) // 64 + 1))
    end = time.monotonic() + total
    readings: list[ProcessReading] = []
    suspects: set[str] = set()
    crew = [_Reader(list(pids[place::count]), deadline, owners, suspects) for place in range(count)]
    with selectors.DefaultSelector() as selector:
        try:
            for reader in crew:
                reader.start(selector)
            while any(reader.busy for reader in crew):
                for key, _ in selector.select(timeout=0.05):
                    readings += key.data.receive(selector)
                now = time.monotonic()
                for reader in crew:
                    readings += reader.expire(selector, now, over=now > end)
        finally:
            for reader in crew:
                reader.kill(selector)
    return readings


class _Reader:
    """One child that reads; replaced by another when it stands still."""

    def __init__(
        self, queue: list[int], deadline: float, owners: Mapping[int, str], suspects: set[str]
    ) -> None:
        self._queue = queue
        self._deadline = deadline
        self._owners = owners
        self._suspects = suspects
        self._child: subprocess.Popen[bytes] | None = None
        self._rest = b""
        self._heard = 0.0
        self._sets: dict[int, tuple[MappedFile, ...]] = {}

    @property
    def busy(self) -> bool:
        return self._child is not None

    def start(self, selector: selectors.BaseSelector) -> None:
        if not self._queue:
            return
        # A file, not a pipe: it takes any number of pids at once, and a dead reader breaks nothing.
        with open(os.memfd_create("pids"), "w+b") as order:
            order.write(" ".join(map(str, self._queue)).encode("ascii"))
            order.seek(0)
            self._child = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_READER)],
                stdin=order,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        self._sets = {}
        self._rest = b""
        self._heard = time.monotonic()
        os.set_blocking(self._pipe().fileno(), False)
        selector.register(self._pipe(), selectors.EVENT_READ, self)

    def receive(self, selector: selectors.BaseSelector) -> Iterator[ProcessReading]:
        data = os.read(self._pipe().fileno(), 1 << 20)
        self._heard = time.monotonic()
        if not data:
            self.kill(selector)
            if self._queue:  # it died early: the one it was at is unknown, another goes on
                yield ProcessReading(pid=self._queue.pop(0), unknown="the reader of its maps died")
                self.start(selector)
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            reading = self._parse(line)
            if reading is not None:
                yield reading

    def expire(self, selector: selectors.BaseSelector, now: float, *, over: bool) -> Iterator[ProcessReading]:
        if self._child is None or not (over or now - self._heard > self._deadline):
            return
        self.kill(selector)
        given_up = list(self._queue) if over else self._queue[:1]
        del self._queue[: len(given_up)]
        for pid in given_up:
            yield ProcessReading(pid=pid, unknown="reading its memory map took too long")
        self._suspects.update(self._owners[pid] for pid in given_up if pid in self._owners)
        self._queue.sort(key=lambda pid: self._owners.get(pid) in self._suspects)
        self.start(selector)

    def kill(self, selector: selectors.BaseSelector) -> None:
        if self._child is None:
            return
        child, self._child = self._child, None
        if child.stdout is not None:
            selector.unregister(child.stdout)
            child.stdout.close()
        child.send_signal(signal.SIGKILL)
        # One that hangs in the kernel dies later; waiting for it here would be waiting for its target.
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(_SECONDS_TO_DIE)

    def _pipe(self) -> IO[bytes]:
        assert self._child is not None and self._child.stdout is not None
        return self._child.stdout

    def _parse(self, line: bytes) -> ProcessReading | None:
        fields = json.loads(line)
        if "set" in fields:
            self._sets[fields["set"]] = tuple(MappedFile(*item) for item in fields["files"])
            return None
        self._queue.remove(fields["pid"])
        if fields.get("gone"):
            return None
        return ProcessReading(
            pid=fields["pid"],
            start_time=fields["start"],
            command=fields["command"],
            mapped=self._sets.get(fields["files"], ()),
            root=fields["root"],
            unknown=fields["unknown"],
        )
