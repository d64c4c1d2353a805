"""The pools of id ranges and addresses: who gets what, and what may be given again.

Directories say what is in use (`claims`); the ledger ``STORE/pools.json`` adds what they cannot:
what was promised to a container that is still being made, and in which order things became free.
It is written, durably, before anything that it promises is used. If it is lost, it is begun anew
from the directories.

Something that was never used is given first; then what has been free the longest, ids only if no
process or IPC object has one of them. What a killed command was promised is free again as soon as
its process is gone and what it left is swept.
"""

from __future__ import annotations

import dataclasses
import functools
import ipaddress
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from oneroot.container import claims, occupancy, places
from oneroot.container.spec import IdRange
from oneroot.errors import Busy, CorruptState, HostError
from oneroot.kernel import proc
from oneroot.settings import Settings
from oneroot.work import files, killpoint, locks

SCHEMA = 1
_SKIPPED_ADDRESSES = 10
"""The first of the network stay free, for what a host may want to have there one day."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Want:
    """What a container that is to be made needs."""

    name: str
    unprivileged: bool
    addresses: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grant:
    """What it got."""

    ids: IdRange | None
    addresses: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Promise:
    """A line of the ledger."""

    owner: str
    pid: int
    """The process that makes the container; 0 when it exists."""
    pid_start: int
    boot_id: str
    turn: int
    """Which allocation this was: orders what the clock may not."""
    freed: int | None = None
    """The allocation that found it unused; None while it is used."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ledger:
    """The file. Keys: the first id of a range, and an address."""

    turn: int = 0
    ids: dict[str, Promise] = dataclasses.field(default_factory=dict)
    addresses: dict[str, Promise] = dataclasses.field(default_factory=dict)


def allocate(settings: Settings, wants: Sequence[Want]) -> dict[str, Grant]:
    """Give every container what it needs, all or none.

    :raises HostError: a pool is exhausted; nothing was given.
    :raises CorruptState: two existing containers claim the same, or the ledger is damaged.
    :raises Busy: another process is making a container of one of these names.
    """
    with locks.pools(settings.paths, verb="create"):
        office = _Office(settings)
        office.refuse_busy(wants)
        grants = office.serve(wants)
        office.write()
    killpoint.reach("pools: promised")
    return grants


def settle(settings: Settings, names: Iterable[str]) -> None:
    """End the promises to containers that this process made, or could not make."""
    with locks.pools(settings.paths, verb="create"):
        office = _Office(settings)
        office.settle(set(names))
        office.write()


def in_making(settings: Settings) -> set[str]:
    """Return the names of the containers that living processes are making; takes no lock."""
    try:
        ledger = files.load(settings.paths.pools, Ledger, schema=SCHEMA)
    except FileNotFoundError:
        return set()
    return {
        promise.owner for promise in (*ledger.ids.values(), *ledger.addresses.values()) if _in_making(promise)
    }


def free_ranges(settings: Settings) -> int:
    """Return how many unprivileged containers could still be made."""
    return _Office(settings).free_ranges()


