"""Filesystems of store, LXC path and run directory; memory; address pool; control groups."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import tempfile
from pathlib import Path

from oneroot.host.check import Check, Status
from oneroot.host.limits import Load
from oneroot.kernel import mount
from oneroot.settings import Settings

CONTAINER_BYTES = 512 << 10
CONTAINER_INODES = 120
"""What an upper, its configuration and lease take before anything is written inside."""
BASE_BYTES = 3 << 30
BASE_INODES = 150_000
"""Two generations of a base of common size, and one being built."""
RUN_BYTES = 16 << 10
"""Lease, lock and name of a container, a block each."""
CONTAINER_MEMORY = 3 << 20
"""Measured: LXC's monitor and a small web server over a shared base."""
HOST_MEMORY = 512 << 20
CGROUPS_MOST = 65_535
"""The kernel's memory cgroup ids, dying ones included."""


def existing(path: Path) -> Path:
    """Return the nearest directory at or above a path that exists."""
    while not path.exists():
        path = path.parent
    return path


def check_all(settings: Settings, load: Load) -> list[Check]:
    """Check the places and pools for this many containers."""
    store, lxc = existing(settings.paths.store), existing(settings.paths.lxc)
    return [
        _one_filesystem(store, lxc),
        _attributes("store", store),
        *([] if _device(store) == _device(lxc) else [_attributes("lxc", lxc)]),
        _space(lxc, store, load),
        _run_space(existing(settings.paths.run), load),
        _memory(load),
        _addresses(settings, load),
        _cgroup_count(load),
    ]


def _device(path: Path) -> int:
    return path.stat().st_dev


def _kind(path: Path) -> str:
    best = max(
        (entry for entry in mount.table() if path.is_relative_to(entry.target)),
        key=lambda entry: len(entry.target),
        default=None,
    )
    return best.kind if best else "unknown"


def _one_filesystem(store: Path, lxc: Path) -> Check:
    same = _device(store) == _device(lxc)
    return Check(
        id="storage.one-filesystem",
        title="Store and LXC path on one filesystem",
        status=Status.OK if same else Status.WARN,
        found=_kind(store) if same else f"two: {_kind(store)} and {_kind(lxc)}",
        needed="one",
        why="with two, inode numbers in /proc/PID/maps mean nothing: stale code is found by path alone",
        fix_command="" if same else "put paths.store and paths.lxc on one filesystem in the settings",
    )


def _attributes(name: str, directory: Path) -> Check:
    """Try what an upper needs of its filesystem: d_type, trusted and user attributes."""
    title = f"Filesystem of {directory}"
    if os.geteuid() != 0:
        return Check(
            id=f"storage.{name}.attributes", title=title, status=Status.UNKNOWN, found="only root can try"
        )
    lacking = missing_features(directory)
    return Check(
        id=f"storage.{name}.attributes",
        title=title,
        status=Status.FAIL if lacking else Status.OK,
        found=_kind(directory) + (f" without {', '.join(lacking)}" if lacking else ", has all"),
        needed="d_type, trusted and user attributes",
        why="overlay keeps whiteouts and opaque directories by them",
        fix_command="use ext4, btrfs, or xfs made with ftype=1" if lacking else "",
    )


def missing_features(directory: Path) -> list[str]:
    """Return what a directory's filesystem cannot do; tried with a file that is gone afterwards."""
    lacking = []
    try:
        with tempfile.TemporaryDirectory(prefix=".oneroot-trial-", dir=directory) as place:
            for name in ("trusted.oneroot", "user.oneroot"):
                try:
                    os.setxattr(place, name, b"x")
                except OSError:
                    lacking.append(f"{name.partition('.')[0]} attributes")
            if not _has_d_type(Path(place)):
                lacking.append("d_type")
    except OSError as error:
        lacking.append(f"write access ({error.strerror})")
    return lacking


def _has_d_type(place: Path) -> bool:
    """Tell whether readdir names the types: of an entry that is gone, nothing else can."""
    (place / "child").mkdir()
    with os.scandir(place) as listing:
        entry = next(listing)
    (place / "child").rmdir()
    return entry.is_dir(follow_symlinks=False)


