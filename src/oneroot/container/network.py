"""The host's side of the network: gateway, rules, published ports, resolver.

`ensure` runs before every start: it looks at a handful of files and one number of the kernel,
and does something only when that shows a difference. Docs: docs/adr/0004-network.md.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import ipaddress
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from oneroot.container import publish as publishing
from oneroot.container import resolver, ruleset
from oneroot.container.resolver import forget_names, write_names
from oneroot.container.ruleset import Pool, Port
from oneroot.container.spec import ContainerSpec
from oneroot.errors import CommandFailed, CorruptState, HostError, OnerootError
from oneroot.host import iproute, nft, sysctl
from oneroot.kernel import proc
from oneroot.names import LINK_PREFIX
from oneroot.settings import Settings
from oneroot.work import files, killpoint

__all__ = ["NetworkStatus", "ensure", "forget_names", "publish", "status", "teardown", "write_names"]

SCHEMA = 1
LOCK = Path("/run/oneroot-network.lock")
"""One for the host, not for the store: table, loopback address and resolver are the host's."""

PARAMETERS = {
    "net.ipv4.ip_forward": 1,
    # The first answer for the gateway's address would come after half a second otherwise.
    "net.ipv4.neigh.default.proxy_delay": 0,
    # No link-local address on links made from now on: their routes make each next start dearer.
    "net.ipv6.conf.default.addr_gen_mode": 1,
}
ROUTE_LOCALNET = "net.ipv4.conf.default.route_localnet"


