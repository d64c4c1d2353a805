"""What a person asks `create` for, and how it is written: names, sizes, ports, health checks."""

from __future__ import annotations

import dataclasses
import re

from oneroot.container import publish as publishing
from oneroot.container.spec import Health, Limits, Publish
from oneroot.errors import UsageError
from oneroot.names import ContainerName, container_name

MAX_REPLICAS = 4094
_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,3})?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_PUBLISH = re.compile(
    r"(?:(?P<address>[^:\[\]/]+|\[[0-9A-Fa-f:.]+\]):)?(?P<host>[0-9]{1,6})(?P<many>\+?):(?P<inside>[0-9]{1,6})"
    r"(?:/(?P<protocol>[a-z]+))?"
)
_HTTP_PATH = re.compile(r"[\x21-\x7e]*")
_SMALLEST_MEMORY = 4 << 20
_FEWEST_PROCESSES = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublishRequest:
    """A published port as it was asked for."""

    address: str = "127.0.0.1"
    host_port: int
    container_port: int
    protocol: str = "tcp"
    counting: bool = False
    """Each replica takes the next port of the host."""

    def of_replica(self, index: int) -> Publish:
        """Return the port of the replica at an index, from 0."""
        port = self.host_port + (index if self.counting else 0)
        made = Publish(
            address=self.address, host_port=port, container_port=self.container_port, protocol=self.protocol
        )
        publishing.check(made)
        return made


@dataclasses.dataclass(frozen=True, kw_only=True)
class CreateRequest:
    """Containers that shall exist. Exactly one of *units* and *command* is given."""

    name: str
    replicas: int | None = None
    """NAME001 … ; None is one container, called NAME."""
    base: str
    units: tuple[str, ...] = ()
    command: str | None = None
    limits: Limits = dataclasses.field(default_factory=Limits)
    publish: tuple[PublishRequest, ...] = ()
    health: Health | None = None
    privileged: bool = False
    unsafe: bool = False
    """Said for what the host cannot hold back, such as a privileged container on cgroup v1."""
    autostart: bool = True


def names(request: CreateRequest) -> list[ContainerName]:
    """Return the names of the containers: ``web``, or ``web001`` … ``web999``, ``web1000`` ….

    A replica's name does not depend on how many there are, so that a group can grow.

    :raises UsageError: a number that cannot be, or a name that is none or gets too long.
    """
    container_name(request.name)
    if request.replicas is None:
        return [ContainerName(request.name)]
    if not 1 <= request.replicas <= MAX_REPLICAS:
        raise UsageError(
            f"{request.replicas} replicas cannot be made", fix=f"give --replicas 1 to {MAX_REPLICAS}"
        )
    last = f"{request.name}{request.replicas:03d}"
    if len(last) > 63:
        raise UsageError(
            f"The name {request.name} is too long for {request.replicas} replicas",
            why=f"the last would have {len(last)} characters of at most 63",
            fix="choose a shorter name",
        )
    return [container_name(f"{request.name}{number:03d}") for number in range(1, request.replicas + 1)]


def check(request: CreateRequest) -> None:
    """Check what can be checked without looking at the host.

    :raises UsageError: says what cannot be.
    """
    names(request)
    if bool(request.units) == (request.command is not None):
        raise UsageError(
            "Say what shall run: either --unit or --command",
            why="both were given" if request.units else "neither was given",
            fix='for example --unit apache2.service, or --command "apache2ctl -D FOREGROUND"',
        )
    limits = request.limits
    if limits.memory is not None and limits.memory < _SMALLEST_MEMORY:
        raise UsageError(f"{limits.memory} bytes of memory are too few", fix="give at least --memory 4M")
    if limits.cpus is not None and not 0.01 <= limits.cpus <= 4096:
        raise UsageError(f"{limits.cpus:g} processors cannot be", fix="give --cpus 0.01 or more")
    if not _FEWEST_PROCESSES <= limits.pids <= 4194304:
        raise UsageError(
            f"A limit of {limits.pids} processes cannot be", fix=f"give --pids {_FEWEST_PROCESSES} or more"
        )
    many = (request.replicas or 1) > 1
    for wish in request.publish:
        if many and not wish.counting:
            raise UsageError(
                f"{request.replicas} containers cannot share the host's port {wish.host_port}",
                fix=f"--publish {wish.address}:{wish.host_port}+:{wish.container_port} counts up from it",
            )
        for index in (0, (request.replicas or 1) - 1):
            wish.of_replica(index)


def parse_size(text: str) -> int:
    """Return the bytes that ``64M``, ``1.5G`` or ``67108864`` mean; K is 1024.

    :raises UsageError: it means none.
    """
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise UsageError(f"{text[:80]!r} is no amount of memory", fix="write it like 64M or 2G")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def parse_publish(text: str) -> PublishRequest:
    """Read ``[ADDRESS:]PORT[+]:PORT[/udp]``.

    :raises UsageError: it is not that.
    """
    match = _PUBLISH.fullmatch(text)
    if not match:
        raise UsageError(
            f"{text[:80]!r} cannot be published",
            fix="write [ADDRESS:]PORT:PORT, such as 127.0.0.1:8080:80; 8080+:80 counts up for replicas",
        )
    made = PublishRequest(
        address=(match["address"] or "127.0.0.1").strip("[]"),
        host_port=int(match["host"]),
        container_port=int(match["inside"]),
        protocol=match["protocol"] or "tcp",
        counting=bool(match["many"]),
    )
    made.of_replica(0)
    return made


def parse_health(text: str) -> Health:
    """Read ``http:PORT/PATH``, ``tcp:PORT`` or ``command:COMMAND``.

    :raises UsageError: it is none of these.
    """
    kind, _, rest = text.partition(":")
    if kind == "http":
        port, _, path = rest.partition("/")
        if _HTTP_PATH.fullmatch(path):
            return Health(http=f"{_port(port, text)}/{path}")
    elif kind == "tcp":
        return Health(tcp=_port(rest, text))
    elif kind == "command" and rest.strip() and rest.isprintable():
        return Health(command=rest)
    raise _no_health(text)


def _port(digits: str, text: str) -> int:
    if digits.isascii() and digits.isdecimal() and len(digits) < 6 and 0 < int(digits) < 65536:
        return int(digits)
    raise _no_health(text)


def _no_health(text: str) -> UsageError:
    return UsageError(
        f"{text[:80]!r} is no health check", fix="write http:80/, tcp:5432 or command:/usr/local/bin/check"
    )
