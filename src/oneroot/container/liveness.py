"""Whether a container does what it was declared to do: its units or its command run.

Seen from the host alone, in /proc and the cgroup tree: a container at its process limit cannot be
attached to, and must not look dead for that. A look costs well under a millisecond.

Unit mode: every declared unit has a process in its own cgroup. A unit that has none is alive
only if systemd keeps its state file (``/run/systemd/units/invocation:UNIT``, removed when a unit
ends or fails) and it is a mount, or a service whose unit file says ``Type=oneshot`` or
``RemainAfterExit=yes``. Sockets, timers, paths and targets leave no trace that the host could
see: a look passes over them, and `healthcheck.check` asks systemd. Command mode: init has a
living child.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from oneroot.container import lease as leases
from oneroot.container.lease import Lease
from oneroot.container.spec import ContainerSpec
from oneroot.kernel import mount, proc
from oneroot.kernel.tree import Tree
from oneroot.settings import Paths

_SEARCHED_DIRECTORIES = 512
_UNIT_FILE_BYTES = 64 << 10
_UNIT_PLACES = (
    ("etc", "systemd/system"),
    ("run", "systemd/system"),
    ("run", "systemd/generator"),
    ("usr", "lib/systemd/system"),
    ("run", "systemd/generator.late"),
)
_SEEN_BY_HOST = (".service", ".scope", ".mount", ".swap")
_YES = frozenset({"yes", "true", "1", "on", "y", "t"})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Liveness:
    """What a look at a container showed."""

    container: str
    alive: bool | None
    """Its units or its command run; None: could not be found out."""
    healthy: bool | None = None
    """Its declared check passes; None: none is declared, or it was not asked."""
    reasons: tuple[str, ...] = ()
    """Why it is not alive or not healthy."""
    output: str = ""
    """The check's last answer, capped and escaped."""
    running: bool = True
    """Its monitor lives: it may still become alive."""

    @property
    def ok(self) -> bool:
        return self.alive is True and self.healthy is not False


def look(paths: Paths, spec: ContainerSpec, *, lease: Lease | None = None) -> Liveness:
    """Look once whether a container's declared units or command run; its check is not asked.

    :param lease: its lease, if the caller has just read it.
    """
    found = lease or leases.read(paths, spec.name)
    if found is None or not found.held:
        return Liveness(container=spec.name, alive=False, running=False, reasons=("it is not running",))
    init = init_pid(found)
    if init is None:
        return _dead(spec, "its init is not there yet, or gone")
    try:
        return _units(spec, init) if spec.units else _command(spec, init)
    except OSError as error:
        if not found.held:
            return Liveness(container=spec.name, alive=False, running=False, reasons=("it just ended",))
        return Liveness(container=spec.name, alive=None, reasons=(f"it cannot be looked at: {error}",))


def units_to_ask(spec: ContainerSpec) -> tuple[str, ...]:
    """Return the declared units whose state only the container's systemd can tell."""
    return tuple(unit for unit in spec.units if not unit.endswith(_SEEN_BY_HOST))


def init_pid(lease: Lease) -> int | None:
    """Return the pid of the container's init, as the host sees it."""
    # the monitor forks helpers too, for the hook: init is the child in the payload's cgroup
    wanted = f"/lxc.payload.{lease.container}"
    for child in proc.children(lease.monitor):
        if any(wanted in path for _, path in proc.cgroups(child)):
            return child
    return None


def _dead(spec: ContainerSpec, *reasons: str) -> Liveness:
    return Liveness(container=spec.name, alive=False, reasons=reasons)


def _command(spec: ContainerSpec, init: int) -> Liveness:
    if any(_state(child) not in "ZX" for child in proc.children(init)):
        return Liveness(container=spec.name, alive=True)
    return _dead(spec, "its command does not run")


def _state(pid: int) -> str:
    """Return the one-letter state of a process; X when it is gone."""
    try:
        data = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return "X"
    return chr(data[data.rindex(b")") + 2])


