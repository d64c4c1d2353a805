"""The kernel: version, what it can do, what is known to be broken in it, who confines."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from oneroot.errors import OnerootError
from oneroot.host import sysctl
from oneroot.host.check import Check, Status
from oneroot.kernel import mount
from oneroot.run import run
from oneroot.settings import IdPool

Version = tuple[int, int, int]

OLDEST: Version = (5, 19, 0)
"""The first with overlays over idmapped lowers (commit bc70682a497c)."""

_TRIALS = {
    "openat2": ("openat2", "a tree that a container controls is entered through it alone", "a newer kernel"),
    "overlay": ("Overlay mounts", "each container's root is one", "modprobe overlay"),
    "idmapped": ("Idmapped mounts", "a generation is shown with each container's ids", "ext4, btrfs or xfs"),
    "userxattr": ("Overlay mounts by unprivileged containers", "with userxattr, in a user namespace", ""),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hole:
    """A hole that root in an unprivileged container could use against the host."""

    cve: str
    what: str
    since: Version
    fixed: tuple[Version, ...]
    """The first good release of each stable series; the last one is mainline's."""

    def hits(self, version: Version) -> bool:
        """Tell whether an upstream version has it."""
        if version < self.since:
            return False
        for good in self.fixed:
            if version[:2] == good[:2]:
                return version < good
        return version < self.fixed[-1]


# From the affected ranges of the CVE records (NVD); only kernels from OLDEST on matter here.
HOLES = (
    Hole(
        cve="CVE-2023-0386",
        what="overlay copy-up keeps setuid across user namespaces",
        since=(5, 11, 0),
        fixed=((5, 15, 91), (6, 1, 9), (6, 2, 0)),
    ),
    Hole(
        cve="CVE-2023-32233",
        what="use after free in nf_tables' anonymous sets",
        since=(3, 13, 0),
        fixed=((5, 15, 111), (6, 1, 28), (6, 2, 15), (6, 3, 2), (6, 4, 0)),
    ),
    Hole(
        cve="CVE-2024-1086",
        what="use after free in nf_tables' verdicts",
        since=(3, 15, 0),
        fixed=((5, 15, 149), (6, 1, 76), (6, 6, 15), (6, 7, 3), (6, 8, 0)),
    ),
)


def parse_version(release: str, build: str = "") -> tuple[Version | None, bool]:
    """Return the upstream version of a kernel, and whether holes can be judged by it.

    Debian writes it into the build string; Ubuntu, RHEL and their kin mend holes without
    changing it, so there it says nothing.

    :param release: ``uname -r``; *build*: ``uname -v``.
    """
    debian = re.search(r"Debian (\d+)\.(\d+)\.(\d+)", build)
    found = debian or re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", release)
    if found is None:
        return None, False
    version = (int(found[1]), int(found[2]), int(found[3] or 0))
    backports = re.search(r"\.el\d|-generic|Ubuntu|amzn|SUSE|-default", f"{release} {build}")
    return version, debian is not None or backports is None


def check_all(directory: Path, pool: IdPool) -> list[Check]:
    """Check the kernel; mounts are tried below *directory* (the store, or what is above it)."""
    release, build = os.uname().release, os.uname().version
    version, judged = parse_version(release, build)
    return [
        _version(release, version),
        _overlay_known(),
        *_trials(directory, pool),
        _user_namespaces(),
        _seccomp(),
        _holes(release, version if judged else None),
        _security_module(),
        _cgroups(),
        _clock(directory),
    ]


def _version(release: str, version: Version | None) -> Check:
    good = version is not None and version >= OLDEST
    return Check(
        id="kernel.version",
        title="Kernel",
        status=Status.OK if good else Status.FAIL,
        found=release,
        needed=".".join(map(str, OLDEST[:2])) + " or newer",
        why="overlays over idmapped lowers",
        fix_command="" if good else "install a newer kernel and boot it",
    )


def _overlay_known() -> Check:
    filesystems = Path("/proc/filesystems").read_text(encoding="ascii").split()
    known = "overlay" in filesystems
    return Check(
        id="kernel.overlay-module",
        title="The overlay filesystem",
        status=Status.OK if known else Status.WARN,
        found="in /proc/filesystems" if known else "not loaded",
        needed="loaded, or a module that the kernel may load",
        why="each container's root is one",
        fix_command="" if known else "modprobe overlay",
    )


def _trials(directory: Path, pool: IdPool) -> Iterator[Check]:
    errors = try_mounts(directory, pool)
    for name, (title, why, remedy) in _TRIALS.items():
        error = errors.get(name, "not looked at")
        unknown = os.geteuid() != 0
        yield Check(
            id=f"kernel.{name}",
            title=title,
            status=Status.UNKNOWN if unknown else Status.FAIL if error else Status.OK,
            found=error or "works (tried)",
            needed=f"works below {directory}",
            why=why,
            fix_command=remedy if error and not unknown else "",
        )


