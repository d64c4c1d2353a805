"""What containers can reach, and what can reach them, with real LXC, nftables and dnsmasq."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from oneroot.container import network, resolver
from oneroot.container.spec import ContainerSpec, Publish
from oneroot.errors import HostError, UsageError
from oneroot.host import iproute, nft, sysctl
from tests.root.network.conftest import (
    GATEWAY,
    HOST,
    HOST_TWO,
    METADATA,
    WORLD,
    Host,
    in_world,
    probe,
    probe_in_world,
    sh,
)


def wait_for(condition: Callable[[], bool], seconds: float = 5) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@contextlib.contextmanager
def watched(match: str) -> Iterator[Callable[[], int]]:
    """Count the packets that come to the host's own input, before our chain there."""
    sh("nft add table inet watch; nft 'add chain inet watch c { type filter hook input priority -10; }'")
    sh(f"nft add rule inet watch c {match} counter")
    try:
        yield lambda: int(sh("nft list table inet watch").partition("packets ")[2].split()[0])
    finally:
        sh("nft delete table inet watch")


@pytest.fixture(scope="module")
def pair(host: Host) -> Iterator[tuple[ContainerSpec, ContainerSpec]]:
    """Two containers that serve."""
    one = host.declare(1, Publish(address="127.0.0.1", host_port=8001, container_port=80))
    two = host.declare(
        2,
        Publish(address=HOST, host_port=8002, container_port=80),
        Publish(address="0.0.0.0", host_port=8003, container_port=81, protocol="udp"),
    )
    assert network.publish(host.settings, [one, two]) == {}
    network.write_names(host.settings, [one, two])
    for spec in (one, two):
        host.start(spec)
        assert wait_for(lambda spec=spec: probe("tcp", spec.addresses[0], "80").startswith(spec.name))
    yield one, two
    host.stop(one)
    host.stop(two)


Pair = tuple[ContainerSpec, ContainerSpec]


def test_a_container_reaches_the_outside_from_the_hosts_address(host: Host, pair: Pair) -> None:
    assert host.probe(pair[0], "tcp", WORLD, "80") == f"world {HOST}"
    assert host.probe(pair[0], "udp", WORLD, "81", "hello") == "world hello"


def test_the_outside_does_not_reach_a_container_by_a_route_of_its_own(host: Host, pair: Pair) -> None:
    in_world(f"ip route replace 10.77.80.0/20 via {HOST}")
    assert probe_in_world("tcp", pair[0].addresses[0], "80") == "TIMEOUT"
    assert probe_in_world("udp", pair[0].addresses[0], "81") == "TIMEOUT"


def test_packets_from_an_address_that_is_not_the_containers_own_go_nowhere(host: Host, pair: Pair) -> None:
    one, two = pair
    log = host.place / "world.log"
    host.run(one, "/sbin/ip address add 203.0.113.9/32 dev eth0")
    host.run(one, f"/sbin/ip address add {two.addresses[0]}/32 dev eth0")
    host.run(one, f"/sbin/ip address add {HOST}/32 dev lo")
    for source in ("203.0.113.9", two.addresses[0], HOST):
        host.probe(one, "udp", WORLD, "81", f"spoofed-{source}", source)
    assert host.probe(one, "udp", WORLD, "81", "honest", one.addresses[0]) == "world honest"
    host.run(one, f"/sbin/ip address del {HOST}/32 dev lo")
    host.run(one, f"/sbin/ip address del {two.addresses[0]}/32 dev eth0")
    said = log.read_text()
    assert "honest" in said
    assert "spoofed" not in said


def test_ipv6_packets_from_an_invented_address_go_nowhere(host: Host, pair: Pair) -> None:
    one = pair[0]
    link = json.loads(sh(f"ip -j link show or{80 * 256 + 1}"))[0]
    sh(f"ip -6 address add 2001:db8:1::1/64 dev {link['ifname']} nodad")
    for command in (
        "address add 2001:db8:1::2/64 dev eth0 nodad",
        "address add fd99::9/128 dev eth0 nodad",
        f"neigh replace 2001:db8:1::1 lladdr {link['address']} dev eth0",
        "route replace default via 2001:db8:1::1 dev eth0",
    ):
        host.run(one, f"/sbin/ip -6 {command}")
    with watched("udp dport 81") as packets:
        host.probe(one, "udp", "2001:db8::1", "81", "x", "fd99::9")
        assert packets() == 0
        said = host.probe(one, "udp", "2001:db8::1", "81", "x", "2001:db8:1::2")
        assert packets() > 0, "from an address of its link they come as far as the next rule"
        assert said == "TIMEOUT"


