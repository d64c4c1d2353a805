"""Stale processes: those that run code which the current generation, or the container, replaced.

One pass over /proc for all containers. A container's processes are those below its payload cgroup;
what they map with execute permission is read in killable children (`kernel.proc`) and judged by
`mapping`. What interpreters run is not mapped: for it, the generation that is mounted speaks.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from oneroot.audit.basecode import BaseCode
from oneroot.audit.mapping import BaseJudge, ContainerJudge, Replaced, Unplaced
from oneroot.container.lease import Lease
from oneroot.container.state import ContainerState
from oneroot.errors import CorruptState
from oneroot.kernel import proc
from oneroot.kernel.proc import ProcessReading
from oneroot.kernel.tree import Tree
from oneroot.settings import Settings

_PAYLOAD = re.compile(rb"/lxc\.payload\.([^/\n]+)")
_LOOKS = 3
_BETWEEN_LOOKS = 0.15
_ALL_SECONDS = 10.0
_RETRY_SECONDS = 2.0
_RETRIES_SECONDS = 30.0
_COMMAND_SHOWN = 200
_FEW_MONITORS = 20
_CLOCK_SLACK = 60.0
"""Seconds by which the clock may have been set since the files of the host were changed."""
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StaleProcess:
    """A process and one file of replaced code that it runs."""

    pid: int
    command: str
    path: str
    package: str | None = None
    why: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """What a container's processes run."""

    stale: tuple[StaleProcess, ...] = ()
    unknown: tuple[str, ...] = ()
    """What could not be read, or not be placed."""
    processes: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Findings:
    """What one pass over all processes showed."""

    containers: Mapping[str, Finding]
    """Of the containers that are up."""
    host: Mapping[int, tuple[StaleProcess, ...]]
    """Processes of the host that serve containers and run code that the host replaced, by pid."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Observed:
    """What /proc showed of all containers that are up, before it is judged."""

    up: Mapping[str, ContainerState]
    pids: Mapping[str, Sequence[int]]
    """Of each container's processes."""
    readings: Mapping[int, ProcessReading]
    servants: tuple[int, ...]
    """The host's processes that serve containers and may run replaced code."""


def observe(states: Sequence[ContainerState], *, servants: Sequence[int] = ()) -> Observed:
    """Read every process of the containers that are up; other processes do most of the work.

    :param servants: pids of the host to look at, besides the containers' LXC monitors.
    """
    up = {state.name: state for state in states if state.pid is not None}
    hosts_own = (*_doubtful_monitors([state.lease for state in up.values() if state.lease]), *servants)
    pids = _pids_by_container(up)
    wanted = [*hosts_own, *(pid for listed in pids.values() for pid in listed)]
    readings = {one.pid: one for one in proc.read_processes(wanted, total=_ALL_SECONDS)}
    return Observed(up=up, pids=pids, readings=readings, servants=hosts_own)


def _doubtful_monitors(held: Sequence[Lease]) -> list[int]:
    """Return the LXC monitors that may run replaced code: all but those that are younger than it.

    All run one program. A monitor that began after the last change of every file that the youngest
    maps has mapped those very files, and need not be read: a quarter of the work with many containers.
    """
    if len(held) < _FEW_MONITORS:
        return [lease.monitor for lease in held]
    youngest = max(held, key=lambda lease: lease.monitor_start)
    changed = 0.0
    for reading in proc.read_processes([youngest.monitor]):
        for file in reading.mapped:
            try:
                status = Path(file.path).stat()
            except OSError:
                changed = math.inf
            else:
                changed = max(changed, status.st_ctime if status.st_ino == file.inode else math.inf)
        changed = changed if reading.mapped else math.inf
    ticks = (changed - time.time() + time.clock_gettime(time.CLOCK_BOOTTIME) + _CLOCK_SLACK) * _TICKS
    return [lease.monitor for lease in held if lease.monitor_start < ticks]


def judge(settings: Settings, observed: Observed, bases: Mapping[str, BaseCode]) -> Findings:
    """Judge what was observed; looks again where it was odd.

    :param bases: by name; a container whose base is not among them is unknown.
    """
    judges: dict[tuple[str, int], BaseJudge] = {}
    looks = {
        name: _Look(settings, state, bases.get(state.base), judges) for name, state in observed.up.items()
    }
    found = {name: look.finding(observed.pids[name], observed.readings) for name, look in looks.items()}
    _look_again(observed.up, looks, found)
    readings = (observed.readings.get(pid) for pid in observed.servants)
    host = {one.pid: _deleted(one) for one in readings if one is not None}
    return Findings(containers=found, host={pid: stale for pid, stale in host.items() if stale})


def _look_again(
    up: Mapping[str, ContainerState], looks: Mapping[str, _Look], found: dict[str, Finding]
) -> None:
    """Look once more where it was odd: what is starting, attaching or ending looks odd in passing.

    One by one, so that a container that makes us wait does not cost another its proof.
    """
    end = time.monotonic() + _RETRIES_SECONDS
    for _ in range(_LOOKS - 1):
        odd = {name: up[name] for name, one in found.items() if one.unknown and not looks[name].problem}
        if not odd:
            return
        time.sleep(_BETWEEN_LOOKS)
        pids = _pids_by_container(odd)
        for name in odd:
            left = min(_RETRY_SECONDS, end - time.monotonic())
            if left > 0:
                readings = {one.pid: one for one in proc.read_processes(pids[name], total=left)}
                found[name] = looks[name].finding(pids[name], readings)