class _Office:
    """The pools as they are while the lock is held."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._path = settings.paths.pools
        self._known, ledger = self._read()
        self._turn = ledger.turn + 1
        self._claims = claims.read(settings.paths)
        claims.check(self._claims)
        self._claimed_slots = {
            slot for claim in self._claims for ids in claim.ids for slot in self._slots(ids.first, ids.count)
        }
        self._claimed_addresses = {address for claim in self._claims for address in claim.addresses}
        self._ids = self._reconcile(ledger.ids, self._is_claimed_range)
        self._addresses = self._reconcile(ledger.addresses, self._claimed_addresses.__contains__)
        self._record_claims()

    def _read(self) -> tuple[bool, Ledger]:
        try:
            return True, files.load(self._path, Ledger, schema=SCHEMA)
        except FileNotFoundError:
            return False, Ledger()
        except CorruptState as error:
            error.fix = f"rm {self._path}: it is made anew from the containers' directories"
            raise

    def _reconcile(self, lines: Mapping[str, Promise], claimed: Callable[[str], bool]) -> dict[str, Promise]:
        kept = {}
        for key, promise in lines.items():
            if claimed(key):
                kept[key] = dataclasses.replace(promise, pid=0, freed=None)
            elif promise.freed is not None or _in_making(promise):
                kept[key] = promise
            else:
                kept[key] = dataclasses.replace(promise, pid=0, freed=self._turn)
        return kept

    def _record_claims(self) -> None:
        """Note what directories claim, so that it counts as used once they are gone."""
        for claim in self._claims:
            promise = Promise(owner=claim.name, pid=0, pid_start=0, boot_id="", turn=self._turn)
            for ids in claim.ids:
                for slot in self._slots(ids.first, ids.count):
                    if 0 <= slot < self._settings.ids.count // self._settings.ids.each:
                        self._ids.setdefault(str(self._first_of(slot)), promise)
            for address in claim.addresses:
                self._addresses.setdefault(address, promise)

    def _is_claimed_range(self, key: str) -> bool:
        return not self._claimed_slots.isdisjoint(self._slots(int(key), self._settings.ids.each))

    def _pool_has(self, first: int) -> bool:
        pool = self._settings.ids
        return 0 <= first - pool.first < pool.count

    def _slots(self, first: int, count: int) -> range:
        pool = self._settings.ids
        return range((first - pool.first) // pool.each, (first + count - 1 - pool.first) // pool.each + 1)

    def _first_of(self, slot: int) -> int:
        return self._settings.ids.first + slot * self._settings.ids.each

    def refuse_busy(self, wants: Sequence[Want]) -> None:
        wanted = {want.name for want in wants}
        for promise in (*self._ids.values(), *self._addresses.values()):
            if promise.owner in wanted and _in_making(promise):
                raise Busy(
                    f"The container {promise.owner} is being made by another command",
                    why=f"process {promise.pid} was promised its ids and address",
                    fix="wait until that has ended, then run the same command again",
                    container=promise.owner,
                )

    def serve(self, wants: Sequence[Want]) -> dict[str, Grant]:
        """Give what is wanted."""
        ranges = iter(self._take_ranges(sum(want.unprivileged for want in wants)))
        addresses = iter(self._take_addresses(sum(want.addresses for want in wants)))
        grants = {}
        me = os.getpid()
        started, boot = proc.start_time(me), proc.boot_id()
        for want in wants:
            promise = Promise(owner=want.name, pid=me, pid_start=started, boot_id=boot, turn=self._turn)
            ids = next(ranges) if want.unprivileged else None
            given = tuple(next(addresses) for _ in range(want.addresses))
            if ids is not None:
                self._ids[str(ids)] = promise
            self._addresses.update(dict.fromkeys(given, promise))
            each = self._settings.ids.each
            grants[want.name] = Grant(
                ids=None if ids is None else IdRange(first=ids, count=each), addresses=given
            )
        return grants

    def settle(self, names: set[str]) -> None:
        """Drop promises to containers that do not exist: nothing was ever run with them."""
        for lines in (self._ids, self._addresses):
            for key in [key for key, promise in lines.items() if promise.owner in names and promise.pid]:
                del lines[key]

    def write(self) -> None:
        self._settings.paths.store.mkdir(mode=0o700, parents=True, exist_ok=True)
        ledger = Ledger(turn=self._turn, ids=self._ids, addresses=self._addresses)
        files.save(self._path, ledger, schema=SCHEMA)

    def free_ranges(self) -> int:
        return len(list(self._fresh_ranges())) + len(self._freed_ranges())

    def _take_ranges(self, count: int) -> list[int]:
        if not count:
            return []
        fresh = list(self._fresh_ranges())
        if self._known and len(fresh) >= count:
            return fresh[:count]
        # Either something is given for the second time, or the ledger was lost and nothing is
        # known about what was given before.
        occupied = {slot for used in occupancy.in_use() for slot in self._slots(used, 1)}
        found = [first for first in (*fresh, *self._freed_ranges()) if not self._is_in(first, occupied)]
        if len(found) < count:
            raise self._ids_exhausted(count, len(found))
        return found[:count]

    def _is_in(self, first: int, slots: set[int]) -> bool:
        return not slots.isdisjoint(self._slots(first, self._settings.ids.each))

    def _fresh_ranges(self) -> Iterator[int]:
        pool = self._settings.ids
        taken = {slot for key in self._ids for slot in self._slots(int(key), pool.each)}
        taken |= self._claimed_slots | self._foreign_slots
        for slot in range(pool.count // pool.each):
            if slot not in taken:
                yield self._first_of(slot)

    def _freed_ranges(self) -> list[int]:
        pool = self._settings.ids
        freed = [
            (promise.freed, promise.turn, int(key))
            for key, promise in self._ids.items()
            if promise.freed is not None
            and self._pool_has(int(key))
            and (int(key) - pool.first) % pool.each == 0
            and not self._is_in(int(key), self._foreign_slots)
        ]
        return [first for *_, first in sorted(freed)]

    @functools.cached_property
    def _foreign_slots(self) -> set[int]:
        return {slot for _, ids in self._foreign for slot in self._slots(ids.start, len(ids))}

    @functools.cached_property
    def _foreign(self) -> list[tuple[str, range]]:
        """Parts of the pool that are not ours to give, and whose they are."""
        pool = self._settings.ids
        found = [
            *occupancy.delegated(),
            *occupancy.reserved(),
            *((who, range(number, number + 1)) for who, number in occupancy.accounts()),
        ]
        ours = [
            (who, range(max(ids.start, pool.first), min(ids.stop, pool.first + pool.count)))
            for who, ids in found
        ]
        return [(who, ids) for who, ids in ours if ids]

    def _ids_exhausted(self, wanted: int, free: int) -> HostError:
        pool = self._settings.ids
        rivals = [who for who, _ in self._foreign]
        return HostError(
            f"The pool of id ranges is exhausted: {wanted} wanted, {free} free",
            why=self._why(pool.count // pool.each, "ranges", len(self._claimed_slots), rivals),
            fix="make ids.count in the settings larger (and root's entries in /etc/subuid and /etc/subgid;"
            " oneroot doctor shows them), or oneroot rm --empty-trash",
        )

    def _why(self, total: int, what: str, claimed: int, rivals: Sequence[str]) -> str:
        trash = len(places.trashed(self._settings.paths))
        said = f"of {total} {what}, {claimed} belong to containers, {trash} of these in the trash"
        return f"{said}; a part is taken by {', '.join(rivals[:3])}" if rivals else said

    def _take_addresses(self, count: int) -> list[str]:
        network = ipaddress.IPv4Network(self._settings.network.ipv4)
        size = network.num_addresses
        skipped = _SKIPPED_ADDRESSES if size >= 4 * _SKIPPED_ADDRESSES else 1
        base = int(network.network_address)
        found: list[str] = []
        for offset in range(skipped, size - 1):
            if len(found) == count:
                return found
            address = str(ipaddress.IPv4Address(base + offset))
            if address not in self._addresses and address not in self._claimed_addresses:
                found.append(address)
        freed = sorted(
            (promise.freed, promise.turn, key)
            for key, promise in self._addresses.items()
            if promise.freed is not None and ipaddress.ip_address(key) in network
        )
        found += [key for *_, key in freed]
        if len(found) < count:
            raise HostError(
                f"The pool of addresses is exhausted: {count} wanted, {len(found)} free",
                why=self._why(max(0, size - 1 - skipped), "addresses", len(self._claimed_addresses), ()),
                fix="make network.ipv4 in the settings larger, or oneroot rm --empty-trash",
            )
        return found[:count]


def _in_making(promise: Promise) -> bool:
    return bool(
        promise.pid
        and promise.freed is None
        and promise.boot_id == proc.boot_id()
        and proc.alive(promise.pid, promise.pid_start)
    )
