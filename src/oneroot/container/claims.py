"""Who has which ids and addresses: read from the directories, which are the truth.

Our containers say it in ``oneroot.json``, wherever they lie: in place, in the making, in the trash
or being deleted. A damaged declaration, and a container that is not ours, say it in the LXC
configuration.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from oneroot.container import places
from oneroot.container.spec import IdRange
from oneroot.errors import CorruptState
from oneroot.settings import Paths

_IDMAP = re.compile(r"^\s*lxc\.idmap\s*=\s*[ugb]\s+\d+\s+(\d+)\s+(\d+)\s*$", re.MULTILINE)
_ADDRESS = re.compile(r"^\s*lxc\.net\.\d+\.ipv4\.address\s*=\s*([0-9.]+)", re.MULTILINE)
_CONFIG_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claim:
    """One directory's claim."""

    what: str
    """For messages."""
    name: str
    place: Path
    ids: tuple[IdRange, ...]
    addresses: tuple[str, ...]
    ours: bool
    """False for foreign containers and for copies of ours, which may share what others have."""


def read(paths: Paths) -> list[Claim]:
    """Return every claim that lies on this host."""
    found = [_claim(place, f"the container {place.name}", place.name) for place in _containers(paths)]
    for directory in places.stages(paths):
        found += [
            _claim(place, f"the unfinished container {place.name}", place.name)
            for place in places.listing(directory)
        ]
    for item in places.trashed(paths):
        found.append(_claim(item.path, f"{item.name} in the trash ({item.path})", item.name))
    for directory in places.trashes(paths):
        for place in places.listing(places.doomed(directory)):
            found.append(_claim(place, f"{place.name}, which is being deleted", ""))
    return [claim for claim in found if claim is not None]


def check(found: Sequence[Claim]) -> None:
    """Check that no two of ours claim the same id or address.

    :raises CorruptState: names both.
    """
    ranges = sorted(
        ((ids.first, ids.first + ids.count, claim) for claim in found if claim.ours for ids in claim.ids),
        key=lambda item: item[:2],
    )
    for (_, end, one), (begin, _, other) in itertools.pairwise(ranges):
        if begin < end:
            raise _twice("the id range", str(begin), one, other)
    owners: dict[str, Claim] = {}
    for claim in found:
        for address in claim.addresses if claim.ours else ():
            if address in owners:
                raise _twice("the address", address, owners[address], claim)
            owners[address] = claim


def _twice(kind: str, value: str, one: Claim, other: Claim) -> CorruptState:
    return CorruptState(
        f"{one.what[0].upper()}{one.what[1:]} and {other.what} claim the same: {kind} {value}",
        why=f"{one.place}/oneroot.json and {other.place}/oneroot.json were written or copied by hand",
        fix="stop both, and remove the one that was made later",
    )


def _containers(paths: Paths) -> Iterator[Path]:
    for place in places.listing(paths.lxc):
        if not place.name.startswith("."):
            yield place


def _claim(place: Path, what: str, name: str) -> Claim | None:
    try:
        declared: Any = json.loads((place / "oneroot.json").read_bytes())
        ids = declared["ids"]
        return Claim(
            what=what,
            name=name,
            place=place,
            ids=(IdRange(first=int(ids["first"]), count=int(ids["count"])),) if ids else (),
            addresses=tuple(str(ipaddress.ip_address(text)) for text in declared["addresses"]),
            ours=declared["name"] == name,
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return _from_configuration(place, what, name)


def _from_configuration(place: Path, what: str, name: str) -> Claim | None:
    try:
        with (place / "config").open("rb") as file:
            text = file.read(_CONFIG_BYTES).decode("utf-8", "replace")
    except (FileNotFoundError, NotADirectoryError):
        return None
    ranges = {IdRange(first=int(first), count=int(count)) for first, count in _IDMAP.findall(text)}
    return Claim(
        what=what,
        name=name,
        place=place,
        ids=tuple(sorted(ranges, key=lambda ids: ids.first)),
        addresses=tuple(_ADDRESS.findall(text)),
        ours=False,
    )