class _Look:
    """A look at one container's processes."""

    def __init__(
        self,
        settings: Settings,
        state: ContainerState,
        code: BaseCode | None,
        judges: dict[tuple[str, int], BaseJudge],
    ) -> None:
        self._upper = settings.paths.container(state.name) / "overlay" / "upper"
        self._init = state.pid or 0
        self._base: BaseJudge | None = None
        self.problem = ""
        """Why nothing of it can be judged."""
        try:
            self._base = _base_judge(state, code, judges)
            if self._base is None:
                self.problem = "it is not known which generation it runs"
            elif self._upper.lstat().st_dev != self._base.mounted.device:
                self.problem = (
                    "what it runs cannot be told: the store and the LXC path lie on two filesystems"
                    " (oneroot doctor)"
                )
        except (OSError, CorruptState) as error:
            self.problem = f"what it runs cannot be compared: {error}"

    def finding(self, pids: Sequence[int], readings: Mapping[int, ProcessReading]) -> Finding:
        """Judge all processes of the container."""
        if self.problem or self._base is None:
            return Finding(unknown=(self.problem,), processes=len(pids))
        if not pids:
            return Finding(unknown=("none of its processes was found",))
        try:
            return self._finding(self._base, pids, readings)
        except (OSError, CorruptState) as error:  # of the store: a generation is gone, or damaged
            return Finding(unknown=(f"what it runs cannot be compared: {error}",), processes=len(pids))

    def _finding(
        self, base: BaseJudge, pids: Sequence[int], readings: Mapping[int, ProcessReading]
    ) -> Finding:
        stale: list[StaleProcess] = []
        unknown: list[str] = []
        with contextlib.ExitStack() as stack:
            judge: ContainerJudge | None = None
            for reading in (readings[pid] for pid in pids if pid in readings):  # others have ended
                if reading.unknown:
                    unknown.append(f"process {reading.pid}: {reading.unknown}")
                elif not base.all_fine(reading.mapped):
                    if judge is None:
                        upper = stack.enter_context(Tree(self._upper))
                        judge = ContainerJudge(upper, base, self._init)
                    _judge_process(judge, reading, stale, unknown)
        return Finding(stale=tuple(stale), unknown=tuple(unknown), processes=len(pids))


def _base_judge(
    state: ContainerState, code: BaseCode | None, judges: dict[tuple[str, int], BaseJudge]
) -> BaseJudge | None:
    if code is None or state.generation is None:
        return None
    key = (state.base, state.generation)
    if key not in judges:
        judges[key] = BaseJudge(code, state.generation)
    return judges[key]


def _judge_process(
    judge: ContainerJudge, reading: ProcessReading, stale: list[StaleProcess], unknown: list[str]
) -> None:
    for file in reading.mapped:
        if judge.exhausted:
            unknown.append("its processes map too many different files")
            return
        verdict = judge.verdict(file)
        if isinstance(verdict, Unplaced):
            if judge.is_nested(reading.pid):
                unknown.append(f"process {reading.pid} has a root filesystem of its own")
                return
            verdict = verdict.replaced
        if isinstance(verdict, Replaced) and (verdict.certain or judge.is_on_root(reading.pid, file.path)):
            stale.append(_stale(reading, file.path, verdict.package, verdict.why))


def _deleted(reading: ProcessReading) -> tuple[StaleProcess, ...]:
    return tuple(
        _stale(reading, file.path, None, "the host replaced this file")
        for file in reading.mapped
        if file.deleted and not file.path.startswith(("/memfd:", "/dev/", "/SYSV"))
    )


def _stale(reading: ProcessReading, path: str, package: str | None, why: str) -> StaleProcess:
    command = reading.command[:_COMMAND_SHOWN]
    return StaleProcess(pid=reading.pid, command=command, path=path, package=package, why=why)


def _pids_by_container(up: Mapping[str, ContainerState]) -> dict[str, list[int]]:
    """Group the host's processes by container, by the payload cgroup in which its init is.

    The init tells which that is: LXC adds a number to its name when an old cgroup was left.
    """
    payloads = {pid: _payloads(_cgroup(pid)) for pid in proc.pids()}
    owners: dict[bytes, str] = {}
    for name, state in up.items():
        of_init = payloads.get(state.pid or 0, ())
        plain = name.encode("ascii")
        likely = [one for one in of_init if one == plain or one.startswith(plain + b"-")]
        for payload in (likely or of_init)[:1]:
            owners[payload] = name
    found: dict[str, list[int]] = {name: [] for name in up}
    for pid, nested in payloads.items():
        for payload in nested:  # the outermost counts: inside, a container may make what it likes
            if payload in owners:
                found[owners[payload]].append(pid)
                break
    return found


def _cgroup(pid: int) -> bytes:
    """Return /proc/PID/cgroup, which takes no lock of the process's; empty when it is gone."""
    try:
        descriptor = os.open(f"/proc/{pid}/cgroup", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return b""
    try:
        return os.read(descriptor, 1 << 16)
    except ProcessLookupError:
        return b""
    finally:
        os.close(descriptor)


@functools.lru_cache(maxsize=1 << 14)
def _payloads(cgroups: bytes) -> tuple[bytes, ...]:
    return tuple(dict.fromkeys(_PAYLOAD.findall(cgroups)))
