"""What state containers are in, read from leases and /proc without starting any program.

``lxc-ls`` asks every monitor over its socket and takes seconds for a thousand; this takes a
fraction of one, and sees containers that plain ``lxc-start`` started as well.
"""

from __future__ import annotations

import dataclasses
import enum
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
_FREEZER_FILES = (
    ("/sys/fs/cgroup/lxc.payload.{}/cgroup.freeze", "1"),
    ("/sys/fs/cgroup/freezer/lxc.payload.{}/freezer.state", "FROZEN"),
)


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
        self._freezer = _freezer()

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
            generation=held.generation if held and state is not State.STOPPED else None,
            current_generation=self._current[base],
            addresses=found.addresses if found else (),
            pid=pid,
            unprivileged=found.unprivileged if found else False,
            spec=found,
            lease=held,
            damage=damage,
        )

    def _state(self, name: str, held: Lease | None) -> tuple[State, int | None]:
        if held is None or not held.held:
            return State.STOPPED, None
        children = proc.children(held.monitor)
        if not children:
            return (State.STARTING if self._young(name) else State.STOPPING), None
        if self._freezer:
            template, frozen = self._freezer
            try:
                if Path(template.format(name)).read_text(encoding="ascii").strip() == frozen:
                    return State.FROZEN, children[0]
            except OSError:
                pass  # its cgroup has another name: LXC adds a number when an old one was left
        return State.RUNNING, children[0]

    def _young(self, name: str) -> bool:
        try:
            return time.time() - (self._paths.leases / name).stat().st_mtime < _STARTING_SECONDS
        except OSError:
            return False


def _declaration(paths: Paths, name: str) -> tuple[ContainerSpec | None, str]:
    try:
        return spec.load(paths, name), ""
    except CorruptState as error:
        return None, str(error)
    except OSError as error:
        return None, f"its declaration cannot be read: {error}"


def _freezer() -> tuple[str, str] | None:
    for template, frozen in _FREEZER_FILES:
        directory = Path(template).parent.parent
        if directory.is_dir() and (directory / "cgroup.procs").exists():
            return template, frozen
    return None
