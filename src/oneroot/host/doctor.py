"""Looks at this host and says what it lacks for a number of containers.

`examine` looks at everything and takes its time; `require` is the part that create and start
ask before they touch anything, and takes a few milliseconds.
"""

from __future__ import annotations

import os

from oneroot.errors import HostError
from oneroot.host import idpool, kernelinfo, limits, programs, storage, surroundings
from oneroot.host.check import Check, Status
from oneroot.host.limits import Load
from oneroot.settings import Settings

__all__ = ["Check", "Status", "examine", "require"]

DEFAULT_CONTAINERS = 1000
_OPEN_FILES = 65_536


def examine(settings: Settings, *, containers: int = DEFAULT_CONTAINERS) -> list[Check]:
    """Return all checks, for this many containers in unit mode; in a fixed order."""
    load = Load(containers=containers, units=containers)
    return [
        _root(),
        *kernelinfo.check_all(storage.existing(settings.paths.store), settings.ids),
        *programs.check_all(settings.paths),
        *idpool.check_all(settings.ids, containers),
        *storage.check_all(settings, load),
        *_open_files(),
        *limits.check_all(load),
        *surroundings.check_all(settings),
    ]


def require(settings: Settings, containers: int, *, units: int = 0) -> None:
    """Refuse before anything breaks half-way: root, hook, ids, addresses and the kernel's walls.

    No process is run and nothing is tried.

    :param containers: how many there will be, those of now included.
    :param units: how many of them run a systemd of their own.
    :raises HostError: this host cannot; says all that it lacks, and what mends it.
    """
    if os.geteuid() != 0:
        raise HostError(
            "oneroot needs to be root for this",
            why="it makes mounts, containers and files that only root may make",
            fix="run it with sudo",
        )
    lacking = limits.too_low(Load(containers=containers, units=units))
    problem = programs.hook_problem(settings.paths.start_hook)
    if problem:
        lacking.append(programs.start_hook(settings.paths))
    lacking += idpool.lacking(settings.ids, containers)
    lacking += storage.addresses_lacking(settings, containers)
    if lacking:
        raise HostError(
            f"This host cannot run {containers} containers",
            why="\n".join(f"{check.title}: {check.found}, needed: {check.needed}" for check in lacking),
            fix=_remedy(lacking, containers),
        )


def _remedy(lacking: list[Check], containers: int) -> str:
    if all(check.fixable for check in lacking):
        return f"oneroot doctor --fix --containers {containers}"
    by_hand = [check.fix_command for check in lacking if not check.fixable and check.fix_command]
    return "; ".join(by_hand[:3]) or f"oneroot doctor --containers {containers}"


def _root() -> Check:
    root = os.geteuid() == 0
    return Check(
        id="root",
        title="Run as root",
        status=Status.OK if root else Status.FAIL,
        found=f"user id {os.geteuid()}",
        needed="0",
        why="mounts, containers and id maps are root's to make",
        fix_command="" if root else "sudo oneroot doctor",
    )


def _open_files() -> list[Check]:
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = most == resource.RLIM_INFINITY or most >= _OPEN_FILES
    return [
        Check(
            id="limit.nofile",
            title="Open files of a process (hard limit)",
            status=Status.OK if enough else Status.WARN,
            found="unlimited" if most == resource.RLIM_INFINITY else str(most),
            needed=str(_OPEN_FILES),
            why="containers inherit it; databases and web servers raise their own up to it",
            fix_command="" if enough else f"ulimit -Hn {_OPEN_FILES}",
        )
    ]