@dataclasses.dataclass(frozen=True, kw_only=True)
class _State:
    """What we left behind, for the cheap look: in RUN, so it ends with the boot."""

    boot: str
    namespace: int
    generation: int | None
    pool: str
    gateway: str
    isolated: bool
    published: tuple[Port, ...]
    previous: dict[str, int]
    """Kernel parameters as they were before us."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkStatus:
    """What is in force."""

    table: bool
    gateway: bool
    resolver: int | None
    """Its process."""
    published: tuple[Port, ...]


def ensure(settings: Settings) -> None:
    """Make the network ready for containers to start; does nothing, fast, when it is.

    :raises HostError: the pool collides with something, or the kernel or a program refuses.
    """
    _converge(settings, None)


def publish(settings: Settings, specs: Iterable[ContainerSpec]) -> dict[str, OnerootError]:
    """Publish exactly the ports that *specs* (all containers of this store) declare.

    One transaction for all, `ensure` included. A container whose port is another's, or a host
    program's, gets none; it is named in the result and the others go on.

    :raises HostError: as `ensure`.
    """
    known = _load(settings)
    ports, refused = publishing.plan(specs, known.published if known else ())
    _converge(settings, tuple(ports))
    return refused


def check_publish(settings: Settings, specs: Iterable[ContainerSpec]) -> None:
    """Check, for create, that all of *specs* together could be published.

    :raises UsageError: a port is declared twice or cannot be.
    :raises HostError: a host program holds it.
    """
    known = _load(settings)
    _, refused = publishing.plan(specs, known.published if known else ())
    for error in refused.values():
        raise error


def status(settings: Settings) -> NetworkStatus:
    """Look at what is in force."""
    known = _load(settings)
    return NetworkStatus(
        table=_pools() is not None,
        gateway=iproute.is_local(settings.network.gateway),
        resolver=resolver.pid(settings),
        published=known.published if known else (),
    )


def teardown(settings: Settings) -> None:
    """Take back what `ensure` did: rules, resolver, gateway, kernel parameters."""
    with _locked():
        known = _load(settings)
        resolver.stop(settings)
        network = _network(settings)
        kept = [pool for pool in _pools() or [] if not pool.network.overlaps(network)]
        if kept:
            _apply(ruleset.install(kept) + "\n" + ruleset.change_ports(known.published if known else (), ()))
        else:
            nft.delete_table(ruleset.FAMILY, ruleset.TABLE)
        iproute.delete_unreachable(network)
        if all(str(pool.gateway) != settings.network.gateway for pool in kept):
            iproute.delete_loopback_address(settings.network.gateway)
        for name, value in (known.previous if known and not kept else {}).items():
            wanted = 1 if name == ROUTE_LOCALNET else PARAMETERS.get(name)
            if sysctl.read_int(name) == wanted:
                sysctl.write(name, value)
        _file(settings).unlink(missing_ok=True)


def _converge(settings: Settings, ports: tuple[Port, ...] | None) -> None:
    fenced = _check_routes(settings)
    known = _load(settings)
    if fenced and _stands(settings, known, ports):
        return
    settings.paths.run.mkdir(mode=0o711, parents=True, exist_ok=True)
    with _locked():
        known = _load(settings)
        if _check_routes(settings) and _stands(settings, known, ports):
            return
        wanted = ports if ports is not None else (known.published if known else ())
        previous = {**_differing_parameters(wanted), **(known.previous if known else {})}
        # What was before is written down first: after a kill, teardown still leads back to it.
        before = known or _state(settings, None, (), previous)
        _save(settings, dataclasses.replace(before, generation=None, previous=previous))
        _set_parameters(wanted)
        killpoint.reach("network: parameters set")
        if not iproute.is_local(settings.network.gateway):
            _check_gateway(settings)
            iproute.add_loopback_address(settings.network.gateway)
        killpoint.reach("network: gateway added")
        # A stopped container's address must not lead out by the default route.
        iproute.add_unreachable(_network(settings))
        killpoint.reach("network: pool fenced")
        generation = _install(settings, known, wanted)
        killpoint.reach("network: rules installed")
        resolver.ensure(settings)
        killpoint.reach("network: resolver started")
        _save(settings, _state(settings, generation, wanted, previous))


def _state(
    settings: Settings, generation: int | None, ports: tuple[Port, ...], previous: dict[str, int]
) -> _State:
    network = settings.network
    return _State(
        boot=proc.boot_id(),
        namespace=_namespace(),
        generation=generation,
        pool=network.ipv4,
        gateway=network.gateway,
        isolated=network.isolated,
        published=ports,
        previous=previous,
    )


def _save(settings: Settings, state: _State) -> None:
    files.save(_file(settings), state, schema=SCHEMA, durable=False)


def _stands(settings: Settings, known: _State | None, ports: tuple[Port, ...] | None) -> bool:
    """Tell whether all is as we left it, and as it is wanted. Costs well below a millisecond."""
    network = settings.network
    return (
        known is not None
        and (ports is None or ports == known.published)
        and (known.pool, known.gateway, known.isolated) == (network.ipv4, network.gateway, network.isolated)
        and known.generation is not None
        and known.generation == nft.generation()
        and iproute.is_local(network.gateway)
        and all(sysctl.read_int(name) in (value, None) for name, value in PARAMETERS.items())
        and (not _needs_localnet(known.published) or sysctl.read_int(ROUTE_LOCALNET) == 1)
        and resolver.running(settings)
    )


def _install(settings: Settings, known: _State | None, ports: tuple[Port, ...]) -> int | None:
    """Make the table right, in one transaction, and return the ruleset's generation after it.

    :returns: None if somebody else changed rules meanwhile: then the next call looks again.
    """
    found = _pools() or []
    ours = Pool(
        network=_network(settings),
        gateway=ipaddress.IPv4Address(settings.network.gateway),
        isolated=settings.network.isolated,
    )
    rivals = [pool for pool in found if pool.network.overlaps(ours.network)]
    _check_rivals(ours, rivals, known.pool if known else "")
    in_force = _ports_in_force() if found else set()
    cleared = [ours.network, *(rival.network for rival in rivals)]
    stale = {port for port in in_force if any(_leads_to(port, network) for network in cleared)}
    _check_keys(ports, in_force - stale)
    pools = [pool for pool in found if pool not in rivals] + [ours]
    first = nft.generation()
    _apply(ruleset.install(pools) + "\n" + ruleset.change_ports(sorted(stale - set(ports)), ports))
    return first + 1 if first is not None and nft.generation() == first + 1 else None


def _check_rivals(ours: Pool, rivals: Iterable[Pool], before: str) -> None:
    """Refuse a pool that another store uses now; one that nobody uses any more gives way."""
    for rival in rivals:
        if str(rival.network) not in (before, str(ours.network)) and _in_use(rival.network):
            raise HostError(
                f"The address pool {ours.network} overlaps {rival.network}",
                why="containers of another oneroot store run there",
                fix="choose another network.ipv4 in the settings",
            )


def _check_keys(ports: Iterable[Port], foreign: Iterable[Port]) -> None:
    taken = {(port.map_name, port.key): port for port in foreign}
    for port in ports:
        other = taken.get((port.map_name, port.key))
        if other:
            raise HostError(
                f"{port.address}:{port.port} cannot be published",
                why=f"another oneroot store leads it to {other.to_address}:{other.to_port}",
                fix="publish another port",
            )


def _apply(transaction: str) -> None:
    try:
        nft.apply(transaction)
    except CommandFailed as error:
        if "nft" not in error.argv[0]:
            raise
        # A table of another version of ours may have sets of other types: make it anew.
        with contextlib.suppress(CommandFailed):
            nft.apply(f"delete table {ruleset.FAMILY_TABLE}\n{transaction}")
            return
        raise HostError(
            "The rules for the containers' network could not be loaded",
            why=nft.explain(error),
            fix="oneroot doctor",
        ) from error


def _pools() -> list[Pool] | None:
    """Return the pools that the table knows, None if there is no table of ours."""
    gateways = nft.elements("map", ruleset.FAMILY, ruleset.TABLE, "gateways")
    if gateways is None:
        return None
    opened = nft.elements("set", ruleset.FAMILY, ruleset.TABLE, "open") or []
    networks = [ipaddress.IPv4Network(_prefix(item)) for item in opened]
    pools = []
    for key, gateway in gateways:
        network = ipaddress.IPv4Network(_prefix(key))
        isolated = not any(network.subnet_of(other) for other in networks)
        pools.append(Pool(network=network, gateway=ipaddress.IPv4Address(gateway), isolated=isolated))
    return pools


def _prefix(item: object) -> str:
    if isinstance(item, dict) and "prefix" in item:
        return f"{item['prefix']['addr']}/{item['prefix']['len']}"
    return str(item)


def _ports_in_force() -> set[Port]:
    """Return the published ports that the table has, every store's."""
    found = set()
    for name in ("published", "published_any"):
        for key, value in nft.elements("map", ruleset.FAMILY, ruleset.TABLE, name) or []:
            words, target = key["concat"], value["concat"]
            found.add(
                Port(
                    address=words[0] if name == "published" else "0.0.0.0",  # noqa: S104
                    protocol=words[-2],
                    port=words[-1],
                    to_address=target[0],
                    to_port=target[1],
                )
            )
    return found


