"""Starting and stopping containers, many at once.

Each container is changed under its own lock. Starting one that runs and stopping one that does not
are done already, not errors; so every verb can be said again after whatever interrupted it.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Collection, Sequence

from oneroot.base import layout
from oneroot.container import announce, lease, lxc, network, spec
from oneroot.container.lease import Lease
from oneroot.container.state import ContainerState, State, read_state, read_states
from oneroot.errors import CorruptState, OnerootError
from oneroot.host import doctor
from oneroot.settings import Settings
from oneroot.work import killpoint, locks, rundir
from oneroot.work.parallel import Outcome, for_each
from oneroot.work.progress import SILENT, Progress

_LOCK_PATIENCE = 10.0
_MONITOR_PATIENCE = 10.0
_POLL = 0.001


class Change(enum.Enum):
    """What a verb did to a container."""

    STARTED = "started"
    STOPPED = "stopped"
    RESTARTED = "restarted"
    NOTHING = "nothing to do"


def start(settings: Settings, names: Sequence[str], *, progress: Progress = SILENT) -> list[Outcome[Change]]:
    """Start containers, each on the current generation of its base."""
    prepare(settings)
    return for_each(
        names,
        lambda name: start_one(settings, name, verb="start"),
        workers=settings.workers,
        title="start",
        progress=progress,
    )


def stop(
    settings: Settings, names: Sequence[str], *, timeout: float | None = None, progress: Progress = SILENT
) -> list[Outcome[Change]]:
    """Stop containers: the signal that their init understands, then SIGKILL after *timeout* seconds."""
    return for_each(
        names,
        lambda name: stop_one(settings, name, verb="stop", timeout=timeout),
        # Most of a stop is waiting for the container's own processes.
        workers=4 * settings.workers,
        title="stop",
        progress=progress,
    )


def restart(
    settings: Settings, names: Sequence[str], *, timeout: float | None = None, progress: Progress = SILENT
) -> list[Outcome[Change]]:
    """Stop and start containers; one that is stopped is started."""
    prepare(settings)

    def both(name: str) -> Change:
        with locks.container(settings.paths, name, verb="restart", wait=_LOCK_PATIENCE):
            _require_startable(settings, name)  # what could not start again had better run on
            was = stop_locked(settings, name, timeout=timeout)
            start_locked(settings, name)
        return Change.RESTARTED if was is Change.STOPPED else Change.STARTED

    return for_each(names, both, workers=settings.workers, title="restart", progress=progress)


def require(settings: Settings, names: Collection[str]) -> None:
    """Refuse before anything breaks half-way: this host must hold these beside those that run.

    :raises HostError: it cannot; says what it lacks.
    """
    there = {*names, *lease.read_all(settings.paths)}
    units = sum(bool(one.units) for one in announce.declared(settings) if one.name in there)
    doctor.require(settings, len(there), units=units)


def prepare(settings: Settings) -> dict[str, OnerootError]:
    """Make ready what every start needs, once for many: directories, network, names and ports.

    :returns: the containers whose published ports are not theirs to have, and why; told once in a boot.
    """
    rundir.make(rundir.wanted(settings.paths))
    network.ensure(settings)
    return announce.ensure(settings)


def start_one(settings: Settings, name: str, *, verb: str) -> Change:
    """Start one container under its lock. `prepare` was called before."""
    with locks.container(settings.paths, name, verb=verb, wait=_LOCK_PATIENCE):
        return start_locked(settings, name)


def stop_one(settings: Settings, name: str, *, verb: str, timeout: float | None = None) -> Change:
    """Stop one container under its lock."""
    with locks.container(settings.paths, name, verb=verb, wait=_LOCK_PATIENCE):
        return stop_locked(settings, name, timeout=timeout)


def start_locked(settings: Settings, name: str) -> Change:
    """Start a container whose lock the caller holds."""
    if not _declared(settings, name):
        raise OnerootError(f"There is no container {name}", fix="oneroot ls", container=name)
    found = read_state(settings, name)
    _require_whole(settings, found)
    if found.state is State.STARTING:
        found = _wait_for_start(settings, name)
    if found.state.up:
        return Change.NOTHING
    if found.lease is not None and found.lease.held:
        _wait_for_end(found.lease)
    killpoint.reach(f"before: start {name}")
    lxc.start(settings.paths, name, timeout=settings.timeouts.start)
    killpoint.reach(f"after: start {name}")
    return Change.STARTED


def stop_locked(settings: Settings, name: str, *, timeout: float | None = None) -> Change:
    """Stop a container whose lock the caller holds, and forget its lease."""
    found = read_state(settings, name)
    held = found.lease if found.lease is not None and found.lease.held else None
    if held is None and found.state is State.STOPPED:
        lease.drop(settings.paths, name)
        return Change.NOTHING
    killpoint.reach(f"before: stop {name}")
    patience = settings.timeouts.stop if timeout is None else timeout
    if found.state is State.FROZEN:
        lxc.unfreeze(settings.paths, name)  # what is frozen hears no signal
    if patience > 0:
        lxc.stop(settings.paths, name, timeout=patience)
    else:
        lxc.kill(settings.paths, name)
    if held is not None:
        # LXC answers before its monitor has taken the network down, whose name the next start needs.
        _wait_for_end(held)
    lease.drop(settings.paths, name)
    killpoint.reach(f"after: stop {name}")
    return Change.STOPPED


def wait(
    settings: Settings, names: Sequence[str], states: Collection[State], *, timeout: float
) -> list[Outcome[State]]:
    """Wait until each container is in one of the states, or the time is over."""
    end = time.monotonic() + timeout
    reached: dict[str, State] = {}
    while True:
        missing = [name for name in names if name not in reached]
        found = {state.name: state.state for state in read_states(settings, missing)}
        reached |= {name: state for name, state in found.items() if state in states}
        if len(reached) == len(names) or time.monotonic() >= end:
            break
        time.sleep(0.05)
    wanted = " or ".join(sorted(state.value for state in states))
    return [
        Outcome(name=name, value=reached[name])
        if name in reached
        else Outcome(
            name=name,
            error=OnerootError(
                f"{name} did not become {wanted} within {timeout:g} s",
                why=f"it is {found[name].value}",
                fix=f"oneroot info {name}",
                container=name,
            ),
        )
        for name in names
    ]


def _declared(settings: Settings, name: str) -> bool:
    return spec.spec_file(settings.paths, name).exists()


def _require_whole(settings: Settings, found: ContainerState) -> None:
    if found.damage:
        raise CorruptState(
            f"The container {found.name} is damaged",
            why=found.damage,
            fix=f"restore {spec.spec_file(settings.paths, found.name)} from a backup,"
            f" or oneroot rm {found.name}",
            container=found.name,
        )


def _require_startable(settings: Settings, name: str) -> None:
    found = read_state(settings, name)
    _require_whole(settings, found)
    number = found.current_generation
    if number is None or not layout.root(settings.paths, found.base, number).is_dir():
        raise CorruptState(
            f"The container {name} could not be started again, so it was not stopped",
            why=f"the current generation of its base {found.base} is gone",
            fix=f"oneroot base fsck {found.base}, then oneroot base use {found.base} N",
            container=name,
        )


def _wait_for_start(settings: Settings, name: str) -> ContainerState:
    """Let a start that is under way, by plain lxc-start or a reboot from inside, come to its end."""
    end = time.monotonic() + settings.timeouts.start
    while (found := read_state(settings, name)).state is State.STARTING and time.monotonic() < end:
        time.sleep(10 * _POLL)
    return found


def _wait_for_end(held: Lease) -> None:
    end = time.monotonic() + _MONITOR_PATIENCE
    while held.held:
        if time.monotonic() > end:
            raise OnerootError(
                f"The LXC monitor of {held.container} does not end",
                why=f"process {held.monitor} lives on {_MONITOR_PATIENCE:g} s after the container stopped",
                fix=f"look at process {held.monitor}; kill it if it hangs",
                container=held.container,
            )
        time.sleep(_POLL)
