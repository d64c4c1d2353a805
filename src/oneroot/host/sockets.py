"""Who listens on which port of this host, read from /proc."""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

_LISTEN = "0A"
_UNCONNECTED = "07"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Listener:
    """A socket that waits for others."""

    protocol: str
    address: str
    """``0.0.0.0`` when it listens on every IPv4 address, also when by way of IPv6."""
    port: int
    inode: int

    def covers(self, address: str) -> bool:
        """Tell whether it answers on an address (``0.0.0.0``: on any at all)."""
        return "0.0.0.0" in (self.address, address) or self.address == address  # noqa: S104


def listeners() -> list[Listener]:
    """Return every listening TCP and bound UDP socket of this network namespace."""
    return [found for protocol in ("tcp", "udp") for found in _of(protocol)]


def holder(listener: Listener) -> str:
    """Return ``nginx (process 123)`` for a socket, as far as it can be told."""
    wanted = f"socket:[{listener.inode}]"
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            if any(_target(link) == wanted for link in (process / "fd").iterdir()):
                name = (process / "comm").read_text(encoding="utf-8", errors="backslashreplace").strip()
                return f"{name} (process {process.name})"
    return "a process that cannot be told"


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:
        return ""


def _of(protocol: str) -> Iterator[Listener]:
    state = _LISTEN if protocol == "tcp" else _UNCONNECTED
    for suffix in ("", "6"):
        try:
            lines = Path(f"/proc/net/{protocol}{suffix}").read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            words = line.split()
            if words[3] != state:
                continue
            raw, port = words[1].split(":")
            address = _decode(raw)
            if address is not None:
                yield Listener(protocol=protocol, address=address, port=int(port, 16), inode=int(words[9]))


def _decode(raw: str) -> str | None:
    """Return an address as IPv4, None if it cannot meet IPv4 packets."""
    if len(raw) == 8:
        return socket.inet_ntoa(struct.pack("=I", int(raw, 16)))
    words = [struct.pack("=I", int(raw[place : place + 8], 16)) for place in range(0, 32, 8)]
    address = ipaddress.IPv6Address(b"".join(words))
    if address.is_unspecified:
        return "0.0.0.0"  # noqa: S104
    return str(address.ipv4_mapped) if address.ipv4_mapped else None
