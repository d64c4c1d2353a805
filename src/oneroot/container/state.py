"""What state containers are in, read from leases and /proc without starting any program.

``lxc-ls`` asks every monitor over its socket and takes seconds for a thousand; this takes a
fraction of one, and sees containers that plain ``lxc-start`` started as well.
"""

from __future__ import annotations

import dataclasses
import enum
import os
import time
from collections.abc import Sequence
from pathlib import Path

from oneroot.base import layout
from oneroot.container import lease, spec
from oneroot.container.lease import Lease
from oneroot.container.spec import ContainerSpec
from oneroot.errors import CorruptState
from oneroot.kernel import proc
from oneroot.settings import Paths, Settings

_STARTING_SECONDS = 30
_CGROUPS = tuple(Path("/sys/fs/cgroup") / part for part in ("", "unified", "pids"))
_FREEZERS = {
    "freezer": (Path("/sys/fs/cgroup/freezer"), "freezer.state", "FROZEN"),
    "": (Path("/sys/fs/cgroup"), "cgroup.freeze", "1"),
}
"""By the controller that /proc/PID/cgroup names: where, which file, and what it says when frozen."""


class State(enum.Enum):
    """In LXC's words."""

    STOPPED = "STOPPED"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    STOPPING = "STOPPING"
    FROZEN = "FROZEN"

    @property
    def up(self) -> bool:
        """It has processes."""
        return self in (State.RUNNING, State.FROZEN)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContainerState:
    """A container as it is now."""

    name: str
    state: State
    base: str
    generation: int | None
    """The one that is mounted; None when the container is stopped."""
    current_generation: int | None
    addresses: tuple[str, ...]
    pid: int | None
    """Its init, as the host numbers it."""
    unprivileged: bool
    spec: ContainerSpec | None
    """None: its declaration is damaged, and *damage* says how."""
    lease: Lease | None
    """Held while it runs. When it is stopped: left behind by one that ended by itself."""
    damage: str = ""

    @property
    def outdated(self) -> bool:
        return self.generation is not None and self.generation != self.current_generation

    @property
    def ended_by_itself(self) -> bool:
        """It was started, nobody asked oneroot to stop it, and it does not run."""
        return self.state is State.STOPPED and self.lease is not None


def read_states(settings: Settings, names: Sequence[str]) -> list[ContainerState]:
    """Return the state of each container, in the order of *names*."""
    reader = _Reader(settings)
    return [reader.read(name) for name in names]


def read_state(settings: Settings, name: str) -> ContainerState:
    """Return one container's state."""
    return _Reader(settings).read(name)


class _Reader:
    """Reads what is common to many containers once."""

    def __init__(self, settings: Settings) -> None:
        self._paths = settings.paths
        self._current: dict[str, int | None] = {}
        self._namespace = _identity("/proc/self/ns/pid")
        self._cgroups = next((place for place in _CGROUPS if (place / "cgroup.procs").exists()), None)

    def read(self, name: str) -> ContainerState:
        found, damage = _declaration(self._paths, name)
        held = lease.read(self._paths, name)
        state, pid = self._state(name, held)
        base = found.base if found else (held.base if held else "")
        if base not in self._current:
            self._current[base] = layout.current_number(self._paths, base)
        return ContainerState(
            name=name,
            state=state,
            base=base,
            generation=held.generation if held and held.held and state is not State.STOPPED else None,
            current_generation=self._current[base],
            addresses=found.addresses if found else (),
            pid=pid,
            unprivileged=found.unprivileged if found else False,
            spec=found,
            lease=held,
            damage=damage,
        )

    def _state(self, name: str, held: Lease | None) -> tuple[State, int | None]:
        monitor = held.monitor if held is not None and held.held else self._unleased_monitor(name)
        if monitor is None:
            return State.STOPPED, None
        children = proc.children(monitor)
        if not children:
            return (State.STARTING if self._young(name) else State.STOPPING), None
        init = children[0]
        namespace, program = _identity(f"/proc/{init}/ns/pid"), _identity(f"/proc/{init}/exe")
        if program is None:  # a zombie, or gone by now
            return State.STOPPING, None
        # The start hook of a reboot, or an init that has not become the container's program yet. Files
        # are compared, not names: what is inside chooses its own name.
        if namespace == self._namespace or program == _identity(f"/proc/{monitor}/exe"):
            return State.STARTING, None
        return (State.FROZEN if _frozen(init) else State.RUNNING), init

    def _unleased_monitor(self, name: str) -> int | None:
        """Return the monitor of a container that runs although its lease is gone: somebody emptied RUN.

        It is found by its cgroup, which only root can make.
        """
        if self._cgroups is None:
            return None
        try:
            pid = int((self._cgroups / f"lxc.monitor.{name}" / "cgroup.procs").read_bytes().split()[0])
            title = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0 ")
        except (OSError, ValueError, IndexError):
            return None
        # A container of the same name in another LXC path has this cgroup's name too.
        return (
            pid if title == b"[lxc monitor] %s %s" % (os.fsencode(self._paths.lxc), name.encode()) else None
        )

    def _young(self, name: str) -> bool:
        try:
            return abs(time.time() - (self._paths.leases / name).stat().st_mtime) < _STARTING_SECONDS
        except OSError:
            return False


def _declaration(paths: Paths, name: str) -> tuple[ContainerSpec | None, str]:
    try:
        return spec.load(paths, name), ""
    except CorruptState as error:
        return None, str(error)
    except OSError as error:
        return None, f"its declaration cannot be read: {error}"


def _identity(path: str) -> tuple[int, int] | None:
    """Return device and inode of what a link of /proc leads to; None if it leads nowhere."""
    try:
        status = os.stat(path)  # noqa: PTH116  a Path costs as much again
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _frozen(init: int) -> bool:
    for controllers, path in proc.cgroups(init):
        if controllers not in _FREEZERS:
            continue
        place, file, frozen = _FREEZERS[controllers]
        payload = next((part for part in path.split("/") if part.startswith("lxc.payload.")), None)
        try:
            if payload and (place / payload / file).read_text(encoding="ascii").strip() == frozen:
                return True
        except OSError:
            pass  # not the hierarchy that can freeze
    return False