def test_metadata_services_are_out_of_reach(host: Host, pair: Pair) -> None:
    assert probe("tcp", METADATA, "80").startswith("world"), "the host itself reaches it"
    assert host.probe(pair[0], "tcp", METADATA, "80") == "TIMEOUT"
    assert host.probe(pair[0], "udp", METADATA, "81") == "TIMEOUT"


@pytest.mark.parametrize("address", [HOST, HOST_TWO, GATEWAY])
def test_services_of_the_host_are_out_of_reach(host: Host, pair: Pair, address: str) -> None:
    assert probe("tcp", address, "80").startswith("host"), "the host itself reaches it"
    assert host.probe(pair[0], "tcp", address, "80") == "TIMEOUT"
    assert host.probe(pair[0], "udp", address, "81") == "TIMEOUT"


def test_the_resolver_and_echo_of_the_gateway_are_within_reach(host: Host, pair: Pair) -> None:
    assert host.probe(pair[0], "ping", GATEWAY, "0") == "pong"
    assert host.ask(pair[0], str(pair[1].name)) == str(list(pair[1].addresses))


def test_the_host_reaches_a_container_and_gets_its_answer(host: Host, pair: Pair) -> None:
    assert probe("tcp", pair[0].addresses[0], "80").startswith("nw-1")


def test_containers_reach_each_other_only_when_they_are_not_isolated(host: Host, pair: Pair) -> None:
    one, two = pair
    assert host.probe(one, "tcp", two.addresses[0], "80") == "TIMEOUT"
    host.isolate(False)
    try:
        assert host.probe(one, "tcp", two.addresses[0], "80") == f"nw-2 {one.addresses[0]}"
    finally:
        host.isolate(True)
    assert host.probe(one, "tcp", two.addresses[0], "80") == "TIMEOUT"


def test_names_are_found_and_forgotten(host: Host, pair: Pair) -> None:
    one, two = pair
    domain = host.settings.network.domain
    assert host.ask(one, f"nw-2.{domain}") == str(list(two.addresses))
    assert host.ask(one, f"nobody.{domain}") == "RCODE 3"
    third = host.declare(9)
    network.write_names(host.settings, [third])
    assert wait_for(lambda: host.ask(one, "nw-9") == str(list(third.addresses)))
    network.forget_names(host.settings, ["nw-9"])
    assert wait_for(lambda: host.ask(one, "nw-9").startswith("RCODE"))


@pytest.mark.parametrize("question", [("version.bind", "TXT", "3"), ("localhost",), ("nw-1", "TXT")])
def test_the_resolver_tells_nothing_about_the_host(host: Host, pair: Pair, question: tuple[str, ...]) -> None:
    assert host.ask(pair[0], *question).startswith("RCODE")


def test_the_resolver_does_not_know_the_hosts_own_name(host: Host, pair: Pair) -> None:
    assert host.ask(pair[0], sh("hostname").strip()).startswith("RCODE")


def test_a_port_on_127_0_0_1_is_for_the_host_alone(host: Host, pair: Pair) -> None:
    assert probe("tcp", "127.0.0.1", "8001") == f"nw-1 {GATEWAY}"
    assert probe("tcp", HOST, "8001").startswith("ERROR")
    assert probe_in_world("tcp", HOST, "8001").startswith("ERROR")
    in_world(f"ip route replace 127.0.0.1/32 via {HOST} table 77")
    in_world("ip rule add to 127.0.0.1 lookup 77 priority 1")
    in_world("sysctl -qw net.ipv4.conf.all.route_localnet=1")
    assert probe_in_world("tcp", "127.0.0.1", "8001") in ("TIMEOUT", "ERROR 22", "ERROR 111")
    in_world("ip rule del priority 1")


