from __future__ import annotations

import ipaddress
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oneroot.container import publish, ruleset
from oneroot.container.ruleset import Pool, Port
from oneroot.container.spec import ContainerSpec, Publish
from oneroot.errors import HostError, UsageError
from oneroot.host import sockets
from oneroot.names import BaseName, ContainerName


@pytest.fixture(autouse=True)
def nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "listeners", list)


def container(name: str, *published: Publish, address: str = "10.77.0.2") -> ContainerSpec:
    return ContainerSpec(
        name=ContainerName(name), base=BaseName("core"), created="", group=name, command="x", ids=None,
        addresses=(address,), publish=published,
    )  # fmt: skip


def port(address: str, number: int, protocol: str = "tcp", to: int = 80) -> Publish:
    return Publish(address=address, host_port=number, container_port=to, protocol=protocol)


@pytest.mark.parametrize(
    ("address", "number", "to", "protocol"),
    [
        ("::1", 80, 80, "tcp"),
        ("localhost", 80, 80, "tcp"),
        ("127.0.0.1 }\nflush ruleset", 80, 80, "tcp"),
        ("127.0.0.01", 80, 80, "tcp"),
        ("224.0.0.1", 80, 80, "tcp"),
        ("127.0.0.1", 0, 80, "tcp"),
        ("127.0.0.1", 80, 65536, "tcp"),
        ("127.0.0.1", 80, 80, "tcp; drop"),
    ],
)
def test_what_cannot_be_published(address: str, number: int, to: int, protocol: str) -> None:
    with pytest.raises(UsageError):
        publish.check(port(address, number, protocol, to))


@given(st.text(), st.integers(), st.integers(), st.text())
def test_no_declaration_can_write_a_second_element(address: str, number: int, to: int, protocol: str) -> None:
    try:
        found = publish.ports(container("web", port(address, number, protocol, to)))
    except UsageError:
        return
    for item in found:
        assert re.fullmatch(r"[0-9.]+( \. [0-9a-z]+)+ : [0-9.]+ \. \d+", item.element)


def test_the_first_by_name_gets_a_port_that_two_want() -> None:
    two, one = container("web2", port("127.0.0.1", 80)), container("web1", port("127.0.0.1", 80))
    chosen, refused = publish.plan([two, one])
    assert [item.address for item in chosen] == ["127.0.0.1"]
    assert set(refused) == {"web2"}
    assert "web1 publishes" in refused["web2"].why
    assert refused["web2"].container == "web2"


def test_who_has_a_port_already_keeps_it() -> None:
    owner = container("web2", port("127.0.0.1", 80), address="10.77.0.9")
    in_force, _ = publish.plan([owner])
    chosen, refused = publish.plan([container("web1", port("127.0.0.1", 80)), owner], in_force)
    assert set(refused) == {"web1"}
    assert [item.to_address for item in chosen] == ["10.77.0.9"]


@pytest.mark.parametrize(
    ("first", "second", "clash"),
    [
        (port("127.0.0.1", 80), port("192.0.2.1", 80), False),
        (port("127.0.0.1", 80), port("127.0.0.1", 80, "udp"), False),
        (port("127.0.0.1", 80), port("127.0.0.1", 81), False),
        (port("0.0.0.0", 80), port("192.0.2.1", 80), True),
        (port("192.0.2.1", 80), port("0.0.0.0", 80), True),
        (port("0.0.0.0", 80), port("0.0.0.0", 80), True),
    ],
)
def test_which_ports_get_in_each_others_way(first: Publish, second: Publish, clash: bool) -> None:
    _, refused = publish.plan([container("a", first), container("b", second)])
    assert (set(refused) == {"b"}) is clash
    _, refused = publish.plan([container("a", first, second)])
    assert (set(refused) == {"a"}) is clash


def test_a_container_that_is_refused_one_port_gets_none() -> None:
    chosen, refused = publish.plan(
        [container("a", port("127.0.0.1", 80)), container("b", port("127.0.0.1", 81), port("127.0.0.1", 80))]
    )
    assert set(refused) == {"b"}
    assert [item.port for item in chosen] == [80]


def test_a_port_that_a_program_holds_is_refused_when_it_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    listener = sockets.Listener(protocol="tcp", address="0.0.0.0", port=80, inode=0)
    web = container("web", port("127.0.0.1", 80))
    in_force, _ = publish.plan([web])
    monkeypatch.setattr(sockets, "listeners", lambda: [listener])
    _, refused = publish.plan([web])
    assert isinstance(refused["web"], HostError)
    assert publish.plan([web], in_force) == (in_force, {})


def test_the_table_for_no_pool_and_for_many() -> None:
    assert "add element" not in ruleset.install([])
    pools = [
        Pool(
            network=ipaddress.IPv4Network(f"10.{number}.0.0/16"),
            gateway=ipaddress.IPv4Address("169.254.0.1"),
            isolated=bool(number % 2),
        )
        for number in (1, 2)
    ]
    text = ruleset.install(pools)
    assert "add element inet oneroot open { 10.2.0.0/16 }" in text
    assert "add element inet oneroot resolvers { 169.254.0.1 }" in text


def test_ports_go_into_the_map_of_their_kind() -> None:
    named = Port(address="127.0.0.1", protocol="tcp", port=8080, to_address="10.77.0.2", to_port=80)
    every = Port(address="0.0.0.0", protocol="udp", port=53, to_address="10.77.0.2", to_port=53)
    assert ruleset.change_ports([every], [named]).splitlines() == [
        "delete element inet oneroot published_any { udp . 53 }",
        "add element inet oneroot published { 127.0.0.1 . tcp . 8080 : 10.77.0.2 . 80 }",
    ]