def _space(lxc: Path, store: Path, load: Load) -> Check:
    found = os.statvfs(lxc)
    free, inodes = found.f_bavail * found.f_frsize, found.f_favail
    bases = int(_device(lxc) == _device(store))
    need = CONTAINER_BYTES * load.containers + BASE_BYTES * bases
    need_inodes = CONTAINER_INODES * load.containers + BASE_INODES * bases
    # btrfs and its like have no fixed number of inodes and say 0.
    short_of_inodes = found.f_files > 0 and inodes < need_inodes
    good = free >= need and not short_of_inodes
    return Check(
        id="storage.space",
        title=f"Room below {lxc}",
        status=Status.OK if good else Status.WARN,
        found=f"{free >> 20} MB, {inodes} inodes",
        needed=f"{need >> 20} MB, {need_inodes} inodes",
        why="uppers, and two generations of a base; what containers write comes on top",
        fix_command="" if good else "free space, or another paths.store and paths.lxc in the settings",
    )


def _run_space(run: Path, load: Load) -> Check:
    found = os.statvfs(run)
    free, need = found.f_bavail * found.f_frsize, RUN_BYTES * load.containers + (1 << 20)
    inodes_short = found.f_files > 0 and found.f_favail < 4 * load.containers
    good = free >= need and not inodes_short
    return Check(
        id="storage.run",
        title=f"Room below {run}",
        status=Status.OK if good else Status.FAIL,
        found=f"{free >> 20} MB, {found.f_favail} inodes, {_kind(run)}",
        needed=f"{need >> 20} MB, {4 * load.containers} inodes",
        why="leases, locks and names: without them no container starts",
        fix_command="" if good else "mount -o remount,size=50%,nr_inodes=0 /run",
    )


def _memory(load: Load) -> Check:
    values = {}
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        name, _, rest = line.partition(":")
        with contextlib.suppress(ValueError, IndexError):
            values[name] = int(rest.split()[0]) << 10
    total, available = values.get("MemTotal", 0), values.get("MemAvailable", 0)
    need = CONTAINER_MEMORY * load.containers
    status = Status.FAIL if total < need + HOST_MEMORY else Status.WARN if available < need else Status.OK
    return Check(
        id="memory",
        title="Memory",
        status=status,
        found=f"{available >> 20} of {total >> 20} MB available",
        needed=f"{need >> 20} MB",
        why="about 3 MB for each container with a small web server; what it does comes on top",
        fix_command="" if status is Status.OK else "fewer containers, or more memory",
    )


def address_room(settings: Settings) -> int:
    """Return how many containers the address pool has room for."""
    return max(0, ipaddress.IPv4Network(settings.network.ipv4).num_addresses - 2)


def addresses_lacking(settings: Settings, containers: int) -> list[Check]:
    """Return the check of the address pool if it is too small."""
    check = _addresses(settings, Load(containers=containers, units=0))
    return [check] if check.status is Status.FAIL else []


def _addresses(settings: Settings, load: Load) -> Check:
    room = address_room(settings)
    good = room >= load.containers
    return Check(
        id="network.pool",
        title="Addresses for all containers",
        status=Status.OK if good else Status.FAIL,
        found=f"{room} in {settings.network.ipv4}",
        needed=str(load.containers),
        why="each container has one of its own",
        fix_command="" if good else "choose a wider network.ipv4 in the settings",
    )


def _cgroup_count(load: Load) -> Check:
    most = 0
    with contextlib.suppress(OSError):
        for line in Path("/proc/cgroups").read_text(encoding="ascii").splitlines():
            words = line.split()
            if words[0] == "memory":
                most = int(words[2])
    need = 2 * load.containers + 14 * load.units
    good = most + need <= CGROUPS_MOST
    return Check(
        id="kernel.cgroup-count",
        title="Control groups with memory accounts",
        status=Status.OK if good else Status.WARN,
        found=f"{most} in use",
        needed=f"{need} of {CGROUPS_MOST}",
        why="two for each container, and one for each unit of a systemd inside",
        fix_command="" if good else "command mode instead of unit mode, or fewer containers",
    )