def test_a_packet_for_127_0_0_1_from_the_wire_is_dropped(host: Host, pair: Pair) -> None:
    """route_localnet is on for interfaces made after the publishing: the rule alone protects."""
    sh("sysctl -qw net.ipv4.conf.up0.route_localnet=1")
    rewrite = f"iifname up0 ip daddr {HOST_TWO} udp dport 8111 ip daddr set 127.0.0.1"
    sh("nft add table ip early; nft 'add chain ip early c { type filter hook prerouting priority -400; }'")
    sh(f"nft add rule ip early c {rewrite}")
    try:
        with watched("iifname up0 ip daddr 127.0.0.1") as packets:
            probe_in_world("udp", HOST_TWO, "8111")
            assert packets() == 0
            sh("nft flush chain inet oneroot raw")
            probe_in_world("udp", HOST_TWO, "8111")
            assert packets() > 0, "without our rule they come in"
    finally:
        sh("nft delete table ip early; sysctl -qw net.ipv4.conf.up0.route_localnet=0")
        network.ensure(host.settings)


def test_a_port_on_an_address_of_the_host_is_for_everybody(host: Host, pair: Pair) -> None:
    one, two = pair
    assert probe_in_world("tcp", HOST, "8002") == f"nw-2 {WORLD}", "the caller's address is kept"
    assert probe("tcp", HOST, "8002").startswith("nw-2")
    assert probe("tcp", HOST_TWO, "8002").startswith("ERROR")
    assert host.probe(one, "tcp", HOST, "8002").startswith("nw-2"), "from another container"
    assert host.probe(two, "tcp", HOST, "8002").startswith("nw-2"), "from itself"


def test_a_port_on_every_address(host: Host, pair: Pair) -> None:
    for address in (HOST, HOST_TWO, "127.0.0.1"):
        assert probe("udp", address, "8003", "hi") == "nw-2 hi"
    assert probe_in_world("udp", HOST_TWO, "8003", "hi") == "nw-2 hi"


def test_a_stopped_containers_traffic_does_not_leave_the_host(host: Host, pair: Pair) -> None:
    gone = host.declare(7, Publish(address=HOST, host_port=8007, container_port=80))
    network.publish(host.settings, [*pair, gone])
    in_world("ip address add 10.77.80.7/32 dev lo")
    try:
        assert probe("tcp", "10.77.80.7", "80").startswith("ERROR")
        assert host.probe(pair[0], "tcp", "10.77.80.7", "80").startswith("ERROR")
        assert probe_in_world("tcp", HOST, "8007") in ("TIMEOUT", "ERROR 113")
    finally:
        in_world("ip address del 10.77.80.7/32 dev lo")
        network.publish(host.settings, pair)


def test_a_port_that_is_taken_is_refused_and_the_others_are_published(host: Host, pair: Pair) -> None:
    thief = host.declare(5, Publish(address="0.0.0.0", host_port=8002, container_port=80))
    held = host.declare(6, Publish(address=HOST_TWO, host_port=80, container_port=80))
    fine = host.declare(8, Publish(address=HOST_TWO, host_port=8008, container_port=80))
    refused = network.publish(host.settings, [*pair, thief, held, fine])
    assert set(refused) == {"nw-5", "nw-6"}
    assert isinstance(refused["nw-5"], UsageError) and "nw-2" in refused["nw-5"].why
    assert isinstance(refused["nw-6"], HostError) and "process" in refused["nw-6"].why
    assert {port.port for port in network.status(host.settings).published} == {8001, 8002, 8003, 8008}
    with pytest.raises(UsageError):
        network.check_publish(host.settings, [*pair, thief])
    assert network.publish(host.settings, pair) == {}
    assert probe("tcp", HOST_TWO, "8008").startswith("ERROR")
    assert probe_in_world("tcp", HOST, "8002").startswith("nw-2")


