"""Which published ports may be: declared by containers, free on this host, each once."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable

from oneroot.container.ruleset import Port
from oneroot.container.spec import ContainerSpec, Publish
from oneroot.errors import HostError, OnerootError, UsageError
from oneroot.host import sockets

_PROTOCOLS = ("tcp", "udp")


def check(publish: Publish) -> None:
    """Check one declaration by itself.

    :raises UsageError: it cannot be.
    """
    shown = f"{publish.address}:{publish.host_port}:{publish.container_port}/{publish.protocol}"
    fix = "write it as ADDRESS:PORT:PORT, such as 127.0.0.1:8080:80"
    try:
        address = ipaddress.ip_address(publish.address)
    except ValueError as error:
        raise UsageError(f"{shown} cannot be published", why=str(error), fix=fix) from error
    if address.version != 4:
        raise UsageError(
            f"{shown} cannot be published", why="only IPv4 addresses are published so far", fix=fix
        )
    if address.is_multicast or publish.address != str(address):
        raise UsageError(f"{shown} cannot be published", why="that is no address of a host", fix=fix)
    if publish.protocol not in _PROTOCOLS:
        raise UsageError(f"{shown} cannot be published", why="the protocol is tcp or udp", fix=fix)
    if not all(0 < port < 65536 for port in (publish.host_port, publish.container_port)):
        raise UsageError(f"{shown} cannot be published", why="a port is a number from 1 to 65535", fix=fix)


def ports(spec: ContainerSpec) -> list[Port]:
    """Return a container's published ports, to its first IPv4 address.

    :raises UsageError: one of them cannot be.
    """
    target = next((address for address in spec.addresses if ":" not in address), None)
    if target is None:
        return []
    for publish in spec.publish:
        check(publish)
    return [
        Port(
            address=publish.address,
            protocol=publish.protocol,
            port=publish.host_port,
            to_address=target,
            to_port=publish.container_port,
        )
        for publish in spec.publish
    ]


def plan(
    specs: Iterable[ContainerSpec], published: Collection[Port] = ()
) -> tuple[list[Port], dict[str, OnerootError]]:
    """Choose which ports to publish, and say who cannot have his, and why.

    Who has a port already keeps it; then the order of names decides. A container that is refused
    one port is given none, so that half a service is never on.

    :param published: what is in force now.
    :returns: the ports, and the refusals by container.
    """
    taken: dict[tuple[str, int], list[tuple[Port, str]]] = {}
    chosen: list[Port] = []
    refused: dict[str, OnerootError] = {}
    in_force = frozenset(published)
    listeners: list[sockets.Listener] | None = None
    wishes: list[tuple[bool, str, list[Port]]] = []
    for spec in specs:
        if spec.publish:
            try:
                wished = ports(spec)
            except UsageError as error:
                error.container = spec.name
                refused[spec.name] = error
                continue
            wishes.append((not in_force.issuperset(wished), spec.name, wished))
    for new, name, wished in sorted(wishes, key=lambda wish: wish[:2]):
        if new and listeners is None:
            listeners = sockets.listeners()
        refusal = _conflict(name, wished, taken) or (
            _held(name, [port for port in wished if port not in in_force], listeners or [])
        )
        if refusal:
            refusal.container = name
            refused[name] = refusal
            continue
        chosen += wished
        for port in wished:
            taken.setdefault((port.protocol, port.port), []).append((port, name))
    return sorted(chosen), refused


def _conflict(
    name: str, wished: list[Port], taken: dict[tuple[str, int], list[tuple[Port, str]]]
) -> OnerootError | None:
    for place, port in enumerate(wished):
        own = [(other, name) for other in wished[:place]]
        for other, owner in taken.get((port.protocol, port.port), []) + own:
            same = port.any_address or other.any_address or port.address == other.address
            if same and (port.protocol, port.port) == (other.protocol, other.port):
                return UsageError(
                    f"{name} cannot publish {port.address}:{port.port}",
                    why=f"{owner} publishes {other.address}:{other.port} already",
                    fix="give one of them another port",
                )
    return None


def _held(name: str, wished: list[Port], listeners: list[sockets.Listener]) -> OnerootError | None:
    for port in wished:
        for listener in listeners:
            if (listener.protocol, listener.port) == (port.protocol, port.port) and (
                port.any_address or listener.covers(port.address)
            ):
                return HostError(
                    f"{name} cannot publish {port.address}:{port.port}",
                    why=f"{sockets.holder(listener)} listens on {listener.address}:{listener.port}",
                    fix="end that program, or give the container another port",
                )
    return None
