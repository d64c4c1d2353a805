"""The door to the host's addresses and routes: ``ip`` for changes, /proc for the cheap look."""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import socket
import struct
from pathlib import Path

from oneroot.run import run

_DEFAULT_ROUTE_BITS = 1
"""0.0.0.0/1 and 128.0.0.0/1 are how VPN programs write a default route."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Route:
    """A route of the main table."""

    network: ipaddress.IPv4Network
    interface: str
    """Empty when it leads nowhere (unreachable, prohibit)."""

    def collides(self, pool: ipaddress.IPv4Network) -> bool:
        """Tell whether packets to some address of a pool go this way already."""
        leads = bool(self.interface) and self.network.prefixlen > _DEFAULT_ROUTE_BITS
        return leads and self.network.overlaps(pool)


def is_local(address: str) -> bool:
    """Tell whether an IPv4 address is one of this host's, without a process and at any size.

    The kernel answers from a local address with that same address; connecting a datagram
    socket sends nothing.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, 9))
        except OSError:
            return False
        return bool(probe.getsockname()[0] == address)


def add_loopback_address(address: str) -> None:
    """Give ``lo`` an address that is valid on this link only.

    :raises CommandFailed: the kernel refused.
    """
    run(["ip", "link", "set", "lo", "up"], timeout=10)
    run(["ip", "address", "replace", f"{address}/32", "dev", "lo", "scope", "link"], timeout=10)


def delete_loopback_address(address: str) -> None:
    """Take the address from ``lo``; it may be gone."""
    run(["ip", "address", "delete", f"{address}/32", "dev", "lo"], timeout=10, check=False)


def add_unreachable(network: ipaddress.IPv4Network) -> None:
    """Let packets to a network be refused where no narrower route takes them.

    :raises CommandFailed: the kernel refused.
    """
    run(["ip", "route", "replace", "unreachable", str(network)], timeout=10)


def delete_unreachable(network: ipaddress.IPv4Network) -> None:
    """Take that route away; it may be gone."""
    run(["ip", "route", "delete", "unreachable", str(network)], timeout=10, check=False)


def addresses() -> list[tuple[str, ipaddress.IPv4Interface]]:
    """Return each IPv4 address of this host, with its interface and network."""
    listed = json.loads(run(["ip", "-j", "-4", "address", "show"], timeout=30).stdout or "[]")
    return [
        (link["ifname"], ipaddress.IPv4Interface(f"{info['local']}/{info['prefixlen']}"))
        for link in listed
        if "ifname" in link
        for info in link.get("addr_info", [])
        if "local" in info
    ]


def routes(*, but: str = "") -> list[Route]:
    """Return the main table's IPv4 routes.

    :param but: leave out interfaces whose name begins so; thousands of them cost little then.
    """
    try:
        lines = Path("/proc/net/route").read_text(encoding="ascii").splitlines()[1:]
    except OSError:
        return []
    found = []
    for line in lines:
        if but and line.startswith(but):
            continue
        words = line.split()
        network = ipaddress.IPv4Network((_address(words[1]), _address(words[7])), strict=False)
        found.append(Route(network=network, interface="" if words[0] == "*" else words[0]))
    return found


def _address(text: str) -> str:
    return socket.inet_ntoa(struct.pack("=I", int(text, 16)))