def try_mounts(directory: Path, pool: IdPool) -> dict[str, str]:
    """Try what containers need, on a filesystem, for real and in a child; errors by feature."""
    if os.geteuid() != 0:
        return dict.fromkeys(_TRIALS, "only root can try")
    try:
        place = Path(tempfile.mkdtemp(prefix=".oneroot-trial-", dir=directory))
    except OSError as error:
        return dict.fromkeys(_TRIALS, f"{directory}: {error.strerror}")
    try:
        place.chmod(0o755)
        words = [sys.executable, "-m", "oneroot.host.trial", str(place), str(pool.first), "65536"]
        answer = json.loads(run(words, timeout=30).stdout)
        return {str(name): str(error) for name, error in answer.items()}
    except (OnerootError, ValueError) as error:
        return dict.fromkeys(_TRIALS, str(error))
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _user_namespaces() -> Check:
    there = Path("/proc/self/ns/user").exists()
    most = sysctl.read_int("user.max_user_namespaces")
    good = there and most != 0
    return Check(
        id="kernel.user-namespaces",
        title="User namespaces",
        status=Status.OK if good else Status.FAIL,
        found="none in this kernel" if not there else f"at most {most}",
        needed="allowed to root",
        why="containers are unprivileged; kernel.unprivileged_userns_clone may stay 0, root makes them",
        fix_command="" if good else "sysctl -w user.max_user_namespaces=65536",
    )


def _seccomp() -> Check:
    text = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    good = "\nSeccomp:" in text and sysctl.read("kernel.seccomp.actions_avail") is not None
    return Check(
        id="kernel.seccomp",
        title="Seccomp filters",
        status=Status.OK if good else Status.FAIL,
        found="there" if good else "none in this kernel",
        needed="there",
        why="LXC's profile keeps containers from open_by_handle_at, kexec and modules",
        fix_command="" if good else "boot a kernel with CONFIG_SECCOMP_FILTER",
    )


def _holes(release: str, version: Version | None) -> Check:
    hit = [hole for hole in HOLES if version and hole.hits(version)]
    status = Status.UNKNOWN if version is None else Status.FAIL if hit else Status.OK
    found = "; ".join(f"{hole.cve}: {hole.what}" for hole in hit) or "none of our list"
    if version is None:
        found = f"{release} tells nothing: its makers mend without a new version"
    return Check(
        id="kernel.holes",
        title="Known holes of this kernel",
        status=status,
        found=found,
        needed="none of " + ", ".join(hole.cve for hole in HOLES),
        why="root in a container could become root on the host",
        fix_command="apt-get update && apt-get upgrade, then boot the new kernel" if hit else "",
    )


def _security_module() -> Check:
    try:
        modules = Path("/sys/kernel/security/lsm").read_text(encoding="ascii").strip().split(",")
    except OSError:
        modules = []
    if Path("/sys/module/apparmor/parameters/enabled").exists():
        modules.append("apparmor")
    if Path("/sys/fs/selinux/enforce").exists():
        modules.append("selinux")
    confining = sorted({"apparmor", "selinux", "smack"} & set(modules))
    return Check(
        id="kernel.security-module",
        title="Security module that confines containers",
        status=Status.OK if confining else Status.WARN,
        found=", ".join(confining) or "none",
        needed="AppArmor or SELinux",
        why="a second fence behind user namespaces and seccomp, and the only one for privileged containers",
        fix_command="" if confining else "apt-get install apparmor, and boot a kernel that has it",
    )


def cgroup_mode(table: list[mount.MountEntry]) -> tuple[str, set[str]]:
    """Return ``v2``, ``v1``, ``hybrid`` or ``none``, and the controllers that are mounted."""
    controllers: set[str] = set()
    kinds = set()
    for entry in table:
        if entry.kind == "cgroup":
            kinds.add("v1")
            controllers |= set(entry.super_options.split(",")) - {"rw", "ro"}
        elif entry.kind == "cgroup2":
            kinds.add("v2")
            try:
                text = (Path(entry.target) / "cgroup.controllers").read_text(encoding="ascii")
                controllers |= set(text.split())
            except OSError:
                pass
    if kinds == {"v1", "v2"}:
        named_only = not controllers & {"memory", "pids", "cpu"}
        return ("v2" if named_only else "hybrid"), controllers
    return (kinds.pop() if kinds else "none"), controllers


_UNIFIED = "systemd.unified_cgroup_hierarchy=1 cgroup_enable=memory"


def _cgroups() -> Check:
    mode, controllers = cgroup_mode(mount.table())
    lacking = {"memory", "pids", "cpu"} - controllers
    status = Status.FAIL if lacking else Status.OK if mode == "v2" else Status.WARN
    return Check(
        id="kernel.cgroups",
        title="Control groups",
        status=status,
        found=f"{mode}: {', '.join(sorted(controllers)) or 'no controllers'}",
        needed="v2 with memory, pids and cpu",
        why="limits of containers; on v1 privileged containers are refused and starts grow slower"
        if not lacking
        else f"limits of containers cannot hold without {', '.join(sorted(lacking))}",
        fix_command="" if status is Status.OK else f"boot with {_UNIFIED}",
    )


def _clock(directory: Path) -> Check:
    """Compare the clock with what must lie in the past."""
    marks = [Path(__file__), directory, Path("/var/lib/systemd/timesync/clock"), Path("/var/lib/dpkg/status")]
    newest = max((mark.stat().st_mtime for mark in marks if mark.exists()), default=0.0)
    late = newest - time.time()
    shown = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return Check(
        id="clock",
        title="The clock",
        status=Status.WARN if late > 60 else Status.OK,
        found=f"{shown}, {late:.0f} s before files of this host" if late > 60 else shown,
        needed="not before the host's newest files",
        why="the proof's max_age, expired package indices and the journal go by it",
        fix_command="timedatectl set-ntp true" if late > 60 else "",
    )