def _units(spec: ContainerSpec, init: int) -> Liveness:
    root = _systemd_cgroup(init)
    if root is None:
        return _dead(spec, "systemd has not begun to start units")
    seen = [unit for unit in spec.units if unit.endswith(_SEEN_BY_HOST)]
    reasons = [reason for unit in seen if (reason := _unit_problem(root, init, unit))]
    return _dead(spec, *reasons) if reasons else Liveness(container=spec.name, alive=True)


def _unit_problem(root: Path, init: int, unit: str) -> str:
    """Return why a unit is not alive; empty when it is."""
    if unit.endswith((".service", ".scope")):
        directory = _unit_cgroup(root, unit)
        if directory and _has_process(directory):
            return ""
    if not _systemd_keeps(init, unit):
        return f"the unit {unit} does not run"
    if unit.endswith(".service") and not _needs_no_process(init, unit):
        return f"the unit {unit} has no process"
    return ""


def _systemd_cgroup(init: int) -> Path | None:
    """Return the cgroup directory below which the container's systemd keeps its slices."""
    for controllers, path in proc.cgroups(init):
        if controllers in ("", "name=systemd") and path.endswith("/init.scope"):
            mounted = _hierarchies().get(controllers)
            if mounted is not None:
                return mounted / path.removesuffix("/init.scope").lstrip("/")
    return None


@functools.cache
def _hierarchies() -> dict[str, Path]:
    """Return where the host mounts the unified hierarchy ("") and systemd's of version 1."""
    found: dict[str, Path] = {}
    for entry in mount.table():
        if entry.kind == "cgroup2":
            found.setdefault("", Path(entry.target))
        elif entry.kind == "cgroup" and "name=systemd" in entry.super_options.split(","):
            found.setdefault("name=systemd", Path(entry.target))
    return found


def _unit_cgroup(root: Path, unit: str) -> Path | None:
    usual = root / "system.slice" / unit
    if usual.is_dir():
        return usual
    for directory in _below(root, only=".slice"):
        if (directory / unit).is_dir():
            return directory / unit
    return None


def _has_process(directory: Path) -> bool:
    return any(_processes(place) for place in (directory, *_below(directory)))


def _processes(directory: Path) -> bool:
    try:
        with open(directory / "cgroup.procs", "rb") as file:
            return bool(file.read(1))
    except OSError:  # removed meanwhile, or a threaded cgroup, whose processes stand in its parent
        return False


def _below(top: Path, *, only: str = "") -> Iterator[Path]:
    """Yield the directories below one of the cgroup tree; a container may have made many."""
    queue = [top]
    for _ in range(_SEARCHED_DIRECTORIES):
        if not queue:
            return
        try:
            with os.scandir(queue.pop()) as entries:
                found = [
                    Path(entry.path)
                    for entry in entries
                    if entry.name.endswith(only) and entry.is_dir(follow_symlinks=False)
                ]
        except OSError:
            continue
        yield from found
        queue += found


def _systemd_keeps(init: int, unit: str) -> bool:
    """Whether the container's systemd holds a unit active, or is starting it."""
    with Tree(Path(f"/proc/{init}/root/run")) as tree:
        return tree.exists(f"systemd/units/invocation:{unit}")


def _needs_no_process(init: int, unit: str) -> bool:
    names = [unit]
    if "@" in unit:
        names.append(unit[: unit.index("@") + 1] + ".service")
    for top, place in _UNIT_PLACES:
        with Tree(Path(f"/proc/{init}/root/{top}")) as tree:
            texts = [_read(tree, f"{place}/{name}") for name in names]
        if any(_says_no_process(text) for text in texts):
            return True
    return False


def _read(tree: Tree, path: str) -> str:
    try:
        return tree.read_bytes(path, _UNIT_FILE_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""


def _says_no_process(text: str) -> bool:
    for line in text.splitlines():
        key, _, value = (part.strip() for part in line.partition("="))
        if (key, value) == ("Type", "oneshot") or (key == "RemainAfterExit" and value.lower() in _YES):
            return True
    return False


def summary(found: Sequence[Liveness]) -> str:
    """Return the reasons of several looks as one line."""
    return "; ".join(f"{one.container}: {', '.join(one.reasons)}" for one in found if one.reasons)
