"""HTTP and TCP checks against answers of every kind; none may hang, or read without bound."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from oneroot.container import healthcheck, liveness
from oneroot.container.liveness import Liveness
from oneroot.container.spec import ContainerSpec, Health, IdRange
from oneroot.names import BaseName, ContainerName
from oneroot.settings import Settings


class Server:
    """Answers each connection with a function of it."""

    def __init__(self, answer: Callable[[socket.socket], None]) -> None:
        self._answer = answer
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.sent = 0
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                try:
                    connection.recv(4096)
                    self._answer(connection)
                except OSError:
                    pass

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[socket.socket], None]], Server]]:
    servers: list[Server] = []

    def start(answer: Callable[[socket.socket], None]) -> Server:
        servers.append(Server(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> Callable[[Health], Liveness]:
    def look(*_: object, **__: object) -> Liveness:
        return Liveness(container="web", alive=True)

    monkeypatch.setattr(liveness, "look", look)

    def ask(health: Health) -> Liveness:
        declared = ContainerSpec(
            name=ContainerName("web"), base=BaseName("core"), created="", group="web",
            ids=IdRange(first=1 << 20, count=65536), addresses=("127.0.0.1",), health=health,
        )  # fmt: skip
        return healthcheck.check(Settings(), declared)

    return ask


def says(data: bytes) -> Callable[[socket.socket], None]:
    return lambda connection: connection.sendall(data)


@pytest.mark.parametrize("status", [200, 204, 301, 399])
def test_below_400_passes(serve, check, status) -> None:  # type: ignore[no-untyped-def]
    server = serve(says(f"HTTP/1.1 {status} Fine\r\n\r\nbody".encode()))
    assert check(Health(http=f"{server.port}/")).ok


@pytest.mark.parametrize("status", [400, 404, 500, 599, 100])
def test_others_fail_with_what_was_said(serve, check, status) -> None:  # type: ignore[no-untyped-def]
    server = serve(says(f"HTTP/1.0 {status} Bad\r\n\r\n\x1b[31mthe reason".encode()))
    found = check(Health(http=f"{server.port}/health", timeout=1))
    assert found.healthy is False and not found.ok
    assert str(status) in found.reasons[0]
    assert "the reason" in found.output and "\x1b" not in found.output


@pytest.mark.parametrize("data", [b"", b"SSH-2.0-x\r\n", b"HTTP/1.1 abc\r\n", b"HTTP/1.1 20000 x\r\n"])
def test_what_is_no_http_fails(serve, check, data) -> None:  # type: ignore[no-untyped-def]
    server = serve(says(data))
    assert check(Health(http=f"{server.port}/", timeout=1)).healthy is False


def test_an_answer_without_end_is_cut(serve, check) -> None:  # type: ignore[no-untyped-def]
    sent = [0]

    def flood(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 500 no\r\n\r\n")
        for _ in range(20_000):
            connection.sendall(b"x" * 65536)
            sent[0] += 65536

    server = serve(flood)
    found = check(Health(http=f"{server.port}/", timeout=5))
    assert found.healthy is False and len(found.output) <= 2000
    assert sent[0] < 64 << 20


def test_one_byte_at_a_time_ends_at_the_deadline(serve, check) -> None:  # type: ignore[no-untyped-def]
    def drip(connection: socket.socket) -> None:
        for _ in range(200):
            connection.sendall(b"H")
            time.sleep(0.05)

    server = serve(drip)
    began = time.monotonic()
    assert check(Health(http=f"{server.port}/", timeout=0.3)).healthy is False
    assert time.monotonic() - began < 5, "the deadline is for the whole of it"


def test_silence_and_refusal(serve, check) -> None:  # type: ignore[no-untyped-def]
    server = serve(lambda connection: time.sleep(2))
    assert "no answer" in check(Health(http=f"{server.port}/", timeout=0.1)).reasons[0]
    assert check(Health(tcp=server.port)).ok
    server.close()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert "refused" in check(Health(tcp=port)).reasons[0]
    assert "refused" in check(Health(http=f"{port}/")).reasons[0]


def test_ports_that_cannot_be(check) -> None:  # type: ignore[no-untyped-def]
    assert check(Health(tcp=70000)).healthy is False
    assert check(Health(http="70000/")).healthy is False


@pytest.mark.parametrize("where", ["", "x/", "80/a b", "80/a\r\nX: y", "999999/"])
def test_a_declared_path_cannot_end_its_line(check, where) -> None:  # type: ignore[no-untyped-def]
    assert "PORT/PATH" in check(Health(http=where)).reasons[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[Service]\nType=oneshot\n", True),
        ("[Service]\n Type = oneshot \n", True),
        ("[Service]\nType=simple\nRemainAfterExit=yes\n", True),
        ("[Service]\nRemainAfterExit=no\n", False),
        ("[Service]\nType=forking\n#Type=oneshot\n", False),
        ("", False),
    ],
)
def test_units_that_need_no_process(text: str, expected: bool) -> None:
    assert liveness._says_no_process(text) is expected