def _leads_to(port: Port, network: ipaddress.IPv4Network) -> bool:
    return ipaddress.IPv4Address(port.to_address) in network


def _in_use(network: ipaddress.IPv4Network) -> bool:
    return any(
        route.interface.startswith(LINK_PREFIX) and route.network.subnet_of(network)
        for route in iproute.routes()
    )


def _check_routes(settings: Settings) -> bool:
    """Refuse a pool that leads elsewhere on this host already.

    :returns: whether our own route is there, which ends what no container takes.
    :raises HostError: names the route.
    """
    pool = _network(settings)
    fenced = False
    for route in iproute.routes(but=LINK_PREFIX):
        if not route.interface:
            fenced = fenced or route.network == pool
        elif route.collides(pool):
            raise HostError(
                f"The address pool {pool} collides with a route of this host",
                why=f"{route.network} leads to {route.interface}",
                fix="choose another network.ipv4 in the settings, or remove that route",
            )
    return fenced


def _check_gateway(settings: Settings) -> None:
    """Refuse a pool that holds an address of this host; looked at when the gateway is added."""
    pool = _network(settings)
    for interface, address in iproute.addresses():
        if address.ip in pool:
            raise HostError(
                f"The address pool {pool} collides with an address of this host",
                why=f"{interface} has {address}",
                fix="choose another network.ipv4 in the settings",
            )


def _wanted_parameters(ports: Iterable[Port]) -> dict[str, int]:
    return {**PARAMETERS, ROUTE_LOCALNET: 1} if _needs_localnet(ports) else PARAMETERS


def _differing_parameters(ports: Iterable[Port]) -> dict[str, int]:
    found = {name: sysctl.read_int(name) for name in _wanted_parameters(ports)}
    return {
        name: value
        for name, value in found.items()
        if value is not None and value != _wanted_parameters(ports)[name]
    }


def _set_parameters(ports: Iterable[Port]) -> None:
    for name, value in _wanted_parameters(ports).items():
        sysctl.ensure(name, value)
    if not _needs_localnet(ports):
        return
    for interface in {route.interface for route in iproute.routes()}:
        if interface.startswith(LINK_PREFIX):
            # A container may stop meanwhile, and its link with it.
            with contextlib.suppress(HostError):
                sysctl.ensure(f"net/ipv4/conf/{interface}/route_localnet", 1)


def _needs_localnet(ports: Iterable[Port]) -> bool:
    return any(port.any_address or port.address.startswith("127.") for port in ports)


def _network(settings: Settings) -> ipaddress.IPv4Network:
    return ipaddress.IPv4Network(settings.network.ipv4)


def _namespace() -> int:
    return Path("/proc/self/ns/net").stat().st_ino


def _file(settings: Settings) -> Path:
    return settings.paths.run / "network.json"


def _load(settings: Settings) -> _State | None:
    """Return what we left behind in this boot and network namespace; None when in doubt."""
    try:
        known = files.load(_file(settings), _State, schema=SCHEMA)
    except (OSError, CorruptState):
        return None
    return known if (known.boot, known.namespace) == (proc.boot_id(), _namespace()) else None


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    try:
        descriptor = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except PermissionError as error:
        raise HostError(
            "oneroot needs to be root for this", why=str(error), fix="run it with sudo"
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