def test_a_port_moves_to_another_container_in_one_step(host: Host, pair: Pair) -> None:
    one, two = pair
    new = host.declare(1, Publish(address=HOST, host_port=8002, container_port=80))
    assert network.publish(host.settings, [new, host.declare(2)]) == {}
    assert probe_in_world("tcp", HOST, "8002").startswith("nw-1")
    assert network.publish(host.settings, [one, two]) == {}
    assert probe_in_world("tcp", HOST, "8002").startswith("nw-2")


@pytest.mark.parametrize("flush", ["flush ruleset", "flush table inet oneroot", "delete table inet oneroot"])
def test_rules_that_somebody_flushed_come_back(host: Host, pair: Pair, flush: str) -> None:
    sh(f"nft {flush}")
    network.ensure(host.settings)
    assert host.probe(pair[0], "tcp", HOST_TWO, "80") == "TIMEOUT"
    assert host.probe(pair[0], "tcp", WORLD, "80") == f"world {HOST}"
    assert probe("tcp", "127.0.0.1", "8001").startswith("nw-1")


def test_one_rule_that_somebody_deleted_comes_back(host: Host, pair: Pair) -> None:
    sh("nft flush chain inet oneroot to_host")
    assert host.probe(pair[0], "tcp", HOST_TWO, "80") != "TIMEOUT", "the rule was what kept it out"
    network.ensure(host.settings)
    assert host.probe(pair[0], "tcp", HOST_TWO, "80") == "TIMEOUT"


def test_tables_of_others_are_left_alone(host: Host, pair: Pair) -> None:
    sh("nft add table ip foreign '{ chain c { type filter hook forward priority 5; counter\n}\n}'")
    before = sh("nft -a list table ip foreign")
    sh("nft delete table inet oneroot")
    network.ensure(host.settings)
    network.publish(host.settings, [])
    network.publish(host.settings, pair)
    names = "nft list tables"
    assert [line for line in sh("nft -a list table ip foreign").splitlines() if "counter" not in line] == [
        line for line in before.splitlines() if "counter" not in line
    ]
    assert set(sh(names).split("\n")) >= {"table ip foreign", "table inet oneroot"}
    sh("nft delete table ip foreign")


def test_nothing_is_done_when_nothing_changed(host: Host, pair: Pair) -> None:
    network.ensure(host.settings)
    generation, process = nft.generation(), resolver.pid(host.settings)
    network.ensure(host.settings)
    network.publish(host.settings, pair)
    assert (nft.generation(), resolver.pid(host.settings)) == (generation, process)


def test_gateway_parameters_and_resolver_come_back(host: Host, pair: Pair) -> None:
    process = resolver.pid(host.settings)
    sh(f"ip address del {GATEWAY}/32 dev lo; kill -9 {process}")
    sysctl.write("net.ipv4.ip_forward", 0)
    network.ensure(host.settings)
    assert iproute.is_local(GATEWAY)
    assert sysctl.read("net.ipv4.ip_forward") == "1"
    assert resolver.pid(host.settings) not in (None, process)
    assert host.ask(pair[0], "nw-2") == str(list(pair[1].addresses))


def test_many_at_once_make_one_resolver_and_one_table(host: Host, pair: Pair) -> None:
    sh("nft delete table inet oneroot")
    sh(f"kill -9 {resolver.pid(host.settings)}")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: network.ensure(host.settings), range(16)))
    listening = sh(f"ss -Hlnu src {GATEWAY}")
    assert len(listening.splitlines()) == 1
    assert network.status(host.settings).resolver is not None


def test_killed_at_any_point_the_next_call_finishes(host: Host, pair: Pair) -> None:
    settings = host.place / "settings.yaml"
    paths = host.settings.paths
    settings.write_text(
        f"paths: {{store: {paths.store}, run: {paths.run}, lxc: {paths.lxc}}}\n"
        f"network: {{ipv4: 10.77.80.0/20, gateway: {GATEWAY}}}\n"
    )
    script = (
        "from oneroot import settings; from oneroot.container import network;network.ensure(settings.load())"
    )
    point = 0
    while True:
        point += 1
        network.teardown(host.settings)
        killed = subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "ONEROOT_SETTINGS": str(settings), "ONEROOT_KILL_POINT": str(point)},
            check=False,
        ).returncode
        network.ensure(host.settings)
        found = network.status(host.settings)
        assert found.table and found.gateway and found.resolver
        assert network.publish(host.settings, pair) == {}
        assert probe("tcp", "127.0.0.1", "8001").startswith("nw-1")
        if not killed:
            break
    assert point > 5


