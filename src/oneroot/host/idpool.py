"""The pool of user and group ids: whether it is root's to give, and nobody else's."""

from __future__ import annotations

import dataclasses
import grp
import pwd
from collections.abc import Iterable
from pathlib import Path

from oneroot.host.check import Check, Status
from oneroot.settings import IdPool

FILES = (Path("/etc/subuid"), Path("/etc/subgid"))

# Of systemd's UIDS-GIDS document.
RESERVED = (
    ("the host's own users", range(0x1_0000)),
    ("systemd's foreign disk images", range(0x7FFE_0000, 0x7FFF_0000)),
    ("ids that many programs take for negative numbers", range(0x8000_0000, 0x1_0000_0000)),
)
"""Ranges that belong to somebody by convention, and to whom."""
NSPAWN = range(0x0008_0000, 0x7000_0000)
"""systemd-nspawn picks from these without asking."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """A line of /etc/subuid or /etc/subgid."""

    owner: str
    first: int
    count: int

    @property
    def last(self) -> int:
        return self.first + self.count - 1


def parse(text: str) -> list[Entry]:
    """Return the entries; lines that are none are left out, as newuidmap does."""
    found = []
    for line in text.splitlines():
        words = line.strip().split(":")
        if len(words) == 3 and words[1].isdigit() and words[2].isdigit() and int(words[2]):
            found.append(Entry(owner=words[0], first=int(words[1]), count=int(words[2])))
    return found


def read(file: Path) -> list[Entry]:
    """Return a file's entries; none if there is no such file."""
    try:
        return parse(file.read_text(encoding="utf-8", errors="replace"))
    except FileNotFoundError:
        return []


def is_roots(owner: str) -> bool:
    return owner in ("root", "0")


def missing(entries: Iterable[Entry], pool: IdPool) -> list[tuple[int, int]]:
    """Return the parts of the pool, first and count, that root may not give to containers yet."""
    place, last = pool.first, pool.first + pool.count - 1
    gaps = []
    for entry in sorted((entry for entry in entries if is_roots(entry.owner)), key=lambda entry: entry.first):
        if entry.last < place:
            continue
        if entry.first > last:
            break
        if entry.first > place:
            gaps.append((place, entry.first - place))
        place = max(place, entry.last + 1)
    if place <= last:
        gaps.append((place, last - place + 1))
    return gaps


def overlaps(entries: Iterable[Entry], pool: IdPool) -> list[Entry]:
    """Return other users' entries that reach into the pool."""
    last = pool.first + pool.count - 1
    return [
        entry
        for entry in entries
        if not is_roots(entry.owner) and entry.first <= last and entry.last >= pool.first
    ]


def check_all(pool: IdPool, containers: int) -> list[Check]:
    """Check the pool's place, size, delegation and neighbours."""
    return [*(_delegated(file, pool) for file in FILES), _alone(pool), _size(pool, containers)]


def lacking(pool: IdPool, containers: int) -> list[Check]:
    """Return what of the pool would stop this many containers; reads two files."""
    checks = [*(_delegated(file, pool) for file in FILES), _size(pool, containers)]
    return [check for check in checks if check.status is Status.FAIL]


def _shown(pool: IdPool) -> str:
    return f"{pool.first}-{pool.first + pool.count - 1}"


def _delegated(file: Path, pool: IdPool) -> Check:
    gaps = missing(read(file), pool)
    flag = "--add-subuids" if file.name == "subuid" else "--add-subgids"
    ranges = " ".join(f"{flag} {first}-{first + count - 1}" for first, count in gaps)
    return Check(
        id=f"ids.{file.name}",
        title=f"Ids for containers in {file}",
        status=Status.FAIL if gaps else Status.OK,
        found="root's" if not gaps else "missing: " + ", ".join(f"{first}+{count}" for first, count in gaps),
        needed=f"root:{pool.first}:{pool.count}",
        why="LXC maps only ids that root is given there",
        fix_command=f"usermod {ranges} root" if gaps else "",
        fixable=bool(gaps),
    )


def _alone(pool: IdPool) -> Check:
    last = pool.first + pool.count - 1
    clashes = [
        f"{file.name}: {entry.owner} has {entry.first}+{entry.count}"
        for file in FILES
        for entry in overlaps(read(file), pool)
    ]
    clashes += [
        f"user {user.pw_name} has {user.pw_uid}"
        for user in pwd.getpwall()
        if pool.first <= user.pw_uid <= last
    ]
    clashes += [
        f"group {group.gr_name} has {group.gr_gid}"
        for group in grp.getgrall()
        if pool.first <= group.gr_gid <= last
    ]
    clashes += [what for what, ids in RESERVED if pool.first < ids.stop and last >= ids.start]
    nspawn = pool.first < NSPAWN.stop and last >= NSPAWN.start
    status = Status.FAIL if clashes else Status.WARN if nspawn else Status.OK
    if nspawn:
        clashes.append("systemd-nspawn may pick ids there")
    return Check(
        id="ids.alone",
        title="Nobody else uses the containers' ids",
        status=status,
        found="; ".join(clashes[:5]) or "nobody does",
        needed=f"{_shown(pool)} unused",
        why="whoever has one of these ids owns files and processes of containers",
        fix_command="choose other ids.first and ids.count in the settings" if clashes else "",
    )


def _size(pool: IdPool, containers: int) -> Check:
    room = pool.count // pool.each
    return Check(
        id="ids.size",
        title="Id ranges for all containers",
        status=Status.OK if room >= containers else Status.FAIL,
        found=f"{room} ranges of {pool.each}",
        needed=f"{containers} ranges",
        why="no two containers share an id",
        fix_command="" if room >= containers else "raise ids.count in the settings",
    )
