from __future__ import annotations

import socket
import struct

from oneroot.host import iproute, nft, sockets


def test_a_listening_socket_is_found_with_its_holder() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        found = [item for item in sockets.listeners() if (item.protocol, item.port) == ("tcp", port)]
        assert [item.address for item in found] == ["127.0.0.1"]
        assert found[0].covers("127.0.0.1") and not found[0].covers("192.0.2.1")
        assert "process" in sockets.holder(found[0])


def test_a_socket_on_all_ipv6_addresses_holds_the_port_of_ipv4_too() -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as server:
        server.bind(("::", 0))
        port = server.getsockname()[1]
        found = [item for item in sockets.listeners() if (item.protocol, item.port) == ("udp", port)]
        assert [item.address for item in found] == ["0.0.0.0"]
        assert found[0].covers("192.0.2.1")


def test_a_connected_socket_is_no_listener() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as made,
    ):
        port = made.getsockname()[1]
        assert [item for item in sockets.listeners() if item.port == port and item.protocol == "tcp"] == []


def test_local_addresses_are_told_from_others() -> None:
    assert iproute.is_local("127.0.0.1")
    assert not iproute.is_local("192.0.2.77")


def test_the_generation_is_read_from_the_kernels_answer() -> None:
    attribute = struct.pack("=HH", 8, 1) + struct.pack(">I", 42)
    other = struct.pack("=HH", 5, 9) + b"x\0\0\0"
    head = struct.pack("=IHHIIBBH", 40, (10 << 8) | 15, 0, 1, 0, 0, 0, 0)
    assert nft._parse_generation(head + other + attribute) == 42
    assert nft._parse_generation(head) is None
    assert nft._parse_generation(b"") is None
    error = struct.pack("=IHHIIi", 40, 2, 0, 1, 0, -1)
    assert nft._parse_generation(error + attribute) is None
