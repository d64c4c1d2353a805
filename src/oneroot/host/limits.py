"""The walls of the kernel: how much of each a number of containers needs.

Counts are upper bounds for what we start ourselves; they grow with what runs inside.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from oneroot.host import sysctl
from oneroot.host.check import Check, Status


@dataclasses.dataclass(frozen=True, kw_only=True)
class Load:
    """What is going to run."""

    containers: int
    units: int
    """Of them, those with a systemd of their own."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limit:
    """A kernel parameter that must be at least so much."""

    name: str
    need: Callable[[Load], int]
    why: str
    wall: bool = True
    """Below it containers fail; otherwise something inside them may."""


def _neighbours(share: float) -> Callable[[Load], int]:
    return lambda load: int(share * (load.containers + 128))


LIMITS: tuple[Limit, ...] = (
    Limit(
        name="kernel.pty.max",
        need=lambda load: load.containers + 1024 + 64,
        why="each container's console is a pty, and 1,024 are kept for the host",
    ),
    Limit(
        name="kernel.pid_max",
        need=lambda load: 4096 + 30 * load.containers,
        why="about 30 processes and threads in each container",
    ),
    Limit(
        name="kernel.threads-max",
        need=lambda load: 4096 + 30 * load.containers,
        why="about 30 processes and threads in each container",
    ),
    Limit(
        name="fs.inotify.max_user_instances",
        need=lambda load: 64 + load.containers // 4 + 10 * load.units,
        why="a systemd takes about 10, and those of all containers count for root, who made them",
    ),
    Limit(
        name="fs.inotify.max_user_watches",
        need=lambda load: 4096 + 8 * load.containers + 64 * load.units,
        why="a systemd watches about 60 files",
    ),
    Limit(
        name="net.ipv4.neigh.default.gc_thresh1",
        need=_neighbours(0.5),
        why="below it the neighbour table is left alone; each container is a neighbour",
        wall=False,
    ),
    Limit(
        name="net.ipv4.neigh.default.gc_thresh2",
        need=_neighbours(0.75),
        why="above it neighbours are forgotten after seconds; each container is one",
        wall=False,
    ),
    Limit(
        name="net.ipv4.neigh.default.gc_thresh3",
        need=_neighbours(1),
        why="a full neighbour table cuts containers off",
    ),
    Limit(
        name="net.ipv6.neigh.default.gc_thresh3",
        need=_neighbours(1),
        why="a full neighbour table cuts containers off",
        wall=False,
    ),
    Limit(
        name="net.netfilter.nf_conntrack_max",
        need=lambda load: 16384 + 32 * load.containers,
        why="each connection of a container is tracked; a full table drops everybody's packets",
        wall=False,
    ),
    Limit(
        name="kernel.keys.maxkeys",
        need=lambda load: 2000,
        why="a container's users have session keyrings; each unit takes one",
        wall=False,
    ),
    Limit(
        name="kernel.keys.maxbytes",
        need=lambda load: 200_000,
        why="goes with kernel.keys.maxkeys",
        wall=False,
    ),
    Limit(
        name="kernel.keys.root_maxkeys",
        need=lambda load: 1000 + 4 * load.containers,
        why="each container starts with keyrings of the host's root",
    ),
    Limit(
        name="kernel.keys.root_maxbytes",
        need=lambda load: 100_000 + 400 * load.containers,
        why="goes with kernel.keys.root_maxkeys",
    ),
    *(
        Limit(
            name=f"user.max_{kind}_namespaces",
            need=lambda load: 256 + 2 * load.containers,
            why="each container has its own",
        )
        for kind in ("user", "net", "ipc", "uts", "pid", "cgroup")
    ),
    Limit(
        name="user.max_mnt_namespaces",
        need=lambda load: 256 + 2 * load.containers + 8 * load.units,
        why="two for each container, and one for each sandboxed unit",
    ),
    Limit(
        name="fs.file-max",
        need=lambda load: 65536 + 256 * load.containers,
        why="open files of all containers together",
    ),
    Limit(
        name="fs.aio-max-nr",
        need=lambda load: 524_288,
        why="databases reserve thousands each",
        wall=False,
    ),
    Limit(
        name="vm.max_map_count",
        need=lambda load: 262_144,
        why="search engines and databases refuse to start below",
        wall=False,
    ),
)


def rounded(number: int) -> int:
    """Return the power of two that is not below: what a person would choose."""
    return 1 << max(0, number - 1).bit_length()


def check(limit: Limit, load: Load) -> Check:
    """Compare one limit with what the load needs."""
    found = sysctl.read_int(limit.name)
    needed = limit.need(load)
    low = found is not None and found < needed
    return Check(
        id=f"limit.{limit.name}",
        title=limit.name,
        status=Status.OK if not low else Status.FAIL if limit.wall else Status.WARN,
        found="not in this kernel or network namespace" if found is None else str(found),
        needed=str(needed),
        why=limit.why,
        fix_command=f"sysctl -w {limit.name}={rounded(needed)}" if low else "",
        fixable=low,
    )


def check_all(load: Load) -> list[Check]:
    return [check(limit, load) for limit in LIMITS]


def too_low(load: Load) -> list[Check]:
    """Return the walls that this load would hit; reads a few files and nothing more."""
    checks = (check(limit, load) for limit in LIMITS if limit.wall)
    return [found for found in checks if found.status is Status.FAIL]
