"""The host's settings: where things are, which pools we own, how patient we are.

Read once from ``/etc/oneroot/settings.yaml`` (``ONEROOT_SETTINGS`` names another file); every
key is optional. Tests give another root to everything by another file, never by a mock.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import os
from pathlib import Path
from typing import Any

from oneroot.errors import UsageError

DEFAULT_FILE = Path("/etc/oneroot/settings.yaml")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Paths:
    """Where oneroot keeps things. Store and LXC path should share one filesystem."""

    store: Path = Path("/var/lib/oneroot")
    run: Path = Path("/run/oneroot")
    lxc: Path = Path("/var/lib/lxc")
    libexec: Path = Path("/usr/lib/oneroot")

    @property
    def bases(self) -> Path:
        return self.store / "bases"

    @property
    def trash(self) -> Path:
        return self.store / "trash"

    @property
    def journal(self) -> Path:
        return self.store / "journal.db"

    @property
    def pools(self) -> Path:
        """The ledger of id ranges and addresses."""
        return self.store / "pools.json"

    @property
    def locks(self) -> Path:
        return self.run / "lock"

    @property
    def leases(self) -> Path:
        return self.run / "lease"

    @property
    def hook_reports(self) -> Path:
        """Why a container was not started: what the start hook said, and LXC's log."""
        return self.run / "hook"

    @property
    def lower(self) -> Path:
        """Mounted over with the generation, in each monitor's own namespace only."""
        return self.run / "lower"

    @property
    def overlay(self) -> Path:
        """Mounted over with the container's overlay directory, likewise."""
        return self.run / "overlay"

    @property
    def names(self) -> Path:
        """One hosts file per container, read by the resolver."""
        return self.run / "names"

    @property
    def start_hook(self) -> Path:
        return self.libexec / "start-hook"

    def container(self, name: str) -> Path:
        return self.lxc / name


@dataclasses.dataclass(frozen=True, kw_only=True)
class IdPool:
    """User and group ids that unprivileged containers are given, 65,536 each.

    The default is the space that systemd leaves free between its container range and its
    foreign range (systemd's UIDS-GIDS document): 4,094 containers.
    """

    first: int = 0x7000_0000
    count: int = 0x0FFE_0000
    each: int = 65536


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
    """Addresses of containers and the host's side of their links."""

    ipv4: str = "10.77.0.0/16"
    gateway: str = "169.254.0.1"
    """On ``lo`` of the host; every container's gateway and resolver."""
    domain: str = "oneroot.internal"
    isolated: bool = True
    """Refuse packets from container to container."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timeouts:
    """In seconds."""

    start: float = 30
    stop: float = 15
    """Until a container that ignores its stop signal is killed."""
    alive: float = 60
    health: float = 60
    package_manager: float = 3600
    read: float = 5
    """For everything that a hostile container could make block."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Policy:
    max_age: float = 24 * 3600
    """Seconds after which an unchecked package source makes a base unproven."""
    trash_days: float = 7
    pids: int = 2048
    console_log: int = 1 << 20
    """Bytes of console log kept per container."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    paths: Paths = Paths()
    ids: IdPool = IdPool()
    network: Network = Network()
    timeouts: Timeouts = Timeouts()
    policy: Policy = Policy()
    parallel: int = 0
    """Containers worked on at once; 0 chooses by the number of processors."""

    @property
    def workers(self) -> int:
        return self.parallel or max(4, min(32, 4 * (os.cpu_count() or 1)))


def load(file: Path | None = None) -> Settings:
    """Read the settings.

    :raises UsageError: the file is not valid; says which key.
    """
    named = file or (Path(os.environ["ONEROOT_SETTINGS"]) if "ONEROOT_SETTINGS" in os.environ else None)
    path = named or DEFAULT_FILE
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        if named:
            raise UsageError(f"There is no settings file {path}", fix="name an existing file") from None
        return Settings()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"The settings file {path} cannot be read", why=str(error), fix="mend it, or name another file"
        ) from error
    import yaml  # here, because most commands run without a settings file

    try:
        raw = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise UsageError(
            f"The settings file {path} is not YAML", why=str(error), fix="mend what stands at that place"
        ) from error
    settings: Settings = _build(Settings, raw, path, "")
    _check(settings, path)
    return settings


def _build(cls: type[Any], raw: object, path: Path, where: str) -> Any:
    if not isinstance(raw, dict):
        raise UsageError(
            f"{path}: {where or 'the file'} must be a mapping of keys to values",
            fix=f"known here: {', '.join(field.name for field in dataclasses.fields(cls))}",
        )
    fields = {field.name: field for field in dataclasses.fields(cls)}
    values: dict[str, Any] = {}
    for key, value in raw.items():
        name = f"{where}.{key}" if where else str(key)
        if key not in fields:
            raise UsageError(f"{path}: unknown key {name}", fix=f"known here: {', '.join(sorted(fields))}")
        default = fields[key].default
        if dataclasses.is_dataclass(default):
            values[key] = _build(type(default), value, path, name)
        else:
            values[key] = _scalar(value, default, path, name)
    return cls(**values)


def _scalar(value: object, default: object, path: Path, name: str) -> object:
    if isinstance(default, Path) and isinstance(value, str) and value.startswith("/"):
        return Path(value)
    if isinstance(default, bool) or isinstance(value, bool):
        if isinstance(default, bool) and isinstance(value, bool):
            return value
    elif isinstance(default, int) and isinstance(value, int) and value >= 0:
        return value
    elif isinstance(default, float) and isinstance(value, float | int) and value >= 0:
        return float(value)
    elif isinstance(default, str) and isinstance(value, str):
        return value
    kind = "an absolute path" if isinstance(default, Path) else f"like {default!r}"
    raise UsageError(f"{path}: {name} is {value!r}", fix=f"give it a value {kind}")


def _check(settings: Settings, path: Path) -> None:
    try:
        ipaddress.IPv4Network(settings.network.ipv4)
        ipaddress.IPv4Address(settings.network.gateway)
    except ValueError as error:
        raise UsageError(
            f"{path}: a network setting is wrong",
            why=str(error),
            fix="give network.ipv4 like 10.77.0.0/16, and network.gateway like 169.254.0.1",
        ) from error
    if settings.ids.each < 65536 or settings.ids.first < 65536:
        raise UsageError(
            f"{path}: ids.first and ids.each must be at least 65536", fix="leave them away, or raise them"
        )
