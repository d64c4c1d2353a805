"""The text of our nftables table: what containers may send, and what may reach them.

Rules know containers by their interface (``or…``) and nothing else, so that starting one costs
no rule. What differs between hosts (pools, gateways, published ports) lies in sets and maps.
See docs/adr/0004-network.md for why each rule is there.
"""

from __future__ import annotations

import dataclasses
import ipaddress
from collections.abc import Iterable, Mapping

from oneroot.names import LINK_PREFIX

FAMILY = "inet"
TABLE = "oneroot"
FAMILY_TABLE = f"{FAMILY} {TABLE}"
INTERFACE = f"{LINK_PREFIX}*"
"""Host side of every container's link, as nftables writes patterns."""

# Cloud metadata and platform services that trust every packet which comes from the machine.
_METADATA = "169.254.0.0/16, 168.63.129.16, 100.100.100.200, 192.0.0.192"
_METADATA6 = "fd00:ec2::254, fd20:ce::254, fe80::a9fe:a9fe"

_SETS = f"""
  map gateways {{ type ipv4_addr : ipv4_addr; flags interval; }}
  set open {{ type ipv4_addr; flags interval; }}
  set resolvers {{ type ipv4_addr; }}
  set metadata {{ type ipv4_addr; flags interval; elements = {{ {_METADATA} }}; }}
  set metadata6 {{ type ipv6_addr; flags interval; elements = {{ {_METADATA6} }}; }}
  set dns_rate {{ type ipv4_addr; size 65535; flags dynamic, timeout; timeout 10s; }}
  set dns_streams {{ type ipv4_addr; size 65535; flags dynamic; }}
  map published {{ type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }}
  map published_any {{ type inet_proto . inet_service : ipv4_addr . inet_service; }}
"""

_CHAINS = f"""
  chain raw {{
    type filter hook prerouting priority raw; policy accept;
    iifname "{INTERFACE}" goto from_container
    iifname != "lo" ip daddr 127.0.0.0/8 drop comment "route_localnet is on for our links alone"
  }}
  chain from_container {{
    icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} ip6 hoplimit 255 accept
    fib saddr . iif oif missing drop comment "a source address that is not this link's"
    ip daddr 127.0.0.0/8 drop
    ip daddr @metadata ip daddr != @resolvers drop
    ip6 daddr @metadata6 drop
  }}
  chain input {{
    type filter hook input priority filter; policy accept;
    iifname "{INTERFACE}" goto to_host
  }}
  chain to_host {{
    ip daddr @resolvers udp dport 53 goto to_resolver
    ip daddr @resolvers tcp dport 53 goto to_resolver
    ct state established accept
    ct state related meta l4proto {{ icmp, ipv6-icmp }} accept
    icmp type echo-request accept
    icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept
    drop
  }}
  chain to_resolver {{
    tcp dport 53 ct state new add @dns_streams {{ ip saddr ct count over 4 }} drop
    udp dport 53 update @dns_rate {{ ip saddr limit rate over 100/second burst 200 packets }} drop
    accept
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    iifname "{INTERFACE}" goto out_of_container
    oifname "{INTERFACE}" goto into_container
  }}
  chain out_of_container {{
    ip daddr @metadata drop
    ip6 daddr @metadata6 drop
    oifname "{INTERFACE}" goto between_containers
  }}
  chain between_containers {{
    ct state established,related accept
    ct status dnat accept comment "published on an address of this host"
    ip saddr @open ip daddr @open accept
    drop
  }}
  chain into_container {{
    ct state established,related accept
    ct status dnat accept
    drop
  }}
  chain nat_prerouting {{
    type nat hook prerouting priority dstnat; policy accept;
    meta l4proto {{ tcp, udp }} goto to_published
  }}
  chain nat_output {{
    type nat hook output priority -100; policy accept;
    meta l4proto {{ tcp, udp }} goto to_published
  }}
  chain to_published {{
    fib daddr type != local return
    dnat ip to ip daddr . meta l4proto . th dport map @published
    dnat ip to meta l4proto . th dport map @published_any
  }}
  chain nat_postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    oifname "{INTERFACE}" goto source_into_container
    iifname "{INTERFACE}" masquerade
  }}
  chain source_into_container {{
    ip saddr 127.0.0.0/8 snat ip to ip daddr map @gateways
    iifname "{INTERFACE}" ct status dnat snat ip to ip daddr map @gateways comment "it may ask itself"
  }}
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pool:
    """Addresses of containers of one store, as the table knows them."""

    network: ipaddress.IPv4Network
    gateway: ipaddress.IPv4Address
    isolated: bool


@dataclasses.dataclass(frozen=True, kw_only=True, order=True)
class Port:
    """A published port: where packets to an address of this host go instead."""

    address: str
    """Of the host; ``0.0.0.0`` is every one."""
    protocol: str
    port: int
    to_address: str
    to_port: int

    @property
    def any_address(self) -> bool:
        return self.address == "0.0.0.0"  # noqa: S104

    @property
    def map_name(self) -> str:
        return "published_any" if self.any_address else "published"

    @property
    def key(self) -> str:
        where = "" if self.any_address else f"{self.address} . "
        return f"{where}{self.protocol} . {self.port}"

    @property
    def element(self) -> str:
        return f"{self.key} : {self.to_address} . {self.to_port}"


def install(pools: Iterable[Pool]) -> str:
    """Return the transaction that makes the table as it must be, whatever it is now.

    Sets keep what they hold; published ports survive.
    """
    return "\n".join(
        [
            f"add table {FAMILY_TABLE}",
            f"flush table {FAMILY_TABLE}",  # the rules of all chains, not the elements
            f"table {FAMILY_TABLE} {{{_SETS}{_CHAINS}}}",
            _pool_elements(list(pools)),
        ]
    )


def _pool_elements(pools: list[Pool]) -> str:
    lines = [f"flush {kind} {FAMILY_TABLE} {name}" for kind, name in _POOL_SETS]
    lines += _add("gateways", [f"{pool.network} : {pool.gateway}" for pool in pools])
    lines += _add("open", [str(pool.network) for pool in pools if not pool.isolated])
    lines += _add("resolvers", sorted({str(pool.gateway) for pool in pools}))
    return "\n".join(lines)


_POOL_SETS = (("map", "gateways"), ("set", "open"), ("set", "resolvers"))


def change_ports(remove: Iterable[Port], add: Iterable[Port]) -> str:
    """Return the transaction that takes ports out of the maps and puts others in."""
    removed: Mapping[str, list[str]] = {"published": [], "published_any": []}
    added: Mapping[str, list[str]] = {"published": [], "published_any": []}
    for port in remove:
        removed[port.map_name].append(port.key)
    for port in add:
        added[port.map_name].append(port.element)
    lines = [
        f"delete element {FAMILY_TABLE} {name} {{ {', '.join(keys)} }}"
        for name, keys in removed.items()
        if keys
    ]
    return "\n".join([*lines, *(line for name, items in added.items() for line in _add(name, items))])


def _add(name: str, elements: list[str]) -> list[str]:
    if not elements:
        return []
    return [f"add element {FAMILY_TABLE} {name} {{ {', '.join(elements)} }}"]
