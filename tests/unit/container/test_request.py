"""What a person may write for create, and what it means."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oneroot.container import request
from oneroot.container.request import CreateRequest, PublishRequest
from oneroot.container.spec import Health, Limits
from oneroot.errors import UsageError

PLAIN = CreateRequest(name="web", base="core", command="sleep 1")


def test_names_of_replicas_do_not_depend_on_their_number() -> None:
    few = request.names(dataclasses.replace(PLAIN, replicas=3))
    many = request.names(dataclasses.replace(PLAIN, replicas=1001))
    assert few == ["web001", "web002", "web003"]
    assert many[:3] == few
    assert many[998:] == ["web999", "web1000", "web1001"]


def test_one_container_has_the_name_itself() -> None:
    assert request.names(PLAIN) == ["web"]


@pytest.mark.parametrize("number", [0, -1, 4095, 100000])
def test_numbers_of_replicas_that_cannot_be(number: int) -> None:
    with pytest.raises(UsageError, match="replicas"):
        request.check(dataclasses.replace(PLAIN, replicas=number))


def test_a_name_that_gets_too_long() -> None:
    name = "x" * 60
    assert len(request.names(dataclasses.replace(PLAIN, name=name, replicas=999))) == 999
    with pytest.raises(UsageError, match="too long"):
        request.check(dataclasses.replace(PLAIN, name=name, replicas=1000))


@pytest.mark.parametrize(
    "change",
    [
        {"command": None},
        {"units": ("a.service",)},
        {"limits": Limits(memory=1000)},
        {"limits": Limits(cpus=0)},
        {"limits": Limits(cpus=float("nan"))},
        {"limits": Limits(pids=1)},
        {"name": "../x"},
        {"publish": (PublishRequest(host_port=70000, container_port=80),)},
        {"publish": (PublishRequest(host_port=80, container_port=80),), "replicas": 2},
        {"publish": (PublishRequest(host_port=65535, container_port=80, counting=True),), "replicas": 2},
    ],
)
def test_what_cannot_be_is_refused(change: dict[str, object]) -> None:
    request.check(PLAIN)
    with pytest.raises(UsageError):
        request.check(dataclasses.replace(PLAIN, **change))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "size"),
    [("64M", 64 << 20), ("2g", 2 << 30), ("1.5G", 3 << 29), ("512 KiB", 512 << 10), ("67108864", 64 << 20)],
)
def test_sizes(text: str, size: int) -> None:
    assert request.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "-1M", "64X", "1e3", "64M ; rm", "６４M"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError):
        request.parse_size(text)


def test_a_port_is_published_on_the_loopback_unless_an_address_is_given() -> None:
    assert request.parse_publish("8080:80").of_replica(0).address == "127.0.0.1"
    assert request.parse_publish("0.0.0.0:8080:80").of_replica(0).address == "0.0.0.0"


def test_ports_of_replicas_count_up() -> None:
    wish = request.parse_publish("8080+:80/udp")
    assert [wish.of_replica(index).host_port for index in range(3)] == [8080, 8081, 8082]
    assert wish.of_replica(0).protocol == "udp"


@pytest.mark.parametrize(
    "text", ["80", "a:b", "8080:80:90:1", "8080:0", "1.2.3.4.5:80:80", "8080:80/x", "8080:80\n"]
)
def test_what_cannot_be_published(text: str) -> None:
    with pytest.raises(UsageError):
        request.parse_publish(text)


@pytest.mark.parametrize(
    ("text", "health"),
    [
        ("http:80/", Health(http="80/")),
        ("http:8080/a/b?c=d", Health(http="8080/a/b?c=d")),
        ("http:80", Health(http="80/")),
        ("tcp:5432", Health(tcp=5432)),
        ("command:test -e /ok", Health(command="test -e /ok")),
    ],
)
def test_health_checks(text: str, health: Health) -> None:
    assert request.parse_health(text) == health


@pytest.mark.parametrize(
    "text", ["", "http:", "http:x/", "http:80/a b", "tcp:0", "tcp:65536", "command:", "ping:1"]
)
def test_what_is_no_health_check(text: str) -> None:
    with pytest.raises(UsageError):
        request.parse_health(text)


@given(st.text(max_size=30))
def test_no_text_makes_a_parser_fail_otherwise(text: str) -> None:
    for parse in (request.parse_size, request.parse_publish, request.parse_health):
        try:
            parse(text)
        except UsageError:
            pass
