"""Programs that we run, and the start hook that LXC runs for us."""

from __future__ import annotations

import os
import re
import shutil
import stat
from pathlib import Path

from oneroot.errors import OnerootError
from oneroot.host.check import Check, Status
from oneroot.run import SAFE_PATH, run
from oneroot.settings import Paths

OLDEST_LXC = 5

_PROGRAMS = (
    ("lxc-start", "lxc"),
    ("lxc-stop", "lxc"),
    ("lxc-attach", "lxc"),
    ("nft", "nftables"),
    ("ip", "iproute2"),
    ("dnsmasq", "dnsmasq-base"),
    ("mmdebstrap", "mmdebstrap"),
)
_SOME_PROGRAMS = (
    ("ssh-keygen", "openssh-client", "makes the host keys of containers whose base has an ssh server"),
    ("openssl", "openssl", "makes the certificates of containers whose base has ssl-cert"),
)
"""Needed for some bases only."""


def check_all(paths: Paths) -> list[Check]:
    """Check every program, LXC's version and the start hook."""
    return [
        *(_present(*program) for program in _PROGRAMS),
        *(_present(*program, otherwise=Status.WARN) for program in _SOME_PROGRAMS),
        _lxc_version(),
        start_hook(paths),
    ]


def _present(
    name: str, package: str, why: str = "oneroot runs it", *, otherwise: Status = Status.FAIL
) -> Check:
    found = shutil.which(name, path=SAFE_PATH)
    return Check(
        id=f"program.{name}",
        title=f"The program {name}",
        status=Status.OK if found else otherwise,
        found=found or "not installed",
        needed="installed",
        why=why,
        fix_command="" if found else f"apt-get install {package}",
    )


def _lxc_version() -> Check:
    try:
        said = run(["lxc-start", "--version"], timeout=10).stdout.strip()
    except OnerootError as error:
        said = str(error)
    major = re.match(r"(\d+)\.", said)
    good = major is not None and int(major[1]) >= OLDEST_LXC
    return Check(
        id="lxc.version",
        title="LXC",
        status=Status.OK if good else Status.FAIL,
        found=said,
        needed=f"{OLDEST_LXC}.0 or newer",
        why="router links, idmapped lowers and monitors with a mount namespace of their own",
        fix_command="" if good else "apt-get install lxc",
    )


def start_hook(paths: Paths) -> Check:
    """Check that the hook which root's LXC runs at each start is there and nobody's but root's."""
    problem = hook_problem(paths.start_hook)
    return Check(
        id="hook",
        title="The start hook",
        status=Status.FAIL if problem else Status.OK,
        found=problem or str(paths.start_hook),
        needed="root's alone, with every directory above it",
        why="LXC runs it as root at every start; it mounts the generation",
        fix_command=f"install -D -o root -g root -m 0755 start-hook {paths.start_hook}" if problem else "",
    )


def hook_problem(path: Path) -> str:
    """Return what is wrong with the hook, an empty string if nothing is."""
    try:
        real = path.resolve(strict=True)
        status = real.stat()
        filesystem = os.statvfs(real)
    except OSError as error:
        return f"{path} cannot be used: {error.strerror}"
    if not stat.S_ISREG(status.st_mode) or not status.st_mode & 0o100:
        return f"{path} is not an executable file"
    if filesystem.f_flag & os.ST_NOEXEC:
        return f"{path} lies on a filesystem mounted noexec"
    for place in {path, *path.parents, real, *real.parents}:
        found = place.lstat()
        if found.st_uid != 0:
            return f"{place} belongs to user {found.st_uid}, not to root"
        sticky = stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX
        if found.st_mode & 0o022 and not stat.S_ISLNK(found.st_mode) and not sticky:
            return f"{place} can be written by others than root"
    return ""