def test_thirty_containers_started_at_once_all_have_a_network(host: Host, pair: Pair) -> None:
    specs = [host.declare(number) for number in range(100, 130)]
    network.write_names(host.settings, specs)
    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(host.start, specs))

        def lost() -> list[str]:
            said = {spec.name: probe("tcp", spec.addresses[0], "80") for spec in specs}
            return [name for name, answer in said.items() if not answer.startswith(name)]

        assert wait_for(lambda: lost() == [], 20), f"without network: {lost()}"
        with ThreadPoolExecutor(8) as pool:
            said = list(pool.map(lambda spec: host.probe(spec, "tcp", WORLD, "80"), specs))
            asked = list(pool.map(lambda spec: host.ask(spec, "nw-1"), specs))
        assert said == [f"world {HOST}"] * 30
        assert set(asked) == {str(list(pair[0].addresses))}
    finally:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(host.stop, specs))


def test_a_container_that_floods_the_resolver_is_held_back_alone(host: Host, pair: Pair) -> None:
    one, two = pair
    answered = int(host.run(one, f"/usr/bin/python3 /dnsquery.py {GATEWAY} nw-2 FLOOD"))
    assert 50 < answered < 600, "of 3000"
    assert host.ask(two, "nw-1") == str(list(one.addresses))


def test_a_route_of_this_host_that_collides_is_named(host: Host, pair: Pair) -> None:
    sh(f"ip route add 10.77.88.0/24 via {WORLD}")
    try:
        with pytest.raises(HostError, match=r"collides with a route.*10\.77\.88\.0/24 leads to up0"):
            network.ensure(host.settings)
    finally:
        sh("ip route del 10.77.88.0/24")
    network.ensure(host.settings)


def test_a_port_53_that_somebody_holds_is_named(host: Host, pair: Pair) -> None:
    resolver.stop(host.settings)
    import socket

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("0.0.0.0", 53))
        with pytest.raises(HostError, match=r"cannot listen.*python.*0\.0\.0\.0, port 53"):
            network.ensure(host.settings)
    network.ensure(host.settings)


def test_another_store_on_the_same_gateway_shares_resolver_and_table(host: Host, pair: Pair) -> None:
    import dataclasses

    from oneroot.settings import Network, Paths

    place = host.place / "second"
    place.mkdir()
    second = dataclasses.replace(
        host.settings,
        paths=Paths(store=place / "store", run=place / "run", lxc=place / "lxc"),
        network=Network(ipv4="10.77.96.0/24", gateway=GATEWAY),
    )
    stranger = dataclasses.replace(host.declare(3), name="nw-3", addresses=("10.77.96.3",))
    network.ensure(second)
    network.write_names(second, [stranger])
    assert wait_for(lambda: host.ask(pair[0], "nw-3") == "['10.77.96.3']")
    assert host.ask(pair[0], "nw-2") == str(list(pair[1].addresses))
    assert probe("tcp", "127.0.0.1", "8001").startswith("nw-1")
    network.teardown(second)
    network.ensure(host.settings)
    assert host.probe(pair[0], "tcp", WORLD, "80") == f"world {HOST}"
    assert host.ask(pair[0], "nw-2") == str(list(pair[1].addresses))


def test_teardown_leaves_nothing_and_ensure_brings_it_back(host: Host, pair: Pair) -> None:
    network.teardown(host.settings)
    assert "oneroot" not in sh("nft list tables")
    assert not iproute.is_local(GATEWAY)
    assert sh(f"ss -Hlnu src {GATEWAY}") == ""
    assert sysctl.read("net.ipv4.ip_forward") == "0"
    network.teardown(host.settings)
    network.ensure(host.settings)
    assert network.publish(host.settings, pair) == {}
    assert probe_in_world("tcp", HOST, "8002").startswith("nw-2")
