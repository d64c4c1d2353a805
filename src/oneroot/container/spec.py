"""What a container is declared to be: the file ``oneroot.json`` beside its LXC configuration."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from oneroot.errors import CorruptState
from oneroot.names import BaseName, ContainerName
from oneroot.settings import Paths
from oneroot.work import files

SCHEMA = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class IdRange:
    """The host ids that a container's ids 0 … count-1 are mapped to."""

    first: int
    count: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """None is unlimited."""

    memory: int | None = None
    """Bytes."""
    cpus: float | None = None
    """Processors' worth of time."""
    pids: int = 2048


@dataclasses.dataclass(frozen=True, kw_only=True)
class Publish:
    """A port of the host that leads to a port of the container."""

    address: str
    host_port: int
    container_port: int
    protocol: str = "tcp"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Health:
    """A check that must pass for the container to count as alive. Exactly one kind is set."""

    http: str | None = None
    """``PORT/PATH``: any answer below 400 passes."""
    tcp: int | None = None
    command: str | None = None
    """Run by the shell inside, as the container's root; exit status 0 passes."""
    timeout: float = 5
    retries: int = 0
    """0: as often as the time to become healthy allows."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContainerSpec:
    """A container's declaration; written once by create, changed only while it is stopped."""

    name: ContainerName
    base: BaseName
    created: str
    group: str
    """The NAME that was given to create; replicas share it."""
    units: tuple[str, ...] = ()
    """Unit mode: the systemd units that run. Empty in command mode."""
    command: str | None = None
    """Command mode: run by ``/bin/sh -c`` under the base's tini. None in unit mode."""
    ids: IdRange | None
    """None for a privileged container."""
    addresses: tuple[str, ...] = ()
    limits: Limits = Limits()
    publish: tuple[Publish, ...] = ()
    health: Health | None = None
    autostart: bool = True

    @property
    def unprivileged(self) -> bool:
        return self.ids is not None


def spec_file(paths: Paths, name: str) -> Path:
    return paths.container(name) / "oneroot.json"


def load(paths: Paths, name: str) -> ContainerSpec:
    """Read a container's declaration.

    :raises CorruptState: it is damaged, or is another container's (an ``lxc-copy``).
    :raises FileNotFoundError: there is no such container of ours.
    """
    spec = files.load(spec_file(paths, name), ContainerSpec, schema=SCHEMA)
    if spec.name != name:
        raise CorruptState(
            f"The container {name} is a copy of {spec.name}",
            why="its files were copied (lxc-copy?); id range and address are still the original's",
            fix=f"remove {paths.container(name)} and use oneroot create",
            container=name,
        )
    return spec


def load_from(directory: Path) -> ContainerSpec:
    """Read the declaration of a container that is not in its place, such as one in the trash.

    :raises CorruptState: it is damaged.
    """
    return files.load(directory / "oneroot.json", ContainerSpec, schema=SCHEMA)


def save_in(directory: Path, spec: ContainerSpec) -> None:
    """Write a declaration where a container is being made; it need not survive a power loss yet."""
    files.save(directory / "oneroot.json", spec, schema=SCHEMA, durable=False)


def save(paths: Paths, spec: ContainerSpec) -> None:
    files.save(spec_file(paths, spec.name), spec, schema=SCHEMA)


def names(paths: Paths) -> list[str]:
    """Return the names of all containers of ours, sorted, damaged ones included."""
    try:
        found = list(paths.lxc.iterdir())
    except FileNotFoundError:
        return []
    return sorted(entry.name for entry in found if (entry / "oneroot.json").exists())
